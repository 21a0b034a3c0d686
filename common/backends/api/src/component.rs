//! The components of an engine beside its language model: graphs that run once for what they are given.

use roundhouse_engine::MemoryPlan;
use roundhouse_graph::{DType, Graph, Shape, Symbol, SymbolId};

use crate::BackendError;

/// A loaded component.
pub trait ComponentModel: Send + Sync {
    /// The memory it uses beside the language model's: measured where it can be, else planned.
    fn memory_plan(&self) -> MemoryPlan;

    /// Runs it over its graph's inputs, by name, in any order.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] for an input that is missing, superfluous, of another type, or of a shape that
    /// contradicts the graph's or another input's, and for numbers that are out of range (an index, a segment that comes
    /// before the one before it); [`BackendError::Device`] when the device failed.
    fn run(&self, inputs: &[NamedTensor<'_>]) -> Result<OutputTensor, BackendError>;
}

/// What a component gives.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputTensor {
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f32>,
}

/// A tensor under the name of a graph's input.
#[derive(Debug, Clone, Copy)]
pub struct NamedTensor<'a> {
    /// The input.
    pub name: &'a str,
    /// Its dimensions, outermost first.
    pub shape: &'a [usize],
    /// Its elements, row-major.
    pub elements: TensorElements<'a>,
}

/// The elements of a tensor.
#[derive(Debug, Clone, Copy)]
pub enum TensorElements<'a> {
    /// Of a float input, whatever its dtype.
    Floats(&'a [f32]),
    /// Of an `i64` input.
    Integers(&'a [i64]),
}

impl TensorElements<'_> {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Floats(values) => values.len(),
            Self::Integers(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a component's graph takes: reads the tensors that it is given as the graph's inputs.
#[derive(Debug, Clone)]
pub struct ComponentSignature {
    inputs: Vec<(String, DType, Shape)>,
    symbols: Vec<Symbol>,
}

/// Tensors as a graph's inputs.
#[derive(Debug)]
pub struct ComponentInputs<'a> {
    /// In the order of the graph's inputs.
    pub tensors: Vec<NamedTensor<'a>>,
    /// The value of each symbol of the graph.
    pub symbols: Vec<i64>,
}

impl ComponentSignature {
    /// The inputs of a verified graph.
    #[must_use]
    pub fn new(graph: &Graph) -> Self {
        let input = |&id| {
            let value = graph.value(id);
            (value.name.clone(), value.dtype, value.shape.clone())
        };
        Self { inputs: graph.inputs().iter().map(input).collect(), symbols: graph.symbols().to_vec() }
    }

    /// Finds each input among the tensors, and what the symbols are.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] names the first tensor that is missing, superfluous or does not fit.
    pub fn bind<'a>(&self, tensors: &[NamedTensor<'a>]) -> Result<ComponentInputs<'a>, BackendError> {
        let known = |tensor: &&NamedTensor<'_>| self.inputs.iter().any(|(name, ..)| name == tensor.name);
        if let Some(tensor) = tensors.iter().find(|tensor| !known(tensor)) {
            return Err(invalid(tensor.name, "the component has no such input".to_owned()));
        }
        let mut symbols = vec![None; self.symbols.len()];
        let mut ordered = Vec::with_capacity(self.inputs.len());
        for (name, dtype, shape) in &self.inputs {
            let mut found = tensors.iter().filter(|tensor| tensor.name == name);
            let (Some(tensor), None) = (found.next(), found.next()) else {
                return Err(invalid(name, "it has to be given, and once".to_owned()));
            };
            self.check(tensor, *dtype, shape)?;
            for (dim, &size) in shape.iter().zip(tensor.shape) {
                if let Some(symbol) = dim.as_symbol().and_then(|symbol| symbols.get_mut(index(symbol))) {
                    *symbol = symbol.or_else(|| i64::try_from(size).ok());
                }
            }
            ordered.push(*tensor);
        }
        let symbols = symbols.into_iter().zip(&self.symbols).map(|(value, symbol)| {
            let value = value.filter(|value| (symbol.min..=symbol.max).contains(value));
            let Symbol { name, min, max } = symbol;
            value.ok_or_else(|| invalid(name, format!("it has to be within {min} to {max}")))
        });
        let symbols = symbols.collect::<Result<Vec<i64>, _>>()?;
        for (tensor, (.., shape)) in ordered.iter().zip(&self.inputs) {
            let sizes = shape.iter().map(|dim| {
                let (constant, terms) = dim.parts();
                let value = |symbol: &SymbolId| symbols.get(index(*symbol)).copied().unwrap_or(0);
                terms.iter().map(|(symbol, factor)| factor * value(symbol)).sum::<i64>() + constant
            });
            let sizes: Vec<i64> = sizes.collect();
            if !sizes.iter().zip(tensor.shape).all(|(&size, &found)| i64::try_from(found) == Ok(size)) {
                return Err(invalid(tensor.name, format!("expected {sizes:?}, found {:?}", tensor.shape)));
            }
        }
        Ok(ComponentInputs { tensors: ordered, symbols })
    }

    /// Whether a tensor is of an input's kind and rank, and as long as its shape says.
    fn check(&self, tensor: &NamedTensor<'_>, dtype: DType, shape: &Shape) -> Result<(), BackendError> {
        let floats = matches!(tensor.elements, TensorElements::Floats(_));
        if floats != dtype.is_float() {
            return Err(invalid(tensor.name, format!("expected elements of {dtype}")));
        }
        let (rank, found) = (shape.len(), tensor.shape);
        if found.len() != rank {
            return Err(invalid(tensor.name, format!("expected {rank} dimensions, found {found:?}")));
        }
        let elements = found.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
        if elements != Some(tensor.elements.len()) {
            let count = tensor.elements.len();
            return Err(invalid(tensor.name, format!("{count} elements of a tensor of {found:?}")));
        }
        Ok(())
    }
}

