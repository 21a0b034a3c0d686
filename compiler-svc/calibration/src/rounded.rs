//! Matrices as they were rounded, and where builders find them.

use std::collections::BTreeMap;
use std::ops::Range;

use roundhouse_backend::{GroupSteps, QuantizationLoss, QuantizedTensor, WeightError, WeightSource};
use roundhouse_graph::{QuantizedLinearAttributes, QuantizedPart, WeightExpr};

use crate::{Triangle, round_row};

/// A matrix `[N, K]` that was rounded together.
#[derive(Debug)]
pub struct Rounded {
    attributes: QuantizedLinearAttributes,
    /// `[N, K · bits / 8]`.
    values: Vec<u8>,
    /// `[N, K / group_size]`.
    steps: Vec<GroupSteps>,
    /// Of each row.
    lost: Vec<QuantizationLoss>,
}

impl Rounded {
    /// Rounds `numbers [N, K]`, which become what their bytes stand for. Without a triangle each group by itself.
    pub(crate) fn new(
        triangle: Option<&Triangle>,
        attributes: QuantizedLinearAttributes,
        numbers: &mut [f32],
        columns: usize,
        threads: usize,
    ) -> Self {
        let quantization = attributes.quantization;
        let group_size = (quantization.group_size as usize).max(1);
        let (rows, groups) = (numbers.len() / columns, columns / group_size);
        let bytes = columns * quantization.format.bits() as usize / 8;
        let nothing = GroupSteps { scale: 0.0, offset: 0.0 };
        let mut rounded = Self {
            attributes,
            values: vec![0; rows * bytes],
            steps: vec![nothing; rows * groups],
            lost: vec![QuantizationLoss::default(); rows],
        };
        let each = rows.div_ceil(threads.max(1)).max(1);
        let parts = numbers.chunks_mut(each * columns).zip(rounded.values.chunks_mut(each * bytes));
        let parts = parts.zip(rounded.steps.chunks_mut(each * groups)).zip(rounded.lost.chunks_mut(each));
        std::thread::scope(|scope| {
            for (((numbers, values), steps), lost) in parts {
                scope.spawn(move || {
                    let rows = numbers.chunks_exact_mut(columns).zip(values.chunks_exact_mut(bytes));
                    for (((row, values), steps), lost) in rows.zip(steps.chunks_exact_mut(groups)).zip(lost) {
                        *lost = round(triangle, attributes, row, values, steps);
                    }
                });
            }
        });
        rounded
    }

    /// Rows of a part, as numbers; `None` where there are no such rows.
    fn rows(&self, part: QuantizedPart, rows: Range<u64>, out: &mut [f32]) -> Option<QuantizationLoss> {
        let (start, end) = (usize::try_from(rows.start).ok()?, usize::try_from(rows.end).ok()?);
        let width = |elements: usize| elements / self.lost.len().max(1);
        match part {
            QuantizedPart::Values => {
                let width = width(self.values.len());
                let found = self.values.get(start * width..end * width)?;
                out.iter_mut().zip(found).for_each(|(out, &byte)| *out = f32::from(byte));
            }
            QuantizedPart::Scales | QuantizedPart::Offsets => {
                let width = width(self.steps.len());
                let number = |steps: &GroupSteps| {
                    if part == QuantizedPart::Scales { steps.scale } else { steps.offset }
                };
                let found = self.steps.get(start * width..end * width)?;
                out.iter_mut().zip(found).for_each(|(out, steps)| *out = number(steps));
            }
        }
        let mut lost = QuantizationLoss::default();
        self.lost.get(start..end)?.iter().for_each(|row| lost += *row);
        Some(lost)
    }
}

/// Rounds a row to its bytes and steps.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes are 0 to 255")]
fn round(
    triangle: Option<&Triangle>,
    attributes: QuantizedLinearAttributes,
    row: &mut [f32],
    values: &mut [u8],
    steps: &mut [GroupSteps],
) -> QuantizationLoss {
    let format = attributes.quantization.format;
    let group_size = row.len() / steps.len().max(1);
    let alone = |row: &[f32]| {
        let equal = vec![1.0; group_size];
        let steps = |group: &[f32]| GroupSteps::weighted(attributes, group, &equal);
        let steps: Vec<_> = row.chunks_exact(group_size).map(steps).collect();
        let nearest = |(index, &x): (usize, &f32)| steps[index / group_size].nearest(format, x);
        (row.iter().enumerate().map(nearest).collect::<Vec<f32>>(), steps)
    };
    let (numbers, found) = match triangle.map(|triangle| round_row(triangle, attributes, row)) {
        Some(rounded) => (rounded.numbers, rounded.steps),
        None => alone(row),
    };
    let mut lost = QuantizationLoss::default();
    for (&x, &number) in row.iter().zip(&numbers) {
        lost.squared_error += (f64::from(x) - f64::from(number)).powi(2);
        lost.squared_norm += f64::from(x).powi(2);
    }
    let mut bytes = vec![0.0; values.len() / steps.len().max(1)];
    let groups = numbers.chunks_exact(group_size).zip(&found);
    for ((group, steps), values) in groups.zip(values.chunks_exact_mut(bytes.len())) {
        steps.bytes(format, group, &mut bytes);
        values.iter_mut().zip(&bytes).for_each(|(value, &byte)| *value = byte as u8);
    }
    row.copy_from_slice(&numbers);
    steps.copy_from_slice(&found);
    lost
}

/// What names a matrix: its recipe.
pub(crate) fn recipe(matrix: &WeightExpr) -> Result<String, serde_json::Error> {
    serde_json::to_string(matrix)
}

/// A checkpoint with matrices that were rounded together.
pub struct CalibratedWeights<'a> {
    source: &'a dyn WeightSource,
    matrices: &'a BTreeMap<String, Rounded>,
}

impl<'a> CalibratedWeights<'a> {
    pub(crate) const fn new(source: &'a dyn WeightSource, matrices: &'a BTreeMap<String, Rounded>) -> Self {
        Self { source, matrices }
    }
}

impl WeightSource for CalibratedWeights<'_> {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        self.source.shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        self.source.read_rows(name, rows, out)
    }

    fn read_elements(&self, name: &str, first: u64, out: &mut [f32]) -> Result<(), WeightError> {
        self.source.read_elements(name, first, out)
    }

    fn quantized(&self, name: &str) -> Option<QuantizedTensor> {
        self.source.quantized(name)
    }

    fn quantized_rows(
        &self,
        matrix: &WeightExpr,
        attributes: QuantizedLinearAttributes,
        part: QuantizedPart,
        rows: Range<u64>,
        out: &mut [f32],
    ) -> Result<Option<QuantizationLoss>, WeightError> {
        let found = recipe(matrix).ok().and_then(|recipe| self.matrices.get(&recipe));
        match found.filter(|found| found.attributes == attributes) {
            Some(found) => Ok(found.rows(part, rows, out)),
            None => self.source.quantized_rows(matrix, attributes, part, rows, out),
        }
    }

    fn measure(&self, matrix: &WeightExpr, rows: Range<u64>, lost: QuantizationLoss) {
        self.source.measure(matrix, rows, lost);
    }
}
