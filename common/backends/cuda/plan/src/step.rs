//! What a plan does.

use roundhouse_graph::Quantization;
use serde::{Deserialize, Serialize};

use crate::plan::{BufferId, ConstantId, Plan, WeightId};
use crate::view::{Span, Strided};

/// One fused piece of work on every row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Rows of a table.
    Embed(Embed),
    /// `to = norm(from)`, of each group by itself, and `+ residual` where there is one.
    Norm(Norm),
    /// Products with a matrix and what is done with them before they are stored.
    Linear(Linear),
    /// Rotates heads: `to = rotate(from)`.
    Rotate {
        /// The rotation.
        rotary: Rotary,
        /// Heads side by side.
        from: Span,
        /// As many heads.
        to: Span,
        /// How many.
        heads: usize,
        /// Columns of a head.
        head_dim: usize,
    },
    /// Norms and rotates queries and keys and writes keys and values into the cache.
    Prepare(Prepare),
    /// Attention over the cache.
    Attend(Attend),
    /// The rows whose logits are wanted: `to[i] = from[selected[i]]`.
    Select {
        /// Of all tokens.
        from: Span,
        /// Of those selected.
        to: Span,
        /// Elements of a row.
        width: usize,
    },
    /// A function of every element. Both grids have the same sizes.
    Map {
        /// Which.
        function: Function,
        /// Its argument.
        from: Strided,
        /// Its value.
        to: Strided,
    },
    /// A function of two elements; operands have a stride of 0 where they repeat.
    Binary {
        /// Which.
        op: BinaryOp,
        /// The first argument.
        a: Operand,
        /// The second.
        b: Operand,
        /// Its value.
        to: Strided,
    },
    /// The positions (or tokens) as numbers of `to`'s type.
    Numbers {
        /// Which.
        ids: Ids,
        /// One element a row.
        to: Span,
    },
    /// `to = softmax(from)`, of each group by itself.
    Softmax {
        /// Groups side by side.
        from: Span,
        /// As many.
        to: Span,
        /// How many.
        groups: usize,
        /// Elements of a group.
        width: usize,
    },
    /// A mixture of experts.
    Experts(Experts),
}

/// Integers that a step of the model has for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ids {
    /// The tokens.
    Tokens,
    /// Their positions.
    Positions,
}

/// A [`Step::Embed`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embed {
    /// Which rows.
    pub ids: Ids,
    /// Of what.
    pub table: WeightId,
    /// Factor on them.
    pub scale: f32,
    /// Where they go.
    pub to: Span,
}

/// What a norm does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NormKind {
    /// Whether the mean is taken off first: a layer norm, not an RMS norm.
    pub centered: bool,
    /// Factors.
    pub weight: WeightId,
    /// Added at the end.
    pub bias: Option<WeightId>,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Whether factors are `1 + weight`.
    pub unit_offset: bool,
}

/// A [`Step::Norm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Norm {
    /// What it does.
    pub kind: NormKind,
    /// The first group.
    pub from: Span,
    /// The first group's place.
    pub to: Span,
    /// Added at the end; a group only.
    pub residual: Option<Span>,
    /// Groups side by side in a row.
    pub groups: usize,
    /// Elements of a group.
    pub width: usize,
}

/// What becomes of a product before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Epilogue {
    /// Nothing.
    Store,
    /// `+ residual`; it may be where the result goes.
    Add(Span),
    /// A function.
    Map(Activation),
    /// The matrix has the gate's rows and then as many others: `function(gate) · other`.
    Gate(Activation),
    /// `cap · tanh(x / cap)`.
    SoftCap(f32),
}

/// A [`Step::Linear`]: `to = epilogue(norm(x) · weightᵀ + bias)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Linear {
    /// `columns` elements a row.
    pub x: Span,
    /// What is done with `x` first, and where what comes of it can be kept.
    pub norm: Option<(NormKind, BufferId)>,
    /// The matrix `[rows, columns]`: in the type of `x`, or the bytes of a quantised one.
    pub weight: WeightId,
    /// How those bytes are read.
    pub quantized: Option<QuantizedWeight>,
    /// One element a row of the matrix.
    pub bias: Option<WeightId>,
    /// What is done with the products.
    pub epilogue: Epilogue,
    /// Where products can be kept that the epilogue is then applied to; with a gate.
    pub wide: Option<BufferId>,
    /// Where the results go: in the engine's type, or fp32.
    pub to: Span,
}

/// What a quantised matrix has beside its bytes, which are as
/// [`WeightFormat`](roundhouse_graph::WeightFormat) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantizedWeight {
    /// The format, and how many columns share a scale.
    pub quantization: Quantization,
    /// `[rows, columns / group_size]`.
    pub scales: WeightId,
    /// As many, of the same type.
    pub offsets: Option<WeightId>,
}

/// A rotation of heads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// Angle per position of each pair.
    pub inv_freq: ConstantId,
    /// Leading columns that are rotated.
    pub rotary_dim: usize,
    /// Factor on cosine and sine.
    pub factor: f32,
    /// Whether pairs are neighbours.
    pub interleaved: bool,
}

