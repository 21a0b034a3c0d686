//! Dimensions as tensors: what TensorRT calls shape tensors.
//!
//! A dimension is a linear expression over symbols. Each symbol is read once, from the input that binds it; an
//! expression that an index input equals is that input. Everything is `[1]` or `[rank]` INT64 and made once.

use std::collections::HashMap;

use roundhouse_graph::{Dim, Graph, Origin, Symbol, SymbolId, ValueId};
use roundhouse_tensorrt_network::{DYNAMIC, Dims, ElementWise, LayerKind, Reshape, SliceOperand, TensorId};

use crate::ConvertError;
use crate::context::Context;

/// The smallest value of a dimension, each symbol taken by itself.
pub(crate) fn smallest(dim: &Dim, symbols: &[Symbol]) -> i64 {
    let (constant, terms) = dim.parts();
    terms.iter().fold(constant, |sum, (id, &coefficient)| {
        let value = symbols.get(id.0 as usize).map_or(0, |symbol| match coefficient {
            ..0 => symbol.max,
            _ => symbol.min,
        });
        sum.saturating_add(coefficient.saturating_mul(value))
    })
}

/// Where the value of a symbol or of an index comes from.
#[derive(Debug, Clone)]
enum Source {
    /// A dimension of an input.
    Dimension { input: ValueId, axis: usize },
    /// An index input that equals `coefficient · symbol + rest`, coefficient 1 or −1.
    Index { equals: Dim, coefficient: i64, rest: Dim },
}

/// What of the dimensions is known and made so far.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    symbols: HashMap<SymbolId, Source>,
    /// Index inputs with what they equal; those of most symbols first.
    indices: Vec<(ValueId, Dim)>,
    /// The dimensions of inputs, by `IShapeLayer`.
    of_inputs: HashMap<ValueId, TensorId>,
    /// `[1]` each.
    dims: HashMap<Dim, TensorId>,
    /// `[rank]` each.
    vectors: HashMap<Vec<Dim>, TensorId>,
}

impl Shapes {
    /// Finds out which input binds which symbol: a dimension that is the symbol alone, else, in the inputs' order, an
    /// index input that has it as its only unknown.
    pub(crate) fn new(graph: &Graph) -> Self {
        let mut shapes = Self::default();
        for &input in graph.inputs() {
            for (axis, dim) in graph.value(input).shape.iter().enumerate() {
                if let Some(symbol) = dim.as_symbol() {
                    shapes.symbols.entry(symbol).or_insert(Source::Dimension { input, axis });
                }
            }
        }
        for &input in graph.inputs() {
            let Origin::Input { equals: Some(equals) } = &graph.value(input).origin else { continue };
            shapes.indices.push((input, equals.clone()));
            let mut unknown =
                equals.parts().1.iter().filter(|(symbol, _)| !shapes.symbols.contains_key(symbol));
            if let (Some((&symbol, &coefficient @ (1 | -1))), None) = (unknown.next(), unknown.next()) {
                let rest = equals.clone() - Dim::symbol(symbol).times(coefficient);
                shapes.symbols.insert(symbol, Source::Index { equals: equals.clone(), coefficient, rest });
            }
        }
        shapes.indices.sort_by_key(|(_, equals)| std::cmp::Reverse(equals.parts().1.len()));
        shapes
    }

    /// A dimension as a constant and multiples of index inputs and symbols, as few as there can be.
    fn terms(&self, dim: &Dim) -> (i64, Vec<(i64, Dim)>) {
        let mut left = dim.clone();
        let mut terms = Vec::new();
        for (_, equals) in &self.indices {
            let Some((symbol, coefficient)) = equals.parts().1.first_key_value() else { continue };
            let Some(factor) = left.parts().1.get(symbol).map(|found| found / coefficient) else { continue };
            let without = left.clone() - equals.times(factor);
            if without.parts().1.len() < left.parts().1.len() {
                terms.push((factor, equals.clone()));
                left = without;
            }
        }
        let (constant, symbols) = left.parts();
        terms.extend(symbols.iter().map(|(&symbol, &coefficient)| (coefficient, Dim::symbol(symbol))));
        // A difference begins with what is positive.
        terms.sort_by_key(|(coefficient, _)| *coefficient < 0);
        (constant, terms)
    }
}

