//! Symbols: their ranges, what they say of dimensions and slices, and where their values come from.

use std::collections::HashSet;

use super::Check;
use crate::{Dim, GraphError, Op, Origin, SymbolId};

/// The largest constant, coefficient or range bound: far above any real size, far below overflow.
const MAX_MAGNITUDE: u64 = 1 << 40;
/// The most symbols.
const MAX_SYMBOLS: usize = 64;

impl Check<'_> {
    pub(super) fn symbols(&self) -> Result<(), GraphError> {
        let symbols = &self.graph.symbols;
        if symbols.len() > MAX_SYMBOLS {
            return Err(
                self.broken(format!("it has {} symbols, at most {MAX_SYMBOLS} are allowed", symbols.len()))
            );
        }
        let mut names = HashSet::new();
        for symbol in symbols {
            if symbol.name.is_empty() || !names.insert(&symbol.name) {
                return Err(self.broken(format!("two symbols are named {:?}, or it is empty", symbol.name)));
            }
            if symbol.min < 0 || symbol.max < symbol.min || symbol.max.unsigned_abs() > MAX_MAGNITUDE {
                let (name, min, max) = (&symbol.name, symbol.min, symbol.max);
                return Err(self.broken(format!(
                    "symbol {name:?} has the range {min}..={max}; expected 0 <= min <= max <= {MAX_MAGNITUDE}"
                )));
            }
        }
        Ok(())
    }

    /// The symbols of a dimension exist and its numbers are of a sane size.
    pub(super) fn dim(&self, dim: &Dim, of: &str) -> Result<(), GraphError> {
        let (constant, terms) = dim.parts();
        if let Some(symbol) = terms.keys().find(|symbol| symbol.0 as usize >= self.graph.symbols.len()) {
            return Err(self.broken(format!("{of} uses symbol {}, which does not exist", symbol.0)));
        }
        let mut numbers = terms.values().copied().chain([constant]);
        if let Some(number) = numbers.find(|number| number.unsigned_abs() > MAX_MAGNITUDE) {
            return Err(self.broken(format!("{of} holds {number}, at most {MAX_MAGNITUDE} is allowed")));
        }
        Ok(())
    }

    /// The largest value of a dimension that [`Check::dim`] has seen.
    pub(super) fn largest(&self, dim: &Dim) -> i128 {
        let (constant, terms) = dim.parts();
        terms.iter().fold(i128::from(constant), |sum, (symbol, &coefficient)| {
            let symbol = &self.graph.symbols[symbol.0 as usize];
            let extreme = if coefficient < 0 { symbol.min } else { symbol.max };
            sum + i128::from(coefficient) * i128::from(extreme)
        })
    }

    /// A shape with the symbols' names.
    pub(super) fn shape(&self, shape: &[Dim]) -> String {
        let dims: Vec<String> = shape.iter().map(|dim| dim.display(&self.graph.symbols)).collect();
        format!("[{}]", dims.join(", "))
    }

    /// Every slice lies inside its input for some values of the symbols at least. That it does for the values of one
    /// run is for the runtime to check: symbols' ranges do not say which values come together.
    pub(super) fn slices(&self) -> Result<(), GraphError> {
        for node in &self.graph.nodes {
            let Op::Slice { axis, start, end } = &node.op else { continue };
            let name = self.name(node.output);
            self.dim(start, &format!("the start of {name:?}"))?;
            self.dim(end, &format!("the end of {name:?}"))?;
            let length = &self.graph.value(node.inputs[0]).shape[*axis];
            let left = [start.clone(), end.clone() - start.clone(), length.clone() - end.clone()];
            if left.iter().any(|left| self.largest(left) < 0) {
                let show = |dim: &Dim| dim.display(&self.graph.symbols);
                return Err(self.broken(format!(
                    "{name:?} cuts {}..{} out of a length of {}",
                    show(start),
                    show(end),
                    show(length)
                )));
            }
        }
        Ok(())
    }

    /// Every symbol that is used gets its value from an input: from a dimension that is the symbol alone, or, in
    /// the inputs' order, from an index input whose expression has that symbol as its only unknown.
    pub(super) fn bindings(&self) -> Result<(), GraphError> {
        let inputs = || self.graph.inputs.iter().map(|&id| self.graph.value(id));
        let mut bound: HashSet<SymbolId> =
            inputs().flat_map(|value| &value.shape).filter_map(Dim::as_symbol).collect();
        for input in inputs() {
            let Origin::Input { equals: Some(equals) } = &input.origin else { continue };
            let mut unknown = equals.parts().1.iter().filter(|(symbol, _)| !bound.contains(symbol));
            if let (Some((&symbol, 1 | -1)), None) = (unknown.next(), unknown.next()) {
                bound.insert(symbol);
            }
        }
        let dims = self.graph.values.iter().flat_map(|value| {
            let equals = match &value.origin {
                Origin::Input { equals } => equals.as_ref(),
                _ => None,
            };
            value.shape.iter().chain(equals).map(|dim| (dim, value.name.as_str()))
        });
        let slices = self.graph.nodes.iter().flat_map(|node| {
            let bounds = match &node.op {
                Op::Slice { start, end, .. } => vec![start, end],
                _ => Vec::new(),
            };
            bounds.into_iter().map(|dim| (dim, self.name(node.output)))
        });
        for (dim, of) in dims.chain(slices) {
            if let Some(symbol) = dim.parts().1.keys().find(|symbol| !bound.contains(symbol)) {
                let name = &self.graph.symbols[symbol.0 as usize].name;
                return Err(
                    self.broken(format!("{of:?} depends on symbol {name:?}, which no input gives a value"))
                );
            }
        }
        Ok(())
    }
}
