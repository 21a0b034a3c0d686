//! From a graph to the steps of a plan.

mod attention;
mod elementwise;
mod experts;
mod layout;
mod linear;

use std::collections::HashMap;

use roundhouse_backend::BackendError;
use roundhouse_engine::CacheKind;
use roundhouse_graph::{DType, Graph, Node, Op, Origin, Shape, SymbolId, Value, ValueId, infer};

use super::group::{Group, Groups};
use super::ring::assign_rings;
use super::signature::{Role, Signature};
use super::size::{SizeId, SizeTable, Sizes};
use super::slots::assign_slots;
use super::step::{RotaryTable, Step, WeightId};
use super::view::{BufferId, MAX_RANK, Root, View};
use super::{Largest, Plan, PlannedStep};
use crate::error::unsupported;

/// Where a value is.
#[derive(Debug, Clone)]
enum Place {
    /// fp32 or integers.
    View(View),
    /// A weight, mapped.
    Weight(WeightId),
    /// A cache tensor that attention reads where it is.
    Cache(usize),
    /// Numbers that each sequence has for itself; not a value that ops can read.
    PerSequence,
}

/// The work in progress.
struct Compiler<'a> {
    graph: &'a Graph,
    groups: Groups,
    /// The value's dtype and shape by ID, with selected rows where the graph has one row a sequence.
    types: Vec<(DType, Shape)>,
    sizes: SizeTable,
    rows: SymbolId,
    packed: bool,
    places: HashMap<ValueId, Place>,
    /// The values that are views of a buffer or cache tensor.
    sharers: HashMap<Root, Vec<ValueId>>,
    /// The outputs of a static cache that are not stored yet, with their tensors.
    cache_outputs: Vec<(usize, ValueId)>,
    buffers: Vec<SizeId>,
    integers: Vec<SizeId>,
    integer_inputs: Vec<Role>,
    weights: Vec<ValueId>,
    constants: Vec<ValueId>,
    tables: Vec<RotaryTable>,
    steps: Vec<PlannedStep>,
    /// The group that is being compiled.
    at: usize,
}

/// Compiles a graph whose signature is known.
pub(super) fn compile(graph: &Graph, signature: Signature, largest: Largest) -> Result<Plan, BackendError> {
    let rows = SymbolId(u32::try_from(graph.symbols().len()).unwrap_or(u32::MAX));
    let types = types_with_selected_rows(graph, rows)?;
    let known = signature.batch.map(|batch| (batch, 1)).into_iter().collect();
    let mut compiler = Compiler {
        graph,
        groups: Groups::new(graph),
        types,
        sizes: SizeTable::new(known),
        rows,
        packed: signature.mode == CacheKind::InPlace,
        places: HashMap::new(),
        sharers: HashMap::new(),
        cache_outputs: Vec::new(),
        buffers: Vec::new(),
        integers: Vec::new(),
        integer_inputs: Vec::new(),
        weights: Vec::new(),
        constants: Vec::new(),
        tables: Vec::new(),
        steps: Vec::new(),
        at: 0,
    };
    compiler.inputs(&signature);
    if !compiler.packed {
        compiler.cache_outputs = signature.cache_outputs.iter().copied().enumerate().collect();
    }
    for place in 0..compiler.groups.groups.len() {
        compiler.at = place;
        let group = compiler.groups.groups[place].clone();
        compiler.group(&group).map_err(|error| match (error, group.node()) {
            (BackendError::Unsupported { what, .. }, Some(id)) => {
                unsupported(format!("node {:?}: {what}", graph.value(graph.node(id).output).name))
            }
            (error, _) => error,
        })?;
        compiler.store_cache_outputs()?;
    }
    compiler.at = compiler.groups.groups.len();
    compiler.finish(signature, largest)
}

