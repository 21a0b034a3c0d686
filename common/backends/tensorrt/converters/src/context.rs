//! The network under construction, and the layers that converters write again and again.

use std::collections::{HashMap, HashSet};

use roundhouse_graph::{Dim, Graph, Origin, ValueId};
use roundhouse_tensorrt_network::{
    Activation, Constant, DataType, Dims, ElementWise, FillDims, LayerKind, MatrixOp, Network, Reduce,
    Reshape, TensorId, Unary, Values,
};

use crate::ConvertError;
use crate::converters::attention::{AttentionChoice, VisibleKey};
use crate::converters::rotary::TableKey;
use crate::options::Options;
use crate::reshape::{Plan, plan};
use crate::shapes::Shapes;
use crate::site::Site;

/// The network under construction.
pub(crate) struct Context<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) options: &'a Options,
    pub(crate) network: Network,
    pub(crate) attention: Vec<AttentionChoice>,
    pub(crate) shapes: Shapes,
    /// What several nodes read and is made once.
    pub(crate) shared: Shared,
    /// What the names of layers begin with.
    scope: String,
    names: HashSet<String>,
    tensors: HashMap<ValueId, TensorId>,
    /// Weights by rank and dtype.
    weights: HashMap<(ValueId, usize, DataType), TensorId>,
}

/// Tensors that several nodes read.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Which keys which queries see.
    pub(crate) visible: HashMap<VisibleKey, TensorId>,
    /// Cosines and sines of rotary embeddings.
    pub(crate) tables: HashMap<TableKey, [TensorId; 2]>,
    /// Lengths and indices as INT32.
    pub(crate) int32: HashMap<ValueId, TensorId>,
}

type Made = Result<TensorId, ConvertError>;

impl<'a> Context<'a> {
    /// An empty network. The names of the graph's values are taken: no layer but a weight's has one.
    pub(crate) fn new(graph: &'a Graph, options: &'a Options) -> Self {
        Self {
            graph,
            options,
            network: Network::new(graph.name.clone()),
            attention: Vec::new(),
            shapes: Shapes::new(graph),
            shared: Shared::default(),
            scope: String::new(),
            names: graph.values().map(|(_, value)| value.name.clone()).collect(),
            tensors: HashMap::new(),
            weights: HashMap::new(),
        }
    }

    /// Layers are written for this node from here on.
    pub(crate) fn enter(&mut self, name: &str) {
        name.clone_into(&mut self.scope);
    }

    /// Runs `write` with layers named after something else than the node.
    pub(crate) fn named(&mut self, scope: &str, write: impl FnOnce(&mut Self) -> Made) -> Made {
        let outer = std::mem::replace(&mut self.scope, scope.to_owned());
        let made = write(self);
        self.scope = outer;
        made
    }

    /// `tensor` is what the graph calls `id`.
    pub(crate) fn bind(&mut self, id: ValueId, tensor: TensorId) {
        self.tensors.insert(id, tensor);
    }

    /// The tensor of an input or of a node's output.
    pub(crate) fn bound(&self, id: ValueId) -> Option<TensorId> {
        self.tensors.get(&id).copied()
    }

    pub(crate) fn internal(&self, what: String) -> ConvertError {
        ConvertError::Internal { node: self.scope.clone(), what }
    }

    fn is_weight(&self, id: ValueId) -> bool {
        matches!(self.graph.value(id).origin, Origin::Weight { .. })
    }

    // Operands.

    /// A value of the graph.
    pub(crate) fn value(&mut self, id: ValueId) -> Made {
        if self.is_weight(id) {
            return self.value_as(id, self.graph.value(id).shape.len(), None);
        }
        self.bound(id).ok_or_else(|| {
            let name = &self.graph.value(id).name;
            self.internal(format!("{name:?} is read before it is made"))
        })
    }

    /// Operand `index` of a node.
    pub(crate) fn operand(&mut self, site: &Site<'_>, index: usize) -> Made {
        self.value(site.id(index)?)
    }

    /// Operand `index` in fp32.
    pub(crate) fn float(&mut self, site: &Site<'_>, index: usize) -> Made {
        let rank = site.input(index)?.shape.len();
        self.operand_as(site, index, rank, DataType::Float)
    }

    /// Operand `index` of a rank that is at least its own, dimensions of 1 in front, and of a dtype.
    pub(crate) fn operand_as(&mut self, site: &Site<'_>, index: usize, rank: usize, dtype: DataType) -> Made {
        self.value_as(site.id(index)?, rank, Some(dtype))
    }

    /// Operand `index`, lengths or indices, as INT32, which caches and fused attention take. Made once.
    pub(crate) fn int32(&mut self, site: &Site<'_>, index: usize) -> Made {
        let id = site.id(index)?;
        if let Some(&made) = self.shared.int32.get(&id) {
            return Ok(made);
        }
        let wide = self.value(id)?;
        let name = self.graph.value(id).name.clone();
        let made = self.named(&name, |context| context.cast("int32", wide, DataType::Int32))?;
        self.shared.int32.insert(id, made);
        Ok(made)
    }

