//! The interpreter: every op as its documentation says, without regard to speed.

mod attention;
mod elementwise;
mod experts;
mod layout;
mod linear;
mod quantized;
mod symbols;

use std::collections::{BTreeMap, HashMap};

use roundhouse_backend::{WeightError, WeightSource, evaluate_rows};
use roundhouse_graph::{DType, Graph, GraphError, Node, Op, Value, ValueId, WeightExpr, verify};
use symbols::Symbols;

use crate::tensor::{Data, Tensor, round_to};

/// What the interpreter can fail with.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The graph is broken.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A weight could not be read.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The inputs given are not the graph's, or contradict each other.
    #[error("input {name:?}: {what}")]
    Input {
        /// The input.
        name: String,
        /// What was expected and what was found.
        what: String,
    },
    /// A token, position, index or slice is out of range.
    #[error("node {node:?}: {what}")]
    OutOfRange {
        /// The node's output.
        node: String,
        /// What is out of which range.
        what: String,
    },
}

/// Whether values are rounded to the graph's dtypes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// Weights only: everything else stays fp32. What backends are compared with.
    #[default]
    Weights,
    /// Every value, once, when it is stored: what an ideal backend of that precision computes.
    Stored,
}

/// Runs a graph. Sums run in fp64, so that what it computes is exact next to a backend's fp32.
#[derive(Debug)]
pub struct Interpreter {
    graph: Graph,
    weights: HashMap<ValueId, Tensor>,
    rounding: Rounding,
}

impl Interpreter {
    /// An interpreter of a graph with its weights in memory, rounded to their dtypes in the graph.
    ///
    /// # Errors
    /// When the graph does not verify, or a weight cannot be read.
    pub fn new(graph: &Graph, weights: &dyn WeightSource) -> Result<Self, ReferenceError> {
        verify(graph)?;
        let weights = graph
            .weights()
            .map(|(id, value, expr)| Ok((id, weight(value, expr, weights)?)))
            .collect::<Result<_, WeightError>>()?;
        Ok(Self { graph: graph.clone(), weights, rounding: Rounding::default() })
    }