impl Compiler<'_> {
    fn inputs(&mut self, signature: &Signature) {
        for &(id, role) in &signature.inputs {
            let place = match role {
                Role::CacheTensor(tensor) if self.packed => Place::Cache(tensor),
                Role::CacheTensor(tensor) => Place::View(self.view_of(Root::CacheTensor(tensor), id)),
                Role::WriteIndices | Role::KvLengths | Role::QueryLengths if self.packed => {
                    Place::PerSequence
                }
                Role::ImageFeatures | Role::ImageIndices => Place::PerSequence,
                Role::Tensor(tensor) if self.dtype(id).is_float() => {
                    let to = self.new_view_for(id);
                    self.push_to(Step::Load { tensor, to: to.clone() }, &to);
                    Place::View(to)
                }
                _ => {
                    self.integer_inputs.push(role);
                    Place::View(self.new_integers(id))
                }
            };
            self.place(id, place);
        }
    }

    /// Stores the new cache tensors that are computed, as soon as nothing reads the old ones.
    fn store_cache_outputs(&mut self) -> Result<(), BackendError> {
        for (tensor, id) in std::mem::take(&mut self.cache_outputs) {
            let root = Root::CacheTensor(tensor);
            let readers = self.sharers.get(&root).into_iter().flatten();
            let old_is_dead = readers.copied().all(|id| self.groups.is_dead_after(id, self.at));
            if !old_is_dead || !self.places.contains_key(&self.groups.resolve(id)) {
                self.cache_outputs.push((tensor, id));
                continue;
            }
            let from = self.view(id)?;
            let from = self.contiguous(&from);
            let elements = from.elements(&mut self.sizes);
            self.push(Step::StoreCache { tensor, from }, elements);
        }
        Ok(())
    }

    fn group(&mut self, group: &Group) -> Result<(), BackendError> {
        let graph = self.graph;
        match group {
            Group::One(id) => {
                let node = graph.node(*id);
                if self.types[node.output.0 as usize].1.len() > MAX_RANK {
                    return Err(unsupported(format!("more than {MAX_RANK} dimensions")));
                }
                let place = self.node(node)?;
                self.place(node.output, place);
                Ok(())
            }
            Group::Linears(ids) => {
                let nodes: Vec<&Node> = ids.iter().map(|&id| graph.node(id)).collect();
                self.linears(&nodes)
            }
            Group::LinearSiluMul { gate, up, mul } => {
                self.linear_silu_mul(graph.node(*gate), graph.node(*up), graph.node(*mul))
            }
            Group::LinearAdd { linear, residual, add } => {
                self.linear_add(graph.node(*linear), *residual, graph.node(*add))
            }
        }
    }

    fn node(&mut self, node: &Node) -> Result<Place, BackendError> {
        match &node.op {
            Op::Embedding => self.embedding(node),
            Op::ReplaceRows => self.replace_rows(node),
            Op::Linear | Op::QuantizedLinear(_) => Err(unsupported("a linear outside of a group")),
            Op::MatMul { transpose_b } => self.matmul(node, *transpose_b),
            Op::Add | Op::Mul | Op::SiluMul => self.binary(node),
            Op::Scale { .. } | Op::Silu | Op::Sigmoid | Op::Gelu { .. } | Op::SoftCap { .. } => {
                self.map(node)
            }
            Op::RmsNorm { .. } | Op::LayerNorm { .. } => self.norm(node),
            Op::Softmax { axis } => self.softmax(node, *axis),
            Op::RotaryEmbedding(attributes) => self.rotary(node, attributes),
            Op::ScaledDotProductAttention(attributes) => self.attention(node, attributes),
            Op::KvCacheUpdate => self.kv_cache_update(node),
            Op::LastToken => self.select_rows(node),
            Op::Cat { axis } => self.cat(node, *axis),
            Op::Slice { axis, start, end } => self.slice(node, *axis, start, end),
            Op::Reshape { .. } => self.reshape(node),
            Op::Transpose { permutation } => self.transpose(node, permutation),
            Op::Gather { axis } => self.gather(node, *axis),
            Op::Cast { to } => self.cast(node, *to),
            Op::MixtureOfExperts(attributes) => self.experts(node, *attributes),
        }
    }

    fn finish(mut self, mut signature: Signature, largest: Largest) -> Result<Plan, BackendError> {
        let output = self.view(signature.logits)?;
        let output = self.contiguous(&output);
        if let Some((_, id)) = self.cache_outputs.first() {
            let name = &self.graph.value(*id).name;
            return Err(unsupported(format!("the output {name:?}, which leaves an old cache in use")));
        }
        let kept: Vec<usize> = match output.root {
            Root::Buffer(id) => vec![id.0],
            _ => return Err(unsupported("an output that is not computed")),
        };
        if let Largest::Step(limits) = largest {
            assign_rings(&mut signature, &self.steps, limits);
        }
        let mut plan = Plan {
            signature,
            steps: self.steps,
            sizes: self.sizes,
            buffers: Vec::new(),
            slots: 0,
            integers: self.integers,
            integer_inputs: self.integer_inputs,
            weights: self.weights,
            constants: self.constants,
            tables: self.tables,
            output,
            rows: self.rows,
            selects_rows: self.graph.nodes().any(|(_, node)| matches!(node.op, Op::LastToken)),
            largest: Sizes::default(),
        };
        let mut sizes = Sizes::default();
        let evaluated = match largest {
            Largest::Step(limits) => {
                let past = limits.sequence.saturating_sub(limits.tokens);
                plan.sizes.evaluate(plan.bind(limits.tokens, limits.rows, past), &mut sizes)
            }
            Largest::Ranges => {
                let symbols = self.graph.symbols();
                plan.sizes.evaluate(|id| Some(symbols.get(id.0 as usize)?.max), &mut sizes)
            }
        };
        evaluated.map_err(|what| unsupported(format!("the graph at its largest step: {what}")))?;
        (plan.buffers, plan.slots) = assign_slots(&self.buffers, &plan.steps, &kept, &sizes);
        plan.largest = sizes;
        Ok(plan)
    }

    // Values.

    /// Puts a value somewhere.
    fn place(&mut self, id: ValueId, place: Place) {
        if let Place::View(view) = &place {
            self.sharers.entry(view.root).or_default().push(id);
        }
        self.places.insert(id, place);
    }

    /// Where a value is.
    fn find(&mut self, id: ValueId) -> Result<Place, BackendError> {
        let id = self.groups.resolve(id);
        if let Some(place) = self.places.get(&id) {
            return Ok(place.clone());
        }
        let value = self.graph.value(id);
        if !matches!(value.origin, Origin::Weight { .. }) {
            return Err(unsupported(format!("{:?}, which nothing computes", value.name)));
        }
        let place = Place::Weight(WeightId(self.weights.len()));
        self.weights.push(id);
        self.places.insert(id, place.clone());
        Ok(place)
    }

    /// A value as something that ops can read.
    fn view(&mut self, id: ValueId) -> Result<View, BackendError> {
        let id = self.groups.resolve(id);
        if matches!(self.graph.value(id).origin, Origin::Weight { .. }) {
            let constant = self.constant(id);
            return Ok(self.view_of(Root::Constant(constant), id));
        }
        match self.find(id)? {
            Place::View(view) => Ok(view),
            Place::Weight(_) | Place::Cache(_) | Place::PerSequence => {
                Err(unsupported(format!("{:?} as an operand", self.graph.value(id).name)))
            }
        }
    }

    /// A weight that is read where it is mapped.
    fn weight(&mut self, id: ValueId) -> Result<WeightId, BackendError> {
        match self.find(id)? {
            Place::Weight(weight) => Ok(weight),
            _ => Err(unsupported(format!("{:?}, which is no weight, as one", self.graph.value(id).name))),
        }
    }

    /// The number of a weight that is read as fp32.
    fn constant(&mut self, id: ValueId) -> usize {
        let id = self.groups.resolve(id);
        self.constants.iter().position(|&known| known == id).unwrap_or_else(|| {
            self.constants.push(id);
            self.constants.len() - 1
        })
    }

    fn dtype(&self, id: ValueId) -> DType {
        self.types[id.0 as usize].0
    }

    /// The dims of a value.
    fn dims(&mut self, id: ValueId) -> Vec<SizeId> {
        let shape = &self.types[id.0 as usize].1;
        shape.iter().map(|dim| self.sizes.dim(dim)).collect()
    }

    /// A constant dim.
    fn fixed(&self, size: SizeId, what: &str) -> Result<usize, BackendError> {
        self.sizes.as_constant(size).ok_or_else(|| unsupported(format!("{what} that is not fixed")))
    }

    // Memory.

    /// All of `root` in the shape of a value.
    fn view_of(&mut self, root: Root, id: ValueId) -> View {
        let dims = self.dims(id);
        View::contiguous(root, dims, &mut self.sizes)
    }

    fn new_buffer(&mut self, elements: SizeId) -> BufferId {
        self.buffers.push(elements);
        BufferId(self.buffers.len() - 1)
    }

    /// A new buffer, row-major.
    fn new_view(&mut self, dims: Vec<SizeId>) -> View {
        let elements = self.sizes.product(&dims);
        let root = Root::Buffer(self.new_buffer(elements));
        View::contiguous(root, dims, &mut self.sizes)
    }

    /// A new buffer for a value, row-major.
    fn new_view_for(&mut self, id: ValueId) -> View {
        let dims = self.dims(id);
        self.new_view(dims)
    }

    /// A new buffer that lies like a dense view.
    fn new_view_like(&mut self, view: &View) -> View {
        let elements = view.elements(&mut self.sizes);
        let root = Root::Buffer(self.new_buffer(elements));
        view.like(root, &mut self.sizes)
    }

    /// A new integer buffer for a value.
    fn new_integers(&mut self, id: ValueId) -> View {
        let dims = self.dims(id);
        let elements = self.sizes.product(&dims);
        self.integers.push(elements);
        View::contiguous(Root::Integers(self.integers.len() - 1), dims, &mut self.sizes)
    }

    fn push(&mut self, step: Step, elements: SizeId) {
        let on_selected_rows = self.sizes.depends_on(elements, self.rows);
        self.steps.push(PlannedStep { step, on_selected_rows });
    }

    /// Adds a step that writes `to`.
    fn push_to(&mut self, step: Step, to: &View) {
        let elements = to.elements(&mut self.sizes);
        self.push(step, elements);
    }

    /// The view itself if it is row-major fp32 or integers, else a copy that is.
    fn contiguous(&mut self, view: &View) -> View {
        if view.is_contiguous(&mut self.sizes) && !matches!(view.root, Root::CacheTensor(_)) {
            return view.clone();
        }
        self.copy(view)
    }

    /// A row-major copy.
    fn copy(&mut self, view: &View) -> View {
        if matches!(view.root, Root::Integers(_)) {
            let elements = view.elements(&mut self.sizes);
            self.integers.push(elements);
            let root = Root::Integers(self.integers.len() - 1);
            let to = View::contiguous(root, view.dims.clone(), &mut self.sizes);
            self.push_to(Step::CopyIntegers { from: view.clone(), to: to.clone() }, &to);
            return to;
        }
        let to = self.new_view(view.dims.clone());
        self.push_to(Step::Copy { from: view.clone(), to: to.clone() }, &to);
        to
    }

    /// The view itself if it lies in fp32 without gaps in whatever order of rows, else a row-major copy.
    fn dense(&mut self, view: &View) -> View {
        let readable = matches!(view.root, Root::Buffer(_) | Root::Constant(_));
        if readable && view.is_dense(&mut self.sizes) { view.clone() } else { self.copy(view) }
    }

    /// The view itself if its last axis is contiguous fp32, else a row-major copy.
    fn with_contiguous_rows(&mut self, view: &View) -> View {
        let readable = matches!(view.root, Root::Buffer(_) | Root::Constant(_));
        if readable && view.has_contiguous_rows(&self.sizes) { view.clone() } else { self.copy(view) }
    }

    /// Whether this group may overwrite the buffer of a view: no later group reads any value in it.
    fn may_overwrite(&self, view: &View) -> bool {
        let sharers = self.sharers.get(&view.root);
        let dead = sharers
            .is_none_or(|values| values.iter().all(|&value| self.groups.is_dead_after(value, self.at)));
        dead && matches!(view.root, Root::Buffer(_))
    }
}

