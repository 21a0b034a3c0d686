//! What the rules of all ops ask of their inputs, and the errors that say so.

use crate::{DType, Dim, GraphError, Op, Value};

/// The inputs of a node under the names that the op's doc gives them.
pub(super) struct Inputs<'a> {
    op: &'static str,
    names: &'static [&'static str],
    values: &'a [&'a Value],
}

impl<'a> Inputs<'a> {
    /// Inputs of which the first `required` must be there and all of `names` may be.
    pub(super) fn new(
        op: &Op,
        values: &'a [&'a Value],
        names: &'static [&'static str],
        required: usize,
    ) -> Result<Self, GraphError> {
        if values.len() < required || values.len() > names.len() {
            let expected = if required == names.len() {
                required.to_string()
            } else {
                format!("{required} to {}", names.len())
            };
            return Err(GraphError::InputCount { op: op.name(), expected, found: values.len() });
        }
        Ok(Self { op: op.name(), names, values })
    }

    /// Whether the optional input `index` is there.
    pub(super) fn has(&self, index: usize) -> bool {
        index < self.values.len()
    }

    pub(super) fn shape(&self, index: usize) -> &'a [Dim] {
        &self.values[index].shape
    }

    pub(super) fn dtype(&self, index: usize) -> DType {
        self.values[index].dtype
    }

    pub(super) fn error(&self, what: String) -> GraphError {
        GraphError::Type { op: self.op, what }
    }

    /// Input `index` is not what the op needs.
    pub(super) fn wrong(
        &self,
        index: usize,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> GraphError {
        let (name, value) = (self.names[index], &self.values[index].name);
        self.error(format!("input {index} ({name}, {value:?}): expected {expected}, found {found}"))
    }

    /// Input `index` with exactly `rank` dimensions.
    pub(super) fn rank<const RANK: usize>(&self, index: usize) -> Result<&'a [Dim; RANK], GraphError> {
        let shape = self.shape(index);
        shape.try_into().map_err(|_| self.wrong(index, format!("{RANK} dimensions"), show(shape)))
    }

    /// Input `index` with at least `rank` dimensions.
    pub(super) fn at_least_rank(&self, index: usize, rank: usize) -> Result<&'a [Dim], GraphError> {
        let shape = self.shape(index);
        if shape.len() < rank {
            return Err(self.wrong(index, format!("at least {rank} dimensions"), show(shape)));
        }
        Ok(shape)
    }

    /// The last dimension of input `index` and those before it.
    pub(super) fn last(&self, index: usize) -> Result<(&'a Dim, &'a [Dim]), GraphError> {
        let shape = self.shape(index);
        shape.split_last().ok_or_else(|| self.wrong(index, "at least 1 dimension", show(shape)))
    }

    /// Dimension `axis` of input `index` is `expected`, which is also `what`.
    pub(super) fn dim(
        &self,
        index: usize,
        axis: usize,
        expected: &Dim,
        what: &str,
    ) -> Result<(), GraphError> {
        match self.shape(index).get(axis) {
            Some(found) if found == expected => Ok(()),
            Some(found) => Err(self.wrong(
                index,
                format!("dimension {axis} to be {expected} ({what})"),
                found.to_string(),
            )),
            None => Err(self.wrong(index, format!("a dimension {axis}"), show(self.shape(index)))),
        }
    }

    /// An axis of input `index`.
    pub(super) fn axis(&self, index: usize, axis: usize) -> Result<&'a Dim, GraphError> {
        let shape = self.shape(index);
        shape.get(axis).ok_or_else(|| self.wrong(index, format!("an axis {axis}"), show(shape)))
    }

    pub(super) fn has_dtype(&self, index: usize, dtype: DType) -> Result<(), GraphError> {
        if self.dtype(index) == dtype { Ok(()) } else { Err(self.wrong(index, dtype, self.dtype(index))) }
    }

    /// The float dtype that these inputs share; absent ones do not count.
    pub(super) fn float(&self, indices: &[usize]) -> Result<DType, GraphError> {
        let first = indices[0];
        let dtype = self.dtype(first);
        if !dtype.is_float() {
            return Err(self.wrong(first, "a float dtype", dtype));
        }
        for &index in indices.iter().skip(1).filter(|&&index| self.has(index)) {
            if self.dtype(index) != dtype {
                let expected = format!("{dtype} as of input {first} ({})", self.names[first]);
                return Err(self.wrong(index, expected, self.dtype(index)));
            }
        }
        Ok(dtype)
    }

    /// An attribute that is a number.
    pub(super) fn finite(&self, attribute: &str, value: f32) -> Result<(), GraphError> {
        if value.is_finite() {
            return Ok(());
        }
        Err(self.error(format!("attribute {attribute}: expected a finite number, found {value}")))
    }

    /// An attribute that is a number above zero.
    pub(super) fn positive(&self, attribute: &str, value: f32) -> Result<(), GraphError> {
        if value.is_finite() && value > 0.0 {
            return Ok(());
        }
        Err(self.error(format!("attribute {attribute}: expected a number above zero, found {value}")))
    }
}

/// A shape as `[s0, 64]`.
pub(super) fn show(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}
