//! From a graph to the steps of a plan.

mod attention;
mod elementwise;
mod fusion;
mod layout;
mod linear;
mod product;

use std::collections::{HashMap, HashSet};

use roundhouse_backend::BackendError;
use roundhouse_engine::EngineOptions;
use roundhouse_graph::{DType, Dim, Graph, Node, NodeId, Op, Origin, SymbolId, ValueId};

use crate::cache::{CacheLayout, CacheTensor};
use crate::limits::StepLimits;
use crate::plan::{Buffer, BufferId, ConstantId, DeviceWeight, Plan, Rows, WeightId};
use crate::slots::assign_slots;
use crate::step::{Attend, Function, Ids, Step};
use crate::unsupported;
use crate::view::{Span, View};
use fusion::{Fused, Fusions};

/// What kernels load at once.
const VECTOR_BYTES: usize = 16;

/// Where a value is.
#[derive(Debug, Clone)]
enum Place {
    View(View),
    Ids(Ids),
}

/// The work in progress.
struct Compiler<'a> {
    graph: &'a Graph,
    fusions: Fusions,
    batch: Option<SymbolId>,
    seq: SymbolId,
    places: HashMap<ValueId, Place>,
    buffers: Vec<Buffer>,
    weights: Vec<DeviceWeight>,
    weight_ids: HashMap<Vec<String>, WeightId>,
    constants: Vec<Vec<f32>>,
    /// Heads and columns of each attention's keys and values, and its window.
    sites: Vec<([CacheTensor; 2], Option<usize>)>,
    steps: Vec<Step>,
}

/// Compiles a graph.
pub(crate) fn compile(graph: &Graph, options: &EngineOptions) -> Result<Plan, BackendError> {
    let (ids, positions) = (graph.find("input_ids"), graph.find("position_ids"));
    let (batch, seq) = match ids.map(|id| &graph.value(id).shape[..]) {
        Some([batch, seq]) => (batch.as_symbol(), seq.as_symbol()),
        _ => (None, None),
    };
    let seq = seq.ok_or_else(|| unsupported("a graph without an input input_ids [batch, seq]"))?;
    let inputs = [(ids, Ids::Tokens), (positions, Ids::Positions)];
    let places = inputs.into_iter().filter_map(|(id, ids)| Some((id?, Place::Ids(ids)))).collect();
    let mut compiler = Compiler {
        graph,
        fusions: Fusions::new(graph),
        batch,
        seq,
        places,
        buffers: Vec::new(),
        weights: Vec::new(),
        weight_ids: HashMap::new(),
        constants: Vec::new(),
        sites: Vec::new(),
        steps: Vec::new(),
    };
    for (id, node) in graph.nodes() {
        compiler.node(id, node).map_err(|error| match error {
            BackendError::Unsupported { what, .. } => {
                unsupported(format!("node {:?}: {what}", graph.value(node.output).name))
            }
            error => error,
        })?;
    }
    compiler.finish(options)
}