    /// A value with dimensions of 1 in front, in another dtype or its own. Weights in each form are made once; the rank
    /// that is asked for first is the constant's.
    fn value_as(&mut self, id: ValueId, rank: usize, dtype: Option<DataType>) -> Made {
        let value = self.graph.value(id);
        let own = DataType::from(value.dtype);
        let dtype = dtype.unwrap_or(own);
        if !self.is_weight(id) {
            let tensor = self.value(id)?;
            let tensor = self.expand(tensor, &value.shape, rank)?;
            return self.cast(short(dtype), tensor, dtype);
        }
        if let Some(&tensor) = self.weights.get(&(id, rank, dtype)) {
            return Ok(tensor);
        }
        let tensor = if dtype == own {
            self.weight(id, rank)?
        } else {
            let tensor = self.value_as(id, rank, None)?;
            self.named(&value.name, |context| context.cast(short(dtype), tensor, dtype))?
        };
        self.weights.insert((id, rank, dtype), tensor);
        Ok(tensor)
    }

    /// A weight in its own dtype: a constant, or a reshape of the constant that it is already.
    fn weight(&mut self, id: ValueId, rank: usize) -> Made {
        let value = self.graph.value(id);
        let dtype = DataType::from(value.dtype);
        let sizes: Option<Dims> = value.shape.iter().map(Dim::as_constant).collect();
        let sizes = sizes.ok_or_else(|| self.internal(format!("weight {:?} is not static", value.name)))?;
        let mut dims = vec![1; rank.saturating_sub(sizes.len())];
        dims.extend(&sizes);
        let made = (0..=8).find_map(|rank| self.weights.get(&(id, rank, dtype)).copied());
        if let Some(made) = made {
            return self.named(&value.name, |context| {
                let reshape = Some(Reshape::Static(dims));
                let kind = LayerKind::Shuffle { first_transpose: None, reshape, second_transpose: None };
                context.layer(&format!("rank{rank}"), kind, &[made])
            });
        }
        // Its name is the weight's: that is how a plan without weights is given it.
        let values = Values::Weight { name: value.name.clone() };
        let kind = LayerKind::Constant(Constant { dtype, dims, values });
        let added = self.network.add_layer(value.name.clone(), kind, &[]);
        added.map_err(|source| ConvertError::Network { node: value.name.clone(), source })
    }

    // Layers. Each is named `{node}/{what}`.

    /// Any layer.
    pub(crate) fn layer(&mut self, what: &str, kind: LayerKind, inputs: &[TensorId]) -> Made {
        let name = format!("{}/{what}", self.scope);
        let numbered = (2..).map(|number| format!("{name}_{number}"));
        let name = std::iter::once(name.clone()).chain(numbered).find(|name| !self.names.contains(name));
        let name = name.unwrap_or_default();
        self.names.insert(name.clone());
        self.network
            .add_layer(name, kind, inputs)
            .map_err(|source| ConvertError::Network { node: self.scope.clone(), source })
    }

    /// A number `[1, …]` of a rank.
    pub(crate) fn number(&mut self, what: &str, value: f32, rank: usize, dtype: DataType) -> Made {
        let values = Values::Floats { values: vec![value] };
        self.layer(what, LayerKind::Constant(Constant { dtype, dims: vec![1; rank], values }), &[])
    }

    /// Integers `[count]` INT64.
    pub(crate) fn integers(&mut self, what: &str, values: &[i64]) -> Made {
        let dims = vec![i64::try_from(values.len()).unwrap_or(i64::MAX)];
        let values = Values::Integers { values: values.to_vec() };
        self.layer(what, LayerKind::Constant(Constant { dtype: DataType::Int64, dims, values }), &[])
    }

    /// An integer `[1, …]` of a rank, INT64.
    pub(crate) fn integer(&mut self, what: &str, value: i64, rank: usize) -> Made {
        let (dtype, dims) = (DataType::Int64, vec![1; rank]);
        let values = Values::Integers { values: vec![value] };
        self.layer(what, LayerKind::Constant(Constant { dtype, dims, values }), &[])
    }

    /// `0, 1, …`, as many as a dimension, INT64.
    pub(crate) fn iota(&mut self, what: &str, length: &Dim) -> Made {
        let dtype = DataType::Int64;
        match length.as_constant() {
            Some(length) => {
                self.layer(what, LayerKind::Iota { length: FillDims::Static(length), dtype }, &[])
            }
            None => {
                let dims = self.dim(length)?;
                self.layer(what, LayerKind::Iota { length: FillDims::Input, dtype }, &[dims])
            }
        }
    }

    /// `x` in a dtype: itself if it is of that dtype.
    pub(crate) fn cast(&mut self, what: &str, x: TensorId, to: DataType) -> Made {
        if self.network.tensor(x).dtype == to {
            Ok(x)
        } else {
            self.layer(what, LayerKind::Cast { to }, &[x])
        }
    }

    pub(crate) fn elementwise(
        &mut self,
        what: &str,
        operation: ElementWise,
        a: TensorId,
        b: TensorId,
    ) -> Made {
        self.layer(what, LayerKind::ElementWise { operation }, &[a, b])
    }