/// An RMS norm of every head of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HeadNorm {
    /// Factors of a query's columns.
    pub q: WeightId,
    /// Factors of a key's columns.
    pub k: WeightId,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Whether factors are `1 + weight`.
    pub unit_offset: bool,
}

/// A [`Step::Prepare`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepare {
    /// Heads of queries, of keys and of values side by side; queries are changed in place.
    pub qkv: Span,
    /// Query heads.
    pub q_heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Of queries and keys.
    pub norm: Option<HeadNorm>,
    /// Of both, after the norm.
    pub rotary: Option<Rotary>,
    /// Which attention: its keys are tensor `2 · site` of the cache, its values the next.
    pub site: usize,
}

/// A [`Step::Attend`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attend {
    /// Queries.
    pub q: Span,
    /// Where the results go.
    pub to: Span,
    /// Query heads.
    pub q_heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Which attention.
    pub site: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Soft cap of the scores.
    pub soft_cap: Option<f32>,
    /// Positions that a token sees, its own included.
    pub window: Option<usize>,
}

/// A function between an [`Epilogue`]'s product and its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`.
    Gelu,
    /// The same by tanh.
    GeluTanh,
}

/// What [`Step::Map`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Function {
    /// `x`, in another place or type.
    Copy,
    /// `factor · x`.
    Scale(f32),
    /// `1 / (1 + exp(−x))`.
    Sigmoid,
    /// One of those that products have too.
    Activation(Activation),
    /// `cap · tanh(x / cap)`.
    SoftCap(f32),
}

/// What [`Step::Binary`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BinaryOp {
    /// `a + b`.
    Add,
    /// `a · b`.
    Mul,
    /// `silu(a) · b`.
    SiluMul,
}

/// An argument of [`Step::Binary`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    /// Of each row.
    Rows(Strided),
    /// The same for every row.
    Weight {
        /// Which.
        weight: WeightId,
        /// From one element to the next along each axis of the result.
        strides: Vec<usize>,
    },
}

/// A [`Step::Experts`]: weights as in the op.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Experts {
    /// `hidden` elements a row.
    pub x: Span,
    /// `experts` elements a row.
    pub router_logits: Span,
    /// `[experts · 2 · intermediate, hidden]`.
    pub gate_up: WeightId,
    /// `[experts · hidden, intermediate]`.
    pub down: WeightId,
    /// How many there are.
    pub experts: usize,
    /// How many a token has.
    pub top_k: usize,
    /// Whether the weights of those chosen are scaled to sum to one.
    pub normalize: bool,
    /// Columns of `x`.
    pub hidden: usize,
    /// Columns between gate and down.
    pub intermediate: usize,
    /// The chosen experts' numbers, `top_k` a row, as 32-bit integers.
    pub chosen: BufferId,
    /// Their weights, `top_k` a row.
    pub shares: BufferId,
    /// `[top_k, intermediate]` a row.
    pub gated: BufferId,
    /// Where the results go.
    pub to: Span,
}

impl Span {
    /// The whole of a buffer.
    #[must_use]
    pub const fn of(buffer: BufferId) -> Self {
        Self { buffer, offset: 0 }
    }
}

impl Linear {
    /// Columns of the matrix.
    ///
    /// # Panics
    /// If it is of another plan.
    #[must_use]
    pub fn columns(&self, plan: &Plan) -> usize {
        let stored = plan.weight(self.weight).columns;
        self.quantized.map_or(stored, |quantized| stored * 8 / quantized.quantization.format.bits() as usize)
    }
}

impl Step {
    /// Calls `visit` with every buffer that the step reads or writes.
    pub fn for_each_buffer(&self, mut visit: impl FnMut(BufferId)) {
        match self {
            Self::Embed(embed) => visit(embed.to.buffer),
            Self::Numbers { to, .. } => visit(to.buffer),
            Self::Norm(norm) => {
                let residual = norm.residual.iter();
                [norm.from, norm.to].iter().chain(residual).for_each(|span| visit(span.buffer));
            }
            Self::Linear(linear) => {
                [linear.x, linear.to].iter().for_each(|span| visit(span.buffer));
                linear.norm.iter().for_each(|(_, normed)| visit(*normed));
                linear.wide.iter().for_each(|wide| visit(*wide));
                if let Epilogue::Add(residual) = linear.epilogue {
                    visit(residual.buffer);
                }
            }
            Self::Rotate { from, to, .. }
            | Self::Select { from, to, .. }
            | Self::Softmax { from, to, .. } => {
                [from, to].iter().for_each(|span| visit(span.buffer));
            }
            Self::Prepare(prepare) => visit(prepare.qkv.buffer),
            Self::Attend(attend) => [attend.q, attend.to].iter().for_each(|span| visit(span.buffer)),
            Self::Map { from, to, .. } => [from, to].iter().for_each(|view| visit(view.span.buffer)),
            Self::Binary { a, b, to, .. } => {
                for operand in [a, b] {
                    if let Operand::Rows(view) = operand {
                        visit(view.span.buffer);
                    }
                }
                visit(to.span.buffer);
            }
            Self::Experts(experts) => {
                let spans = [experts.x, experts.router_logits, experts.to];
                spans.iter().for_each(|span| visit(span.buffer));
                [experts.chosen, experts.shares, experts.gated].into_iter().for_each(visit);
            }
        }
    }
}