impl Compiler<'_> {
    fn node(&mut self, id: NodeId, node: &Node) -> Result<(), BackendError> {
        if let Some(fused) = self.fusions.at.get(&id).cloned() {
            return self.fused(&fused);
        }
        if self.fusions.absorbed.contains(&id) {
            return Ok(());
        }
        let view = match &node.op {
            Op::Embedding => self.embedding(node, node.inputs[0], node.inputs[1], 1.0)?,
            Op::Gather { axis: 0 } => self.embedding(node, node.inputs[1], node.inputs[0], 1.0)?,
            Op::Add | Op::Mul | Op::SiluMul => self.binary(node)?,
            Op::Scale { .. } | Op::Silu | Op::Sigmoid | Op::Gelu { .. } | Op::SoftCap { .. } => {
                self.map(node)?
            }
            Op::RmsNorm { .. } | Op::LayerNorm { .. } => self.norm(node, None, node.output)?,
            Op::RotaryEmbedding(attributes) => self.rotate(node, attributes)?,
            Op::LastToken => self.select(node)?,
            Op::Cat { axis } => self.cat(node, *axis)?,
            Op::Slice { axis, start, end } => self.slice(node, *axis, start, end)?,
            Op::Reshape { .. } => self.reshape(node)?,
            Op::Transpose { permutation } => self.transpose(node, permutation)?,
            Op::Softmax { axis } => self.softmax(node, *axis)?,
            Op::Cast { to } => self.cast(node, *to)?,
            Op::MixtureOfExperts(attributes) => self.experts(node, *attributes)?,
            Op::Linear | Op::QuantizedLinear(_) | Op::ScaledDotProductAttention(_) | Op::KvCacheUpdate => {
                return Err(unsupported(format!("this form of {}", node.op.name())));
            }
            Op::MatMul { .. } | Op::Gather { .. } | Op::ReplaceRows => {
                return Err(unsupported(node.op.name()));
            }
        };
        self.places.insert(node.output, Place::View(view));
        Ok(())
    }

    fn fused(&mut self, fused: &Fused) -> Result<(), BackendError> {
        match fused {
            Fused::Linears { nodes, norm } => self.linears(nodes, *norm),
            Fused::Linear { node, norm, epilogue, output } => self.linear(*node, *norm, epilogue, *output),
            Fused::Gated { gate, up, norm, activation, output } => {
                self.gated([*gate, *up], *norm, *activation, *output)
            }
            Fused::Embed { node, factor, output } => {
                let node = self.graph.node(*node);
                let view = self.embedding(node, node.inputs[0], node.inputs[1], *factor)?;
                self.places.insert(*output, Place::View(view));
                Ok(())
            }
            Fused::NormAdd { norm, residual, output } => {
                let view = self.norm(self.graph.node(*norm), Some(*residual), *output)?;
                self.places.insert(*output, Place::View(view));
                Ok(())
            }
            Fused::Attention(site) => self.attention(site),
        }
    }

    fn finish(mut self, options: &EngineOptions) -> Result<Plan, BackendError> {
        let Some(&output) = self.graph.outputs().first() else {
            return Err(unsupported("a graph without outputs"));
        };
        let mut logits = self.view(output)?;
        let vocab_size = logits.elements();
        let whole = logits.is_contiguous() && logits.span.offset == 0;
        if !whole || self.dtype_of(logits.span) != DType::F32 {
            logits = self.copied(&logits, DType::F32);
        }
        let tables = self.steps.iter().filter_map(|step| match step {
            Step::Embed(embed) if embed.ids == Ids::Tokens => Some(self.weights[embed.table.0].rows),
            _ => None,
        });
        let input_vocab_size = tables.min().unwrap_or(vocab_size);
        let dtype = options.precision.dtype();
        let limits = StepLimits::new(self.graph, options);
        let mut plan = Plan {
            dtype,
            cache_kind: options.cache,
            vocab_size,
            input_vocab_size,
            buffers: self.buffers,
            slots: 0,
            weights: self.weights,
            constants: self.constants,
            cache: cache_layout(dtype, &self.sites, limits),
            steps: self.steps,
            logits: logits.span.buffer,
            limits,
        };
        assign_slots(&mut plan, logits.span.buffer);
        Ok(plan)
    }

    /// A value of rows.
    fn view(&self, id: ValueId) -> Result<View, BackendError> {
        match self.places.get(&id) {
            Some(Place::View(view)) => Ok(view.clone()),
            _ => Err(unsupported(format!("{:?} as an activation", self.graph.value(id).name))),
        }
    }

    /// A value of rows whose elements lie side by side in order, from the start of a vector on.
    fn contiguous(&mut self, id: ValueId) -> Result<View, BackendError> {
        let view = self.view(id)?;
        let dtype = self.dtype_of(view.span);
        let aligned = (view.span.offset * dtype.size()).is_multiple_of(VECTOR_BYTES);
        Ok(if aligned && view.is_contiguous() { view } else { self.copied(&view, dtype) })
    }

    /// A copy without gaps.
    fn copied(&mut self, view: &View, dtype: DType) -> View {
        let sizes: Vec<usize> = view.axes.iter().map(|axis| axis.size).collect();
        let buffer = self.buffer(self.rows_of(view.span), sizes.iter().product(), dtype);
        let copy = View::of(buffer, view.tokens, &sizes);
        let (from, to) = aligned(view, &copy);
        self.steps.push(Step::Map { function: Function::Copy, from, to });
        copy
    }

    fn buffer(&mut self, rows: Rows, width: usize, dtype: DType) -> BufferId {
        // Rows begin where whole vectors do.
        let stride = width.next_multiple_of(VECTOR_BYTES / dtype.size());
        self.buffers.push(Buffer { rows, stride, dtype, slot: 0 });
        BufferId(self.buffers.len() - 1)
    }

    fn rows_of(&self, span: Span) -> Rows {
        self.buffers[span.buffer.0].rows
    }

    fn dtype_of(&self, span: Span) -> DType {
        self.buffers[span.buffer.0].dtype
    }

    /// A new buffer for a value that has rows like those of `like`, its tokens along the same axis.
    fn output(&mut self, id: ValueId, like: &View) -> Result<View, BackendError> {
        let sizes = self.sizes(id)?;
        let dtype = self.float(id)?;
        let buffer = self.buffer(self.rows_of(like.span), sizes.iter().product(), dtype);
        if like.tokens >= sizes.len() {
            return Err(unsupported("tokens along a missing axis"));
        }
        Ok(View::of(buffer, like.tokens, &sizes))
    }

    fn float(&self, id: ValueId) -> Result<DType, BackendError> {
        let dtype = self.graph.value(id).dtype;
        if dtype.is_float() { Ok(dtype) } else { Err(unsupported(format!("a result of dtype {dtype}"))) }
    }

    /// The sizes of a value's axes, with 1 for the batch and the tokens.
    fn sizes(&self, id: ValueId) -> Result<Vec<usize>, BackendError> {
        self.graph.value(id).shape.iter().map(|dim| self.size(dim)).collect()
    }

    fn size(&self, dim: &Dim) -> Result<usize, BackendError> {
        match (dim.as_constant(), dim.as_symbol()) {
            (Some(size), _) => usize::try_from(size).map_err(|_| unsupported("a negative size")),
            (None, Some(symbol)) if symbol == self.seq || Some(symbol) == self.batch => Ok(1),
            _ => Err(unsupported("a dimension that depends on the length of the sequence")),
        }
    }

    /// Which axis of a value is that of the tokens; `None` where it has none.
    fn token_axis(&self, id: ValueId) -> Option<usize> {
        self.graph.value(id).shape.iter().position(|dim| dim.as_symbol() == Some(self.seq))
    }

    /// A weight by itself.
    fn weight(&mut self, id: ValueId) -> Result<WeightId, BackendError> {
        self.joined_weight(&[id])
    }

    /// Weights one after the other.
    fn joined_weight(&mut self, ids: &[ValueId]) -> Result<WeightId, BackendError> {
        let dtype = self.float(ids[0])?;
        self.joined_rows(ids, dtype)
    }

    /// Rows of weights of one type one after the other.
    fn joined_rows(&mut self, ids: &[ValueId], dtype: DType) -> Result<WeightId, BackendError> {
        let parts: Vec<String> = ids.iter().map(|&id| self.graph.value(id).name.clone()).collect();
        if let Some(&id) = self.weight_ids.get(&parts) {
            return Ok(id);
        }
        let (mut rows, mut columns) = (0, 0);
        for &id in ids {
            let value = self.graph.value(id);
            if !matches!(value.origin, Origin::Weight { .. }) || value.dtype != dtype {
                return Err(unsupported(format!("{:?} as a weight of dtype {dtype}", value.name)));
            }
            let sizes = self.sizes(id)?;
            let (last, outer) =
                sizes.split_last().ok_or_else(|| unsupported("a weight without dimensions"))?;
            if outer.is_empty() {
                (rows, columns) = (1, columns + last);
            } else {
                (rows, columns) = (rows + outer.iter().product::<usize>(), *last);
            }
        }
        self.weights.push(DeviceWeight { parts: parts.clone(), rows, columns, dtype });
        let id = WeightId(self.weights.len() - 1);
        self.weight_ids.insert(parts, id);
        Ok(id)
    }

    fn constant(&mut self, values: &[f32]) -> ConstantId {
        if let Some(place) = self.constants.iter().position(|constant| constant == values) {
            return ConstantId(place);
        }
        self.constants.push(values.to_vec());
        ConstantId(self.constants.len() - 1)
    }
}

