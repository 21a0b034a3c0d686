//! Checkpoints in memory.

use std::collections::BTreeMap;
use std::ops::Range;

use roundhouse_backend::{WeightError, WeightSource};
use roundhouse_graph::DType;

use crate::{Rng, round_to};

/// A checkpoint whose tensors are in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryWeights {
    tensors: BTreeMap<String, (Vec<u64>, Vec<f32>)>,
}

impl MemoryWeights {
    /// Without any tensor.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a tensor; `values` are row-major, as many as the product of `shape`.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        let shape = shape.iter().map(|&dim| dim as u64).collect();
        self.tensors.insert(name.into(), (shape, values));
    }

    /// Adds or replaces a tensor of numbers uniform in `center - scale..center + scale`.
    pub fn insert_random(
        &mut self,
        rng: &mut Rng,
        name: impl Into<String>,
        shape: &[usize],
        center: f32,
        scale: f32,
    ) {
        let values = rng.uniform_vec(shape.iter().product(), center, scale);
        self.insert(name, shape, values);
    }

    fn get(&self, name: &str) -> Result<&(Vec<u64>, Vec<f32>), WeightError> {
        self.tensors.get(name).ok_or_else(|| WeightError::NotFound { name: name.to_owned() })
    }
}

impl WeightSource for MemoryWeights {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        Ok(self.get(name)?.0.clone())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        let (shape, values) = self.get(name)?;
        let width: u64 = shape.iter().skip(1).product();
        let part = rows
            .end
            .checked_mul(width)
            .and_then(|end| values.get((rows.start * width) as usize..end as usize))
            .filter(|part| part.len() == out.len());
        let part = part.ok_or_else(|| WeightError::Corrupt {
            name: name.to_owned(),
            what: format!("rows {rows:?} of shape {shape:?} were asked for as {} elements", out.len()),
        })?;
        out.copy_from_slice(part);
        Ok(())
    }
}

/// A checkpoint with every number rounded to a dtype: what an engine of that precision computes with.
pub struct RoundedWeights<'a> {
    source: &'a dyn WeightSource,
    dtype: DType,
}

impl<'a> RoundedWeights<'a> {
    /// `source` rounded to `dtype`.
    #[must_use]
    pub fn new(source: &'a dyn WeightSource, dtype: DType) -> Self {
        Self { source, dtype }
    }
}

impl WeightSource for RoundedWeights<'_> {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        self.source.shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        self.source.read_rows(name, rows, out)?;
        out.iter_mut().for_each(|value| *value = round_to(self.dtype, *value));
        Ok(())
    }
}