impl Context<'_> {
    /// A dimension as a tensor, `[1]` INT64.
    pub(crate) fn dim(&mut self, dim: &Dim) -> Result<TensorId, ConvertError> {
        if let Some(&tensor) = self.shapes.dims.get(dim) {
            return Ok(tensor);
        }
        let tensor = self.make_dim(dim)?;
        self.shapes.dims.insert(dim.clone(), tensor);
        Ok(tensor)
    }

    fn make_dim(&mut self, dim: &Dim) -> Result<TensorId, ConvertError> {
        if let Some(constant) = dim.as_constant() {
            return self.named("shapes", |context| context.integers(&constant.to_string(), &[constant]));
        }
        let index = self.shapes.indices.iter().find(|(_, equals)| equals == dim).map(|(input, _)| *input);
        if let Some(input) = index {
            return self.index(input);
        }
        if let Some(symbol) = dim.as_symbol() {
            return self.symbol(symbol);
        }
        let (constant, terms) = self.shapes.terms(dim);
        let text = self.display(dim);
        let mut sum = None;
        if constant != 0 || terms.first().is_none_or(|(coefficient, _)| *coefficient < 0) {
            sum = Some(self.dim(&Dim::constant(constant))?);
        }
        for (coefficient, part) in terms {
            let mut term = self.dim(&part)?;
            let factor = coefficient.saturating_abs();
            if factor != 1 {
                let factor_tensor = self.dim(&Dim::constant(factor))?;
                let name = format!("{factor}*{}", self.display(&part));
                term = self.named("shapes", |context| {
                    context.elementwise(&name, ElementWise::Prod, term, factor_tensor)
                })?;
            }
            sum = Some(match sum {
                None => term,
                Some(sum) => {
                    let operation = if coefficient < 0 { ElementWise::Sub } else { ElementWise::Sum };
                    self.named("shapes", |context| context.elementwise(&text, operation, sum, term))?
                }
            });
        }
        sum.ok_or_else(|| self.internal(format!("the dimension {text} has no terms")))
    }

    /// An index input, `[]`, as `[1]`.
    fn index(&mut self, input: ValueId) -> Result<TensorId, ConvertError> {
        let tensor = self.value(input)?;
        let name = self.graph.value(input).name.clone();
        self.named(&name, |context| {
            let reshape = Some(Reshape::Static(vec![1]));
            let kind = LayerKind::Shuffle { first_transpose: None, reshape, second_transpose: None };
            context.layer("vector", kind, &[tensor])
        })
    }

    fn symbol(&mut self, symbol: SymbolId) -> Result<TensorId, ConvertError> {
        let text = self.display(&Dim::symbol(symbol));
        let source = self.shapes.symbols.get(&symbol).cloned();
        match source.ok_or_else(|| self.internal(format!("no input binds {text}")))? {
            Source::Dimension { input, axis } => {
                let dims = self.dims_of_input(input)?;
                let name = self.graph.value(input).name.clone();
                self.named(&name, |context| {
                    let start = i64::try_from(axis).unwrap_or(i64::MAX);
                    let (start, size) = (SliceOperand::Static(vec![start]), SliceOperand::Static(vec![1]));
                    context.layer(&text, LayerKind::Slice { start, size }, &[dims])
                })
            }
            Source::Index { equals, coefficient, rest } => {
                let index = self.dim(&equals)?;
                let rest = self.dim(&rest)?;
                let (a, b) = if coefficient < 0 { (rest, index) } else { (index, rest) };
                self.named("shapes", |context| context.elementwise(&text, ElementWise::Sub, a, b))
            }
        }
    }

    /// The dimensions of an input, `[rank]`.
    fn dims_of_input(&mut self, input: ValueId) -> Result<TensorId, ConvertError> {
        if let Some(&tensor) = self.shapes.of_inputs.get(&input) {
            return Ok(tensor);
        }
        let tensor = self.value(input)?;
        let name = self.graph.value(input).name.clone();
        let dims = self.named(&name, |context| context.layer("shape", LayerKind::Shape, &[tensor]))?;
        self.shapes.of_inputs.insert(input, dims);
        Ok(dims)
    }

    /// Dimensions as a tensor, `[rank]` INT64; constants that are neighbours are one constant.
    fn vector(&mut self, dims: &[Dim]) -> Result<TensorId, ConvertError> {
        if let Some(&tensor) = self.shapes.vectors.get(dims) {
            return Ok(tensor);
        }
        let text: Vec<String> = dims.iter().map(|dim| self.display(dim)).collect();
        let text = format!("[{}]", text.join(","));
        let mut parts = Vec::new();
        for run in dims.chunk_by(|a, b| a.as_constant().is_some() && b.as_constant().is_some()) {
            let constants: Option<Vec<i64>> = run.iter().map(Dim::as_constant).collect();
            parts.push(match (constants, run) {
                (Some(constants), _) => self
                    .named("shapes", |context| context.integers(&format!("{text}/constants"), &constants))?,
                (None, [dim]) => self.dim(dim)?,
                (None, _) => return Err(self.internal(format!("{text} mixes constants and symbols"))),
            });
        }
        let tensor = match parts[..] {
            [alone] => alone,
            _ => self.named("shapes", |context| {
                context.layer(&text, LayerKind::Concatenation { axis: 0 }, &parts)
            })?,
        };
        self.shapes.vectors.insert(dims.to_vec(), tensor);
        Ok(tensor)
    }

    /// The start or size of a slice, and the operand that it needs if it is no constant.
    pub(crate) fn slice_operand(
        &mut self,
        dims: &[Dim],
    ) -> Result<(SliceOperand, Option<TensorId>), ConvertError> {
        if let Some(constants) = dims.iter().map(Dim::as_constant).collect::<Option<Dims>>() {
            return Ok((SliceOperand::Static(constants), None));
        }
        let tensor = self.vector(dims)?;
        Ok((SliceOperand::Input { expected: known(dims) }, Some(tensor)))
    }

    /// The shape of a reshape that only a shape tensor can tell.
    pub(crate) fn reshape_operand(&mut self, dims: &[Dim]) -> Result<(Reshape, TensorId), ConvertError> {
        let tensor = self.vector(dims)?;
        Ok((Reshape::Input { expected: known(dims) }, tensor))
    }

    fn display(&self, dim: &Dim) -> String {
        dim.display(self.graph.symbols()).replace(' ', "")
    }
}

/// Dimensions as far as they are known when the network is built.
fn known(dims: &[Dim]) -> Dims {
    dims.iter().map(|dim| dim.as_constant().unwrap_or(DYNAMIC)).collect()
}