/// The types of all values where `LastToken` gives `rows` rows instead of one a sequence.
fn types_with_selected_rows(graph: &Graph, rows: SymbolId) -> Result<Vec<(DType, Shape)>, BackendError> {
    let mut values: Vec<Value> = graph
        .values()
        .map(|(_, value)| {
            let (name, dtype, shape) = (value.name.clone(), value.dtype, value.shape.clone());
            Value { name, dtype, shape, origin: Origin::Node }
        })
        .collect();
    let mut changed = vec![false; values.len()];
    for (_, node) in graph.nodes() {
        let output = node.output.0 as usize;
        if matches!(node.op, Op::LastToken) {
            if let Some(dim) = values[output].shape.get_mut(1) {
                *dim = roundhouse_graph::Dim::symbol(rows);
            }
            changed[output] = true;
        } else if node.inputs.iter().any(|id| changed[id.0 as usize]) {
            let inputs: Vec<&Value> = node.inputs.iter().map(|id| &values[id.0 as usize]).collect();
            let (_, shape) = infer(&node.op, &inputs).map_err(|error| {
                unsupported(format!("node {:?} on several selected rows: {error}", values[output].name))
            })?;
            values[output].shape = shape;
            changed[output] = true;
        }
    }
    Ok(values.into_iter().map(|value| (value.dtype, value.shape)).collect())
}
