//! Values, nodes and the graph itself.

use serde::{Deserialize, Serialize};

use crate::{DType, Dim, GraphError, Op, Shape, Symbol, SymbolId, WeightExpr, infer};

/// Which value of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValueId(pub u32);

/// Which node of a graph: its place in execution order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u32);

/// What a node makes and takes: a tensor of a dtype and shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// Unique in the graph: the name of the input, weight or output where it is one, else made from the op.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Shape,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Origin {
    /// A graph input.
    Input {
        /// For a scalar input whose number is a dimension (`start_idx`): the expression it equals.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        equals: Option<Dim>,
    },
    /// A weight and how to make it.
    Weight {
        /// The recipe.
        expr: WeightExpr,
    },
    /// An output of a node.
    Node,
}

/// An op applied to values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// What it computes.
    #[serde(flatten)]
    pub op: Op,
    /// Its inputs, in the op's order.
    pub inputs: Vec<ValueId>,
    /// Its output.
    pub output: ValueId,
}

/// A model's computation. Nodes are in an order in which they can run. Every symbol is bound when the graph runs:
/// by the dimension of an input that is that symbol alone, or by a scalar input that equals it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// For messages and dumps, e.g. the model ID.
    pub name: String,
    pub(crate) symbols: Vec<Symbol>,
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            symbols: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// A new symbol.
    pub fn add_symbol(&mut self, name: impl Into<String>, min: i64, max: i64) -> SymbolId {
        let id = SymbolId(u32::try_from(self.symbols.len()).unwrap_or(u32::MAX));
        self.symbols.push(Symbol { name: name.into(), min, max });
        id
    }

    /// A new input, last in order.
    pub fn add_input(&mut self, name: impl Into<String>, dtype: DType, shape: Shape) -> ValueId {
        let id = self.add_value(name.into(), dtype, shape, Origin::Input { equals: None });
        self.inputs.push(id);
        id
    }

    /// A new scalar `i64` input whose number is the dimension `equals`, last in order.
    pub fn add_index_input(&mut self, name: impl Into<String>, equals: Dim) -> ValueId {
        let id = self.add_value(name.into(), DType::I64, Vec::new(), Origin::Input { equals: Some(equals) });
        self.inputs.push(id);
        id
    }

    /// A new weight, or the one of this name if there is one.
    pub fn add_weight(&mut self, name: &str, dtype: DType, shape: &[i64], expr: WeightExpr) -> ValueId {
        if let Some(id) = self.find(name) {
            return id;
        }
        let shape = shape.iter().map(|&dim| Dim::constant(dim)).collect();
        self.add_value(name.to_owned(), dtype, shape, Origin::Weight { expr })
    }

    /// A new node, last in order; its output's dtype and shape are inferred.
    ///
    /// # Errors
    /// When the inputs do not fit the op.
    pub fn add_node(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        let types: Vec<&Value> = inputs.iter().map(|&id| self.value(id)).collect();
        let (dtype, shape) = infer(&op, &types)?;
        let name = format!("{}_{}", op.name(), self.nodes.len());
        let output = self.add_value(name, dtype, shape, Origin::Node);
        self.nodes.push(Node { op, inputs: inputs.to_vec(), output });
        Ok(output)
    }

    /// Makes a value an output, last in order, under this name.
    pub fn add_output(&mut self, name: impl Into<String>, value: ValueId) {
        if let Some(value) = self.values.get_mut(value.0 as usize) {
            value.name = name.into();
        }
        self.outputs.push(value);
    }

    fn add_value(&mut self, name: String, dtype: DType, shape: Shape, origin: Origin) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).unwrap_or(u32::MAX));
        self.values.push(Value { name, dtype, shape, origin });
        id
    }

    /// The value of this ID.
    ///
    /// # Panics
    /// If the ID is another graph's.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The node of this ID.
    ///
    /// # Panics
    /// If the ID is another graph's.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The value of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.values().find(|(_, value)| value.name == name).map(|(id, _)| id)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        (0..).map(ValueId).zip(&self.values)
    }

    /// All weights with their recipes.
    pub fn weights(&self) -> impl Iterator<Item = (ValueId, &Value, &WeightExpr)> {
        self.values().filter_map(|(id, value)| match &value.origin {
            Origin::Weight { expr } => Some((id, value, expr)),
            _ => None,
        })
    }

    /// All nodes in execution order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        (0..).map(NodeId).zip(&self.nodes)
    }

    /// The inputs in order.
    #[must_use]
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The outputs in order.
    #[must_use]
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The symbols; a [`SymbolId`] is an index here.
    #[must_use]
    pub fn symbols(&self) -> &[Symbol] {
        &self.symbols
    }
}
