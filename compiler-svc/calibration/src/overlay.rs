//! A checkpoint with other tensors over it.

use std::collections::BTreeMap;
use std::ops::Range;

use roundhouse_backend::{WeightError, WeightSource};

/// A matrix `[N, K]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) columns: usize,
    pub(crate) numbers: Vec<f32>,
}

impl Table {
    pub(crate) fn rows(&self) -> usize {
        self.numbers.len() / self.columns.max(1)
    }
}

/// A source that has matrices beside those of another.
pub(crate) struct Overlay<'a> {
    pub(crate) source: &'a dyn WeightSource,
    pub(crate) tables: BTreeMap<String, Table>,
}

impl WeightSource for Overlay<'_> {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        match self.tables.get(name) {
            Some(table) => Ok(vec![table.rows() as u64, table.columns as u64]),
            None => self.source.shape(name),
        }
    }

    fn names(&self) -> Vec<String> {
        self.source.names().into_iter().chain(self.tables.keys().cloned()).collect()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        let Some(table) = self.tables.get(name) else { return self.source.read_rows(name, rows, out) };
        let element = |row: u64| usize::try_from(row).ok().and_then(|row| row.checked_mul(table.columns));
        let range = element(rows.start).zip(element(rows.end)).map(|(start, end)| start..end);
        let found = range.and_then(|range| table.numbers.get(range)).filter(|found| found.len() == out.len());
        let what = || format!("no rows {rows:?} of {} of {}", table.rows(), table.columns);
        let found = found.ok_or_else(|| WeightError::Corrupt { name: name.to_owned(), what: what() })?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn read_elements(&self, name: &str, first: u64, out: &mut [f32]) -> Result<(), WeightError> {
        self.source.read_elements(name, first, out)
    }
}
