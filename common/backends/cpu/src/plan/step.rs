//! The steps of a plan.

use roundhouse_graph::{
    AttentionAttributes, ExpertAttributes, GeluApproximation, Quantization, RotaryAttributes,
};

use super::view::{BufferId, Root, View};

/// Which weight, of those that are read where they are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WeightId(pub(crate) usize);

/// One call of a kernel. A view named `to` is written; one of `from` or `a` that is absent is `to` itself, changed in
/// place.
#[derive(Debug)]
pub(crate) enum Step {
    /// Floats that a component is given.
    Load { tensor: usize, to: View },
    /// Strided copy, converting to fp32.
    Copy { from: View, to: View },
    /// Strided copy of integers.
    CopyIntegers { from: View, to: View },
    /// Integers as fp32; as truth values, not-zero is 1.
    IntegersToFloat { from: View, to: View, truth: bool },
    /// fp32 towards zero as integers.
    FloatToIntegers { from: View, to: View },
    /// Rows of `[1, tokens, width]` that are an image's features, of the caches that hold them.
    ImageRows { to: View },
    /// `rows[indices]` where an index is not negative; `to` `[…, width]` and `rows` with contiguous rows.
    ReplaceRows { rows: View, indices: View, to: View },
    /// Rows of a weight.
    Embedding { ids: View, table: WeightId, to: BufferId },
    /// `x[…, ids, …]` along an axis.
    Gather { x: View, ids: View, axis: usize, to: View },
    /// Matrix products of one contiguous input with weights.
    Linear { x: View, parts: Vec<LinearPart> },
    /// `silu(x · gateᵀ) · (x · upᵀ)`.
    LinearSiluMul { x: View, gate: LinearWeight, up: LinearWeight, to: BufferId },
    /// The chosen experts of each token.
    Experts(Box<Experts>),
    /// `a […, M, K] · b […, K, N]`.
    MatMul { a: View, b: View, to: View },
    /// Elementwise of two, all views of one shape.
    Binary { op: BinaryOp, a: Option<View>, b: View, to: View },
    /// Elementwise of one, dense.
    Map { function: Function, from: Option<View>, to: View },
    /// A norm of the rows of dense views.
    Norm { norm: Norm, from: View, to: View },
    /// Softmax of the rows of a contiguous view, in place.
    Softmax { to: View },
    /// Cosines and sines for this step's positions.
    RotaryTable { table: usize, positions: View },
    /// Rotates `[1, heads, tokens, head_dim]` in place.
    Rotary { table: usize, to: View },
    /// Appends `[1, heads, tokens, head_dim]` to each sequence's cache tensor.
    StoreKv { tensor: usize, from: View },
    /// The new content of a static cache's tensor, contiguous.
    StoreCache { tensor: usize, from: View },
    /// Attention of `[1, heads, tokens, head_dim]` over each sequence's cache.
    CachedAttention { q: View, key: usize, value: usize, attention: Attention, to: View },
    /// Attention over keys and values of this step.
    Attention(Box<DenseAttention>),
    /// The rows `[1, tokens, width]` whose logits are wanted.
    SelectRows { from: View, to: View },
}

/// What activations are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinearWeight {
    /// A matrix of floats.
    Plain(WeightId),
    /// A matrix of few bits, in parts as in the op.
    Quantized { values: WeightId, scales: WeightId, offsets: Option<WeightId>, quantization: Quantization },
}

/// One weight of a [`Step::Linear`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinearPart {
    pub(crate) weight: LinearWeight,
    /// The number of a constant.
    pub(crate) bias: Option<usize>,
    pub(crate) to: BufferId,
    /// Whether the product is added to what `to` holds.
    pub(crate) accumulate: bool,
}

/// A [`Step::Experts`]: contiguous activations `[…, H]` and `[…, E]`, weights as in the op.
#[derive(Debug)]
pub(crate) struct Experts {
    pub(crate) x: View,
    pub(crate) router_logits: View,
    pub(crate) gate_up: WeightId,
    pub(crate) down: WeightId,
    pub(crate) attributes: ExpertAttributes,
    pub(crate) to: BufferId,
}

/// What [`Step::Binary`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BinaryOp {
    /// `a + b`.
    Add,
    /// `a · b`.
    Mul,
    /// `silu(a) · b`.
    SiluMul,
}