    /// The graph it runs.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// With another rounding.
    #[must_use]
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        Self { rounding, ..self }
    }

    /// The outputs, by name, of these inputs; and, under their own names, the inputs that were changed in place.
    ///
    /// # Errors
    /// When an input is missing, superfluous or of another shape than the others imply, or a token, position, index
    /// or slice is out of range.
    pub fn run<'n>(
        &self,
        inputs: impl IntoIterator<Item = (&'n str, Tensor)>,
    ) -> Result<BTreeMap<String, Tensor>, ReferenceError> {
        let mut values = HashMap::new();
        for (name, tensor) in inputs {
            let id = self.graph.find(name).filter(|id| self.graph.inputs().contains(id));
            let id = id.ok_or_else(|| wrong_input(name, "the graph has no such input"))?;
            if values.insert(id, tensor).is_some() {
                return Err(wrong_input(name, "it was given twice"));
            }
        }
        let symbols = Symbols::bind(&self.graph, &values)?;
        for (_, node) in self.graph.nodes() {
            let output = self.node(node, &symbols, &values)?;
            values.insert(node.output, output);
        }
        let written = self.graph.nodes().filter(|(_, node)| matches!(node.op, Op::KvCacheUpdate));
        let written = written.filter_map(|(_, node)| node.inputs.first().map(|&cache| (cache, node.output)));
        let changed = written.filter(|(cache, _)| self.graph.inputs().contains(cache));
        let outputs = self.graph.outputs().iter().map(|&id| (id, id)).chain(changed);
        let outputs = outputs.filter_map(|(named, id)| {
            values.get(&id).map(|tensor| (self.graph.value(named).name.clone(), tensor.clone()))
        });
        Ok(outputs.collect())
    }

    fn node(
        &self,
        node: &Node,
        symbols: &Symbols<'_>,
        values: &HashMap<ValueId, Tensor>,
    ) -> Result<Tensor, ReferenceError> {
        let value = self.graph.value(node.output);
        // Verified: what a node reads is a weight, or was given or made before.
        let inputs: Vec<&Tensor> =
            node.inputs.iter().filter_map(|id| self.weights.get(id).or_else(|| values.get(id))).collect();
        let scope = Scope { inputs: &inputs, symbols };
        let result = match &node.op {
            Op::Embedding => linear::embedding(&scope),
            Op::ReplaceRows => layout::replace_rows(&scope),
            Op::Linear => Ok(linear::linear(&scope)),
            Op::QuantizedLinear(attributes) => Ok(quantized::quantized_linear(&scope, *attributes)),
            Op::MatMul { transpose_b } => Ok(linear::matmul(&scope, *transpose_b)),
            Op::Add => Ok(elementwise::binary(&scope, |a, b| a + b)),
            Op::Mul => Ok(elementwise::binary(&scope, |a, b| a * b)),
            Op::Scale { factor } => Ok(elementwise::unary(&scope, |x| factor * x)),
            Op::Silu => Ok(elementwise::unary(&scope, elementwise::silu)),
            Op::Sigmoid => Ok(elementwise::unary(&scope, |x| 1.0 / (1.0 + (-x).exp()))),
            Op::MixtureOfExperts(attributes) => Ok(experts::mixture_of_experts(&scope, *attributes)),
            Op::Gelu { approximation } => Ok(elementwise::unary(&scope, elementwise::gelu(*approximation))),
            Op::SoftCap { cap } => Ok(elementwise::unary(&scope, |x| cap * (x / cap).tanh())),
            Op::SiluMul => Ok(elementwise::binary(&scope, |gate, up| elementwise::silu(gate) * up)),
            Op::RmsNorm { epsilon, unit_offset } => Ok(elementwise::rms_norm(&scope, *epsilon, *unit_offset)),
            Op::LayerNorm { epsilon } => Ok(elementwise::layer_norm(&scope, *epsilon)),
            Op::Softmax { axis } => Ok(elementwise::softmax(&scope, *axis)),
            Op::RotaryEmbedding(attributes) => Ok(attention::rotary_embedding(&scope, attributes)),
            Op::ScaledDotProductAttention(attributes) => attention::scaled_dot_product(&scope, attributes),
            Op::KvCacheUpdate => attention::kv_cache_update(&scope),
            Op::LastToken => attention::last_token(&scope),
            Op::Cat { axis } => Ok(layout::cat(&scope, *axis)),
            Op::Slice { axis, start, end } => layout::slice(&scope, *axis, start, end),
            Op::Reshape { shape } => layout::reshape(&scope, shape),
            Op::Transpose { permutation } => Ok(layout::transpose(&scope, permutation)),
            Op::Gather { axis } => layout::gather(&scope, *axis),
            Op::Cast { to } => Ok(layout::cast(&scope, *to)),
        };
        let mut tensor =
            result.map_err(|what| ReferenceError::OutOfRange { node: value.name.clone(), what })?;
        if let (Rounding::Stored, Data::Float(numbers)) = (self.rounding, &mut tensor.data) {
            numbers.iter_mut().for_each(|number| *number = round_to(value.dtype, *number));
        }
        Ok(tensor)
    }
}

/// What an op sees. Its inputs' shapes and dtypes are those that the graph says: the graph was verified, the graph's
/// inputs were checked, and each op makes what [`roundhouse_graph::infer`] says.
struct Scope<'a> {
    inputs: &'a [&'a Tensor],
    symbols: &'a Symbols<'a>,
}

fn wrong_input(name: &str, what: impl Into<String>) -> ReferenceError {
    ReferenceError::Input { name: name.to_owned(), what: what.into() }
}

fn weight(value: &Value, expr: &WeightExpr, source: &dyn WeightSource) -> Result<Tensor, WeightError> {
    let shape: Vec<usize> = value
        .shape
        .iter()
        .map(|dim| dim.as_constant().and_then(|dim| usize::try_from(dim).ok()).unwrap_or_default())
        .collect();
    let mut numbers = match expr {
        WeightExpr::Literal { values } => values.clone(),
        _ => {
            let mut numbers = vec![0.0; shape.iter().product()];
            let rows = shape.first().map_or(1, |&rows| rows as u64);
            evaluate_rows(source, expr, 0..rows, &mut numbers)?;
            numbers
        }
    };
    numbers.iter_mut().for_each(|number| *number = round_to(value.dtype, *number));
    Ok(Tensor::float(&shape, numbers))
}

/// Whether a tensor can stand for a value of this dtype.
fn holds(tensor: &Tensor, dtype: DType) -> bool {
    matches!(tensor.data, Data::Float(_)) == dtype.is_float()
}

#[cfg(test)]
mod tests;
