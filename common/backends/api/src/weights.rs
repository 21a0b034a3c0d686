//! Where builders read weights from.

use std::ops::Range;

use roundhouse_graph::WeightExpr;

/// A weight that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The checkpoint has no tensor of this name.
    #[error("the checkpoint has no tensor {name:?}")]
    NotFound {
        /// The tensor.
        name: String,
    },
    /// A tensor's shape is not the one the model's config asks for.
    #[error("tensor {name:?} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor or weight.
        name: String,
        /// As the config has it.
        expected: Vec<u64>,
        /// As the checkpoint has it.
        found: Vec<u64>,
    },
    /// The tensor's bytes are broken.
    #[error("tensor {name:?}: {what}")]
    Corrupt {
        /// The tensor.
        name: String,
        /// What is wrong.
        what: String,
    },
}

/// A checkpoint's tensors, by name, decoded to fp32 a few rows at a time.
pub trait WeightSource: Send + Sync {
    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`WeightError::NotFound`].
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError>;

    /// The names of all tensors.
    fn names(&self) -> Vec<String>;

    /// Decodes rows of the first axis, row-major, into `out`, whose length is exactly theirs. A scalar or vector has
    /// one element a row.
    ///
    /// # Errors
    /// [`WeightError::NotFound`], or [`WeightError::Corrupt`] when the rows cannot be decoded.
    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError>;
}

/// The shape that a recipe evaluates to.
///
/// # Errors
/// When a tensor is missing or the recipe does not fit the tensors' shapes.
fn expr_shape(source: &dyn WeightSource, expr: &WeightExpr) -> Result<Vec<u64>, WeightError> {
    match expr {
        WeightExpr::Tensor { name } => source.shape(name),
        WeightExpr::Transpose { of } => {
            let mut shape = expr_shape(source, of)?;
            shape.reverse();
            Ok(shape)
        }
        WeightExpr::Rows { of, start, end } => {
            let mut shape = expr_shape(source, of)?;
            if let Some(rows) = shape.first_mut() {
                *rows = end.saturating_sub(*start);
            }
            Ok(shape)
        }
        WeightExpr::Concat { parts } => {
            let mut total = 0;
            let mut shape = Vec::new();
            for part in parts {
                shape = expr_shape(source, part)?;
                total += shape.first().copied().unwrap_or(0);
            }
            if let Some(rows) = shape.first_mut() {
                *rows = total;
            }
            Ok(shape)
        }
        WeightExpr::Literal { values } => Ok(vec![values.len() as u64]),
    }
}

/// Evaluates rows `rows` of a recipe into `out` (row-major, exactly their length).
///
/// # Errors
/// When a tensor is missing or broken, or the recipe does not fit the tensors' shapes.
pub fn evaluate_rows(
    source: &dyn WeightSource,
    expr: &WeightExpr,
    rows: Range<u64>,
    out: &mut [f32],
) -> Result<(), WeightError> {
    match expr {
        WeightExpr::Tensor { name } => source.read_rows(name, rows, out),
        WeightExpr::Rows { of, start, .. } => evaluate_rows(source, of, start + rows.start..start + rows.end, out),
        WeightExpr::Literal { values } => {
            let range = rows.start as usize..rows.end as usize;
            let part = values.get(range).filter(|part| part.len() == out.len());
            let part = part.ok_or_else(|| WeightError::Corrupt {
                name: "literal".to_owned(),
                what: format!("{} values cannot give rows {rows:?}", values.len()),
            })?;
            out.copy_from_slice(part);
            Ok(())
        }
        WeightExpr::Concat { parts } => {
            let columns = row_length(&rows, out.len());
            let (mut first, mut written) = (0, 0);
            for part in parts {
                let count = expr_shape(source, part)?.first().copied().unwrap_or(0);
                let wanted = rows.start.max(first)..rows.end.min(first + count);
                if wanted.start < wanted.end {
                    let length = (wanted.end - wanted.start) as usize * columns;
                    let local = wanted.start - first..wanted.end - first;
                    evaluate_rows(source, part, local, &mut out[written..written + length])?;
                    written += length;
                }
                first += count;
            }
            Ok(())
        }
        WeightExpr::Transpose { of } => {
            let shape = expr_shape(source, of)?;
            let [inner_rows, inner_columns] = shape[..] else {
                return Err(WeightError::Corrupt {
                    name: of.tensors().join(", "),
                    what: format!("a matrix was expected, the shape is {shape:?}"),
                });
            };
            let mut line = vec![0.0; inner_columns as usize];
            let width = inner_rows as usize;
            for row in 0..inner_rows {
                evaluate_rows(source, of, row..row + 1, &mut line)?;
                for (index, column) in (rows.start..rows.end).enumerate() {
                    out[index * width + row as usize] = line[column as usize];
                }
            }
            Ok(())
        }
    }
}

fn row_length(rows: &Range<u64>, elements: usize) -> usize {
    let count = (rows.end - rows.start) as usize;
    if count == 0 { 0 } else { elements / count }
}
