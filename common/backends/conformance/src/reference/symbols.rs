//! The symbols' values in one run.

use std::collections::HashMap;

use roundhouse_graph::{Dim, Graph, Origin, SymbolId, ValueId};

use super::{ReferenceError, holds, wrong_input};
use crate::tensor::Tensor;

/// The symbols' values.
pub(super) struct Symbols<'a> {
    graph: &'a Graph,
    values: HashMap<SymbolId, i64>,
}

impl<'a> Symbols<'a> {
    /// Reads the symbols off the inputs, and checks that all inputs are there and agree.
    pub(super) fn bind(graph: &'a Graph, inputs: &HashMap<ValueId, Tensor>) -> Result<Self, ReferenceError> {
        let mut symbols = Self { graph, values: HashMap::new() };
        let given = graph.inputs().iter().map(|&id| {
            let value = graph.value(id);
            let tensor = inputs.get(&id).ok_or_else(|| wrong_input(&value.name, "it was not given"))?;
            Ok((value, tensor))
        });
        let given = given.collect::<Result<Vec<_>, ReferenceError>>()?;
        for (value, tensor) in &given {
            if !holds(tensor, value.dtype) || tensor.shape.iter().product::<usize>() != tensor.len() {
                let what = format!(
                    "{} elements cannot be a {} of shape {:?}",
                    tensor.len(),
                    value.dtype,
                    tensor.shape
                );
                return Err(wrong_input(&value.name, what));
            }
            for (dim, &size) in value.shape.iter().zip(&tensor.shape) {
                if let Some(symbol) = dim.as_symbol() {
                    symbols.values.entry(symbol).or_insert(size as i64);
                }
            }
        }
        for (value, tensor) in &given {
            if let (Origin::Input { equals: Some(equals) }, &[number]) = (&value.origin, tensor.ints()) {
                symbols.solve(equals, number);
            }
        }
        for (value, tensor) in &given {
            let expected: Option<Vec<usize>> = value.shape.iter().map(|dim| symbols.size(dim)).collect();
            if expected.as_ref() != Some(&tensor.shape) {
                let what = format!("its shape is {:?}, the others imply {expected:?}", tensor.shape);
                return Err(wrong_input(&value.name, what));
            }
            if let Origin::Input { equals: Some(equals) } = &value.origin
                && symbols.evaluate(equals) != tensor.ints().first().copied()
            {
                let what =
                    format!("it is {:?}, the others imply {:?}", tensor.ints(), symbols.evaluate(equals));
                return Err(wrong_input(&value.name, what));
            }
        }
        symbols.in_range()?;
        Ok(symbols)
    }

    /// Gives the only unknown symbol of an expression the value that makes it `number`.
    fn solve(&mut self, equals: &Dim, number: i64) {
        let mut unknown = equals.parts().1.iter().filter(|(symbol, _)| !self.values.contains_key(symbol));
        if let (Some((&symbol, &coefficient)), None) = (unknown.next(), unknown.next()) {
            let known = |other| if other == symbol { Some(0) } else { self.values.get(&other).copied() };
            if let Some(rest) = equals.evaluate(known) {
                self.values.insert(symbol, (number - rest) * coefficient.signum());
            }
        }
    }

    fn in_range(&self) -> Result<(), ReferenceError> {
        for (symbol, &value) in &self.values {
            let Some(range) = self.graph.symbols().get(symbol.0 as usize) else { continue };
            if value < range.min || value > range.max {
                let what = format!("{value} is outside of {}..={}", range.min, range.max);
                return Err(wrong_input(&range.name, what));
            }
        }
        Ok(())
    }

    /// The value of a dimension.
    pub(super) fn evaluate(&self, dim: &Dim) -> Option<i64> {
        dim.evaluate(|symbol| self.values.get(&symbol).copied())
    }

    /// The value of a dimension that is a size or an index.
    pub(super) fn size(&self, dim: &Dim) -> Option<usize> {
        self.evaluate(dim).and_then(|value| usize::try_from(value).ok())
    }
}