/// What [`Step::Map`] computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Function {
    Scale(f32),
    Silu,
    Sigmoid,
    Gelu(GeluApproximation),
    SoftCap(f32),
    /// 1 where not zero.
    Truth,
}

/// What [`Step::Norm`] computes; weights by the numbers of constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Norm {
    Rms { weight: usize, epsilon: f32, unit_offset: bool },
    Layer { weight: usize, bias: Option<usize>, epsilon: f32 },
}

/// The attributes of an attention, its scale decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Attention {
    pub(crate) causal: bool,
    pub(crate) window: Option<usize>,
    pub(crate) scale: f32,
    pub(crate) soft_cap: Option<f32>,
}

impl Attention {
    pub(super) fn new(attributes: &AttentionAttributes, head_dim: usize) -> Self {
        Self {
            causal: attributes.causal,
            window: attributes.window.and_then(|window| usize::try_from(window).ok()),
            scale: attributes.scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt()),
            soft_cap: attributes.soft_cap,
        }
    }
}

/// A [`Step::Attention`]: `[batch, heads, tokens, head_dim]` over `[batch, kv_heads, length, …]`, all with contiguous
/// rows. The batch is 1 where there is a mask or a length.
#[derive(Debug)]
pub(crate) struct DenseAttention {
    pub(crate) q: View,
    pub(crate) k: View,
    pub(crate) v: View,
    pub(crate) mask: Option<Mask>,
    /// How many of the keys exist, where it is not all of them.
    pub(crate) kv_lengths: Option<View>,
    /// `[batch, tokens]`, contiguous: where there are any, a query attends to the keys of its own segment.
    pub(crate) segment_ids: Option<View>,
    pub(crate) attention: Attention,
    pub(crate) to: View,
}

/// The mask of a [`Step::Attention`], of shape `[1, heads, queries, keys]`.
#[derive(Debug, Clone)]
pub(crate) struct Mask {
    pub(crate) view: View,
    /// Whether it is added to the scores; else keys attend where it is not zero.
    pub(crate) additive: bool,
}

/// A rotary embedding's angles, shared by all layers that have the same.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RotaryTable {
    pub(crate) attributes: RotaryAttributes,
    pub(crate) positions: View,
}

impl Step {
    /// Calls `visit` with every buffer that the step reads or writes.
    pub(super) fn for_each_buffer(&self, mut visit: impl FnMut(BufferId)) {
        let mut view = |view: &View| {
            if let Root::Buffer(id) = view.root {
                visit(id);
            }
        };
        match self {
            Self::Copy { from, to }
            | Self::CopyIntegers { from, to }
            | Self::IntegersToFloat { from, to, .. }
            | Self::FloatToIntegers { from, to }
            | Self::Norm { from, to, .. }
            | Self::SelectRows { from, to } => [from, to].into_iter().for_each(view),
            Self::Load { to, .. } | Self::ImageRows { to } => view(to),
            Self::ReplaceRows { rows, to, .. } => [rows, to].into_iter().for_each(view),
            Self::Embedding { to, .. } => visit(*to),
            Self::Gather { x, to, .. } => [x, to].into_iter().for_each(view),
            Self::Linear { x, parts } => {
                view(x);
                parts.iter().for_each(|part| visit(part.to));
            }
            Self::LinearSiluMul { x, to, .. } => {
                view(x);
                visit(*to);
            }
            Self::Experts(experts) => {
                [&experts.x, &experts.router_logits].into_iter().for_each(view);
                visit(experts.to);
            }
            Self::MatMul { a, b, to } => [a, b, to].into_iter().for_each(view),
            Self::Binary { a, b, to, .. } => a.iter().chain([b, to]).for_each(view),
            Self::Map { from, to, .. } => from.iter().chain([to]).for_each(view),
            Self::Softmax { to } | Self::Rotary { to, .. } => view(to),
            Self::RotaryTable { .. } => {}
            Self::StoreKv { from, .. } | Self::StoreCache { from, .. } => view(from),
            Self::CachedAttention { q, to, .. } => [q, to].into_iter().for_each(view),
            Self::Attention(dense) => {
                let DenseAttention { q, k, v, mask, to, .. } = &**dense;
                [q, k, v, to].into_iter().chain(mask.iter().map(|mask| &mask.view)).for_each(view);
            }
        }
    }
}