fn index(symbol: SymbolId) -> usize {
    usize::try_from(symbol.0).unwrap_or(usize::MAX)
}

fn invalid(name: &str, what: String) -> BackendError {
    BackendError::InvalidArgument(format!("{name:?}: {what}"))
}

#[cfg(test)]
mod tests {
    use roundhouse_graph::{Dim, Op};

    use super::*;

    /// `rows [4 · n, 2] f32, order [n] i64`, of at most 8.
    fn signature() -> ComponentSignature {
        let mut graph = Graph::new("test");
        let n = Dim::symbol(graph.add_symbol("n", 1, 8));
        let rows = graph.add_input("rows", DType::F32, vec![n.clone().times(4), Dim::constant(2)]);
        let order = graph.add_input("order", DType::I64, vec![n.clone()]);
        let rows = graph.add_node(Op::Reshape { shape: vec![n, Dim::constant(8)] }, &[rows]).unwrap();
        let gathered = graph.add_node(Op::Gather { axis: 0 }, &[rows, order]).unwrap();
        graph.add_output("output", gathered);
        ComponentSignature::new(&graph)
    }

    fn rows<'a>(shape: &'a [usize], values: &'a [f32]) -> NamedTensor<'a> {
        NamedTensor { name: "rows", shape, elements: TensorElements::Floats(values) }
    }

    fn order<'a>(shape: &'a [usize], values: &'a [i64]) -> NamedTensor<'a> {
        NamedTensor { name: "order", shape, elements: TensorElements::Integers(values) }
    }

    #[test]
    fn inputs_are_found_by_name_and_give_the_symbols() {
        let (floats, integers) = ([0.0; 16], [1, 0]);
        let given = [order(&[2], &integers), rows(&[8, 2], &floats)];
        let bound = signature().bind(&given).unwrap();
        assert_eq!(bound.symbols, [2]);
        let names: Vec<&str> = bound.tensors.iter().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["rows", "order"]);
    }

    #[test]
    fn tensors_that_do_not_fit_are_named() {
        let (floats, integers) = ([0.0; 80], [0; 10]);
        let other = NamedTensor { name: "other", ..order(&[2], &integers[..2]) };
        let float_order = NamedTensor { name: "order", ..rows(&[2], &floats[..2]) };
        let good = (rows(&[8, 2], &floats[..16]), order(&[2], &integers[..2]));
        let cases = [
            (vec![good.0], "order"),
            (vec![good.0, good.1, good.1], "order"),
            (vec![good.0, good.1, other], "other"),
            (vec![good.0, float_order], "order"),
            (vec![rows(&[4, 2], &floats[..8]), good.1], "rows"),
            (vec![rows(&[8, 2], &floats[..8]), good.1], "rows"),
            (vec![rows(&[16], &floats[..16]), good.1], "rows"),
            (vec![rows(&[0, 2], &[]), order(&[0], &[])], "n"),
            (vec![rows(&[36, 2], &floats[..72]), order(&[9], &integers[..9])], "n"),
        ];
        for (given, name) in cases {
            let error = signature().bind(&given).unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")), "{name}: {error}");
        }
    }
}
