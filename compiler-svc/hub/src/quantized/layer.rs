//! One quantised matrix: its parts, and what they decode to.

use std::ops::Range;

use roundhouse_backend::{QuantizedTensor, WeightError, quantized_number};
use roundhouse_graph::{DType, Quantization, WeightFormat};
use safetensors::Dtype;

use super::codes::Codes;
use super::groups::{Columns, Scales, Zeros};
use super::{Part, index};
use crate::shards::SafetensorsWeights;

/// Bytes that a block of rows takes once it is unpacked, about.
const BLOCK_BYTES: u64 = 4 << 20;
/// Rows that share words in every packing.
const ROWS_IN_WORDS: u64 = 8;

/// A matrix `[rows, columns]`, `w[n, k] = (q[n, k] − zeros[n, g]) · scales[n, g]` with `g` the group of column `k`.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) rows: u64,
    pub(super) columns: u64,
    /// How the codes are read.
    pub(super) format: WeightFormat,
    pub(super) codes: Codes,
    /// Which columns share a scale.
    pub(super) groups: Columns,
    /// Scales of a row.
    pub(super) group_count: u64,
    pub(super) scales: Scales,
    pub(super) zeros: Option<Zeros>,
}

/// Scales and zero points of a block of rows, `[rows, groups]`.
#[derive(Debug)]
pub(super) struct Table {
    scales: Vec<f32>,
    /// Empty where all are zero.
    zeros: Vec<f32>,
}

impl Layer {
    /// Whether the matrix's own name is no tensor of the files.
    pub(super) fn is_renamed(&self) -> bool {
        !matches!(self.codes, Codes::Bytes { .. })
    }

    /// Rows that are unpacked at once.
    pub(super) fn block_rows(&self) -> u64 {
        let row_bytes = self.columns.saturating_add(self.group_count.saturating_mul(8)).max(1);
        (BLOCK_BYTES / row_bytes / ROWS_IN_WORDS * ROWS_IN_WORDS).max(ROWS_IN_WORDS)
    }

    /// The quantisation, if the columns of a group are next to each other, fill it, and are whole bytes.
    pub(super) fn quantization(&self) -> Option<Quantization> {
        let Columns::Contiguous(size) = self.groups else { return None };
        let whole = self.columns.is_multiple_of(size)
            && size.checked_mul(u64::from(self.format.bits())).is_some_and(|bits| bits.is_multiple_of(8));
        let group_size = u32::try_from(size).ok().filter(|_| whole)?;
        Some(Quantization { format: self.format, group_size })
    }

    /// The shape of a part, if it has the part.
    pub(super) fn shape(&self, part: Part) -> Option<[u64; 2]> {
        let width = match part {
            Part::Decoded => self.columns,
            Part::Values => self.columns * u64::from(self.quantization()?.format.bits()) / 8,
            Part::Scales | Part::Offsets => self.quantization().map(|_| self.group_count)?,
        };
        Some([self.rows, width])
    }

    /// As [`roundhouse_backend::WeightSource::quantized`] says. Reads all scales that are not in f16, and all zero
    /// points.
    pub(super) fn describe(
        &self,
        weights: &SafetensorsWeights,
    ) -> Result<Option<QuantizedTensor>, WeightError> {
        let Some(quantization) = self.quantization() else { return Ok(None) };
        let mut exact = weights.dtype(&self.scales.tensor) == Some(Dtype::F16);
        let mut has_offsets = false;
        if self.zeros.is_some() || !exact {
            exact = true;
            let step = index(self.block_rows());
            for first in (0..self.rows).step_by(step) {
                let table = self.table(weights, &(first..self.rows.min(first + self.block_rows())))?;
                has_offsets |= table.zeros.iter().any(|&zero| zero != 0.0);
                exact &= table.scales.iter().all(|&scale| half::f16::from_f32(scale).to_f32() == scale);
            }
        }
        let scales_dtype = if exact && !has_offsets { DType::F16 } else { DType::F32 };
        Ok(Some(QuantizedTensor { quantization, has_offsets, scales_dtype }))
    }

    /// The codes of a block of rows.
    pub(super) fn codes(
        &self,
        weights: &SafetensorsWeights,
        rows: &Range<u64>,
    ) -> Result<Vec<u8>, WeightError> {
        self.codes.read(weights, [self.rows, self.columns], rows)
    }

    /// The scales and zero points of a block of rows.
    pub(super) fn table(
        &self,
        weights: &SafetensorsWeights,
        rows: &Range<u64>,
    ) -> Result<Table, WeightError> {
        let shape = [self.rows, self.group_count];
        let scales = self.scales.read(weights, shape, rows)?;
        let zeros = self.zeros.as_ref().map(|zeros| zeros.read(weights, shape, rows)).transpose()?;
        Ok(Table { scales, zeros: zeros.unwrap_or_default() })
    }

    /// Row number `row` of a block as bytes.
    pub(super) fn values(&self, codes: &[u8], row: usize, out: &mut [f32]) {
        let codes = self.row(codes, row);
        if self.format == WeightFormat::Int4 {
            for (out, pair) in out.iter_mut().zip(codes.chunks_exact(2)) {
                *out = f32::from(pair[0] | pair[1] << 4);
            }
        } else {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = f32::from(code);
            }
        }
    }

    /// Row number `row` of a block as numbers.
    pub(super) fn decoded(&self, codes: &[u8], table: &Table, row: usize, out: &mut [f32]) {
        let scales = table.scales(row, self.group_count);
        let zeros = table.zeros(row, self.group_count);
        for (column, (out, &code)) in out.iter_mut().zip(self.row(codes, row)).enumerate() {
            let group = self.groups.group(column);
            let zero = zeros.get(group).copied().unwrap_or(0.0);
            *out = (quantized_number(self.format, code) - zero) * scales[group];
        }
    }

    fn row<'a>(&self, codes: &'a [u8], row: usize) -> &'a [u8] {
        let columns = index(self.columns);
        &codes[row * columns..][..columns]
    }
}

impl Table {
    /// The scales of row number `row`.
    pub(super) fn scales(&self, row: usize, groups: u64) -> &[f32] {
        &self.scales[row * index(groups)..][..index(groups)]
    }

    fn zeros(&self, row: usize, groups: u64) -> &[f32] {
        if self.zeros.is_empty() { &[] } else { &self.zeros[row * index(groups)..][..index(groups)] }
    }

    /// The offsets of row number `row`: what a code of zero stands for.
    pub(super) fn offsets(&self, row: usize, groups: u64, out: &mut [f32]) {
        out.fill(0.0);
        let zeros = self.zeros(row, groups).iter().zip(self.scales(row, groups));
        for (out, (&zero, &scale)) in out.iter_mut().zip(zeros) {
            if zero != 0.0 {
                *out = -zero * scale;
            }
        }
    }
}