    /// `x · value`, in the dtype of `x`.
    pub(crate) fn times(&mut self, what: &str, x: TensorId, value: f32) -> Made {
        let (rank, dtype) = self.form(x);
        let factor = self.number(&format!("{what}_factor"), value, rank, dtype)?;
        self.elementwise(what, ElementWise::Prod, x, factor)
    }

    /// `x + value`, in the dtype of `x`.
    pub(crate) fn plus(&mut self, what: &str, x: TensorId, value: f32) -> Made {
        let (rank, dtype) = self.form(x);
        let summand = self.number(&format!("{what}_summand"), value, rank, dtype)?;
        self.elementwise(what, ElementWise::Sum, x, summand)
    }

    /// The rank and dtype of a tensor.
    pub(crate) fn form(&self, x: TensorId) -> (usize, DataType) {
        let tensor = self.network.tensor(x);
        (tensor.dims.len(), tensor.dtype)
    }

    pub(crate) fn unary(&mut self, what: &str, function: Unary, x: TensorId) -> Made {
        self.layer(what, LayerKind::Unary { function }, &[x])
    }

    pub(crate) fn activation(&mut self, what: &str, function: Activation, x: TensorId) -> Made {
        self.layer(what, LayerKind::Activation { function }, &[x])
    }

    pub(crate) fn reduce(&mut self, what: &str, operation: Reduce, axis: usize, x: TensorId) -> Made {
        self.layer(what, LayerKind::Reduce { operation, axes: vec![axis] }, &[x])
    }

    /// `a · b` over the last two axes, for values of a dtype. The product is fp32 if the engine accumulates in fp32, else
    /// of that dtype: TensorRT accumulates in the dtype of the operands.
    pub(crate) fn product(
        &mut self,
        what: &str,
        dtype: DataType,
        (a, op_a): (TensorId, MatrixOp),
        (b, op_b): (TensorId, MatrixOp),
    ) -> Made {
        let dtype = self.product_dtype(dtype);
        let a = self.cast(&format!("{what}_a"), a, dtype)?;
        let b = self.cast(&format!("{what}_b"), b, dtype)?;
        self.layer(what, LayerKind::MatrixMultiply { op_a, op_b }, &[a, b])
    }

    /// The dtype of products of values of a dtype.
    pub(crate) fn product_dtype(&self, dtype: DataType) -> DataType {
        if self.options.tensorrt.fp32_accumulation { DataType::Float } else { dtype }
    }

    pub(crate) fn transpose(&mut self, what: &str, x: TensorId, permutation: &[usize]) -> Made {
        let first_transpose = Some(permutation.to_vec());
        self.layer(what, LayerKind::Shuffle { first_transpose, reshape: None, second_transpose: None }, &[x])
    }

    /// The part of `x` of shape `sizes` that begins at `starts`.
    pub(crate) fn slice(&mut self, what: &str, x: TensorId, starts: &[Dim], sizes: &[Dim]) -> Made {
        let (start, start_operand) = self.slice_operand(starts)?;
        let (size, size_operand) = self.slice_operand(sizes)?;
        let inputs: Vec<TensorId> = std::iter::once(x).chain(start_operand).chain(size_operand).collect();
        self.layer(what, LayerKind::Slice { start, size }, &inputs)
    }

    /// `x` of shape `from` as shape `to`.
    pub(crate) fn reshape(&mut self, what: &str, x: TensorId, from: &[Dim], to: &[Dim]) -> Made {
        let (reshape, shape) = match plan(from, to, self.graph.symbols()) {
            Ok(Plan::Static(dims)) => (Reshape::Static(dims), None),
            Ok(Plan::ShapeTensor) => {
                let (reshape, shape) = self.reshape_operand(to)?;
                (reshape, Some(shape))
            }
            Err(what) => return Err(self.internal(what)),
        };
        let inputs: Vec<TensorId> = std::iter::once(x).chain(shape).collect();
        let kind =
            LayerKind::Shuffle { first_transpose: None, reshape: Some(reshape), second_transpose: None };
        self.layer(what, kind, &inputs)
    }

    /// `x` of shape `shape` with dimensions of 1 in front, up to a rank.
    fn expand(&mut self, x: TensorId, shape: &[Dim], rank: usize) -> Made {
        if rank <= shape.len() {
            return Ok(x);
        }
        self.reshape("expand", x, shape, &expanded(shape, rank))
    }

    /// `x` in the dtype of the node's output.
    pub(crate) fn store(&mut self, site: &Site<'_>, x: TensorId) -> Made {
        self.cast("store", x, DataType::from(site.output().dtype))
    }
}

/// A shape with dimensions of 1 in front, up to a rank.
pub(crate) fn expanded(shape: &[Dim], rank: usize) -> Vec<Dim> {
    let mut expanded = vec![Dim::constant(1); rank.saturating_sub(shape.len())];
    expanded.extend_from_slice(shape);
    expanded
}

/// How names of casts call a dtype.
fn short(dtype: DataType) -> &'static str {
    match dtype {
        DataType::Float => "fp32",
        DataType::Half => "fp16",
        DataType::Bf16 => "bf16",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::Bool => "bool",
    }
}