/// Two views of the same sizes with the same axes.
fn aligned(from: &View, to: &View) -> (crate::view::Strided, crate::view::Strided) {
    let (a, b) = (from.strided(), to.strided());
    if a.sizes == b.sizes {
        return (a, b);
    }
    (unjoined(from), unjoined(to))
}

/// Every axis of more than one element by itself.
fn unjoined(view: &View) -> crate::view::Strided {
    let axes = view.axes.iter().filter(|axis| axis.size != 1);
    crate::view::Strided {
        span: view.span,
        sizes: axes.clone().map(|axis| axis.size).collect(),
        strides: axes.map(|axis| axis.stride).collect(),
    }
}

/// The memory of a sequence. A tensor is a ring where its attention has a window that spares memory; all rings are as
/// long as the widest window needs.
fn cache_layout(
    dtype: DType,
    sites: &[([CacheTensor; 2], Option<usize>)],
    limits: StepLimits,
) -> CacheLayout {
    // All of a step's tokens are written before the first one attends, which sees `window - 1` positions before its own.
    let rows = |window: usize| window.saturating_add(limits.chunk).saturating_sub(1).max(1);
    let rings: HashSet<usize> = sites
        .iter()
        .filter_map(|(_, window)| window.filter(|&window| rows(window) < limits.sequence))
        .collect();
    let window = rings.iter().copied().max().unwrap_or(0);
    let tensors = sites.iter().flat_map(|(tensors, window)| {
        let ring = window.is_some_and(|window| rings.contains(&window));
        tensors.map(|tensor| CacheTensor { ring, ..tensor })
    });
    let ring_rows = if window == 0 { 0 } else { rows(window) };
    CacheLayout { dtype, tensors: tensors.collect(), window, ring_rows }
}

/// What attention of a site reads.
fn attend(step: &Attend) -> [CacheTensor; 2] {
    [CacheTensor { heads: step.kv_heads, head_dim: step.head_dim, ring: false }; 2]
}
