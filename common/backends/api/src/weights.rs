//! Where builders read weights from.

use std::ops::Range;

use roundhouse_graph::{DType, Quantization, QuantizedLinearAttributes, QuantizedPart, WeightExpr};

use crate::quantization::{self, QuantizationLoss};

/// Elements that are read at once to be quantised, about.
const QUANTIZED_ELEMENTS: usize = 1 << 20;

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

/// How a checkpoint has a matrix `[N, K]` that it stores quantised. Beside the decoded matrix under its own name, its
/// source then has the matrix's parts as tensors of their own, which [`WeightSource::names`] does not list:
///
/// * [`values`](Self::values_of) `[N, K · bits / 8]`: bytes, as numbers from 0 to 255, in the layout of the format;
/// * [`scales`](Self::scales_of) `[N, K / group_size]`;
/// * [`offsets`](Self::offsets_of) `[N, K / group_size]`, zeros where `has_offsets` is false.
///
/// `values · scales + offsets` in fp32 is the decoded matrix: exactly without offsets and where scales are stored in 16
/// bits, else to the rounding of one addition, and of one more where the offset itself is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizedTensor {
    /// How its bytes are read.
    pub quantization: Quantization,
    /// Whether offsets may be other than zero.
    pub has_offsets: bool,
    /// The least dtype that holds scales and offsets exactly: f16, or f32 always where there are offsets.
    pub scales_dtype: DType,
}

impl QuantizedTensor {
    /// The name of the bytes of a quantised tensor.
    #[must_use]
    pub fn values_of(name: &str) -> String {
        format!("{name}.values")
    }

    /// The name of the scales of a quantised tensor.
    #[must_use]
    pub fn scales_of(name: &str) -> String {
        format!("{name}.scales")
    }

    /// The name of the offsets of a quantised tensor.
    #[must_use]
    pub fn offsets_of(name: &str) -> String {
        format!("{name}.offsets")
    }
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

    /// Decodes the elements of a tensor from element `first` on, row-major, into `out`. By itself it decodes whole rows
    /// of the first axis for it: a source of large tensors with more than two axes has something better.
    ///
    /// # Errors
    /// As [`read_rows`](Self::read_rows), or when there are no such elements.
    fn read_elements(&self, name: &str, first: u64, out: &mut [f32]) -> Result<(), WeightError> {
        let shape = self.shape(name)?;
        let corrupt = |what| WeightError::Corrupt { name: name.to_owned(), what };
        let row = shape.iter().skip(1).try_fold(1_u64, |product, &dim| product.checked_mul(dim));
        let Some(row) = row else { return Err(corrupt(format!("shape {shape:?} is too large"))) };
        let (mut first, mut rest) = (first, out);
        let mut partial = Vec::new();
        while !rest.is_empty() {
            let length = rest.len() as u64;
            let Some(at) = first.checked_div(row) else {
                return Err(corrupt(format!("shape {shape:?} has no elements")));
            };
            let skip = first % row;
            let count =
                if skip == 0 && length >= row { length - length % row } else { length.min(row - skip) };
            let (now, later) = rest.split_at_mut(index(count));
            if skip == 0 && count.is_multiple_of(row) {
                self.read_rows(name, at..at + count / row, now)?;
            } else {
                partial.resize(index(row), 0.0);
                self.read_rows(name, at..at + 1, &mut partial)?;
                now.copy_from_slice(&partial[index(skip)..index(skip + count)]);
            }
            (first, rest) = (first + count, later);
        }
        Ok(())
    }

    /// How the checkpoint has a tensor quantised, if it does so in a way that a graph can use as it is. May read all of
    /// its scales.
    fn quantized(&self, _name: &str) -> Option<QuantizedTensor> {
        None
    }

    /// Gives rows of a part of a matrix that the source has quantised itself, better than a row alone can be, and what
    /// they lost with their bytes. `None`, the default: it has not, and each row is quantised by itself.
    ///
    /// # Errors
    /// As [`read_rows`](Self::read_rows).
    fn quantized_rows(
        &self,
        _matrix: &WeightExpr,
        _attributes: QuantizedLinearAttributes,
        _part: QuantizedPart,
        _rows: Range<u64>,
        _out: &mut [f32],
    ) -> Result<Option<QuantizationLoss>, WeightError> {
        Ok(None)
    }

    /// Hears from [`evaluate_rows`] what rows of a matrix lost when their bytes were made. For sources that measure.
    fn measure(&self, _matrix: &WeightExpr, _rows: Range<u64>, _lost: QuantizationLoss) {}
}

/// The shape that a recipe evaluates to.
///
/// # Errors
/// When a tensor is missing or the recipe does not fit the tensors' shapes.
pub fn expr_shape(source: &dyn WeightSource, expr: &WeightExpr) -> Result<Vec<u64>, WeightError> {
    match expr {
        WeightExpr::Tensor { name } => source.shape(name),
        WeightExpr::Matrix { name } => {
            let shape = source.shape(name)?;
            let Some((columns, axes)) = shape.split_last().filter(|(_, axes)| !axes.is_empty()) else {
                return Err(misfit(expr, format!("shape {shape:?} cannot be read as a matrix")));
            };
            let rows = axes.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
            let rows = rows.ok_or_else(|| misfit(expr, format!("shape {shape:?} is too large")))?;
            Ok(vec![rows, *columns])
        }
        WeightExpr::Flattened { name } => {
            let shape = source.shape(name)?;
            let Some((rows, axes)) = shape.split_first().filter(|(_, axes)| !axes.is_empty()) else {
                return Err(misfit(expr, format!("shape {shape:?} cannot be read as a matrix")));
            };
            let columns = axes.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
            let columns = columns.ok_or_else(|| misfit(expr, format!("shape {shape:?} is too large")))?;
            Ok(vec![*rows, columns])
        }
        WeightExpr::Transpose { of } => {
            let shape = expr_shape(source, of)?;
            let [rows, columns] = shape[..] else {
                return Err(misfit(of, format!("only a matrix can be transposed, the shape is {shape:?}")));
            };
            Ok(vec![columns, rows])
        }
        WeightExpr::Rows { of, start, end } => {
            let mut shape = expr_shape(source, of)?;
            match shape.first_mut() {
                Some(rows) if start <= end && *end <= *rows => *rows = end - start,
                _ => return Err(misfit(of, format!("rows {start}..{end} are outside of shape {shape:?}"))),
            }
            Ok(shape)
        }
        WeightExpr::Concat { parts } => {
            let mut joined: Option<Vec<u64>> = None;
            for part in parts {
                let shape = expr_shape(source, part)?;
                let Some(joined) = &mut joined else {
                    joined = Some(shape);
                    continue;
                };
                match (&mut joined[..], &shape[..]) {
                    ([total, inner @ ..], [rows, columns @ ..]) if inner == columns => {
                        *total = total
                            .checked_add(*rows)
                            .ok_or_else(|| misfit(part, "more rows than 64 bits count".to_owned()))?;
                    }
                    _ => return Err(misfit(part, format!("shape {shape:?} cannot be joined to {joined:?}"))),
                }
            }
            joined.ok_or_else(|| misfit(expr, "a concatenation of nothing has no shape".to_owned()))
        }
        WeightExpr::Literal { values } => Ok(vec![values.len() as u64]),
        WeightExpr::Quantized { of, attributes, part } => {
            let shape = expr_shape(source, of)?;
            quantization::shape(*attributes, *part, &shape).map_err(|what| misfit(of, what))
        }
    }
}

/// Evaluates rows `rows` of a recipe into `out` (row-major, exactly their length).
///
/// A transposed matrix is read whole, a row at a time, for each call: ask for many of its rows at once.
///
/// # Errors
/// When a tensor is missing or broken, or the recipe does not fit the tensors' shapes.
pub fn evaluate_rows(
    source: &dyn WeightSource,
    expr: &WeightExpr,
    rows: Range<u64>,
    out: &mut [f32],
) -> Result<(), WeightError> {
    let wrong_length =
        |length: usize| misfit(expr, format!("rows {rows:?} cannot be evaluated into {length} elements"));
    let count = rows.end.checked_sub(rows.start).ok_or_else(|| wrong_length(out.len()))?;
    match expr {
        WeightExpr::Tensor { name } | WeightExpr::Flattened { name } => source.read_rows(name, rows, out),
        WeightExpr::Matrix { name } => {
            let [available, columns] = expr_shape(source, expr)?[..] else {
                return Err(wrong_length(out.len()));
            };
            let first = rows.start.checked_mul(columns);
            match first.filter(|_| count.checked_mul(columns) == Some(out.len() as u64)) {
                Some(first) if rows.end <= available => source.read_elements(name, first, out),
                _ => Err(wrong_length(out.len())),
            }
        }
        WeightExpr::Rows { of, start, end } => {
            let last = start.checked_add(rows.end).filter(|last| last <= end);
            let last =
                last.ok_or_else(|| misfit(of, format!("rows {rows:?} of {start}..{end} do not exist")))?;
            evaluate_rows(source, of, last - count..last, out)
        }
        WeightExpr::Literal { values } => {
            let range = index(rows.start)..index(rows.end);
            let part = values.get(range).filter(|part| part.len() == out.len());
            out.copy_from_slice(part.ok_or_else(|| wrong_length(out.len()))?);
            Ok(())
        }
        WeightExpr::Quantized { of, attributes, part } => {
            let [_, columns] = expr_shape(source, of)?[..] else {
                return Err(wrong_length(out.len()));
            };
            let width = index(expr_shape(source, expr)?.get(1).copied().unwrap_or(0));
            if Some(out.len()) != index(count).checked_mul(width) {
                return Err(wrong_length(out.len()));
            }
            if let Some(lost) = source.quantized_rows(of, *attributes, *part, rows.clone(), out)? {
                if *part == QuantizedPart::Values {
                    source.measure(of, rows, lost);
                }
                return Ok(());
            }
            // Many rows at once, because a transposed matrix is read whole each time.
            let columns = index(columns).max(1);
            let at_once = (QUANTIZED_ELEMENTS / columns).max(1);
            let mut read = vec![0.0; at_once.min(index(count)) * columns];
            let firsts = rows.clone().step_by(at_once);
            for (first, out) in firsts.zip(out.chunks_mut((at_once * width).max(1))) {
                let last = rows.end.min(first + at_once as u64);
                let read = &mut read[..index(last - first) * columns];
                evaluate_rows(source, of, first..last, read)?;
                let mut lost = QuantizationLoss::default();
                for (row, out) in read.chunks_exact(columns).zip(out.chunks_exact_mut(width.max(1))) {
                    lost += quantization::quantize_row(*attributes, *part, row, out);
                }
                if *part == QuantizedPart::Values {
                    source.measure(of, first..last, lost);
                }
            }
            Ok(())
        }
        WeightExpr::Concat { parts } => {
            let columns = out.len().checked_div(index(count)).unwrap_or(0);
            let (mut first, mut written) = (0, 0);
            for part in parts {
                let part_rows = expr_shape(source, part)?.first().copied().unwrap_or(0);
                let wanted = rows.start.max(first)..rows.end.min(first + part_rows);
                if wanted.start < wanted.end {
                    let length = index(wanted.end - wanted.start) * columns;
                    let local = wanted.start - first..wanted.end - first;
                    evaluate_rows(source, part, local, &mut out[written..written + length])?;
                    written += length;
                }
                first += part_rows;
            }
            if written == out.len() { Ok(()) } else { Err(wrong_length(out.len())) }
        }
        WeightExpr::Transpose { of } => {
            let [columns, width] = expr_shape(source, expr)?[..] else {
                return Err(wrong_length(out.len()));
            };
            if rows.end > columns || Some(out.len()) != index(count).checked_mul(index(width)) {
                return Err(wrong_length(out.len()));
            }
            let mut line = vec![0.0; index(columns)];
            for row in 0..width {
                evaluate_rows(source, of, row..row + 1, &mut line)?;
                let wanted = &line[index(rows.start)..index(rows.end)];
                for (out_row, value) in out.chunks_exact_mut(index(width)).zip(wanted) {
                    out_row[index(row)] = *value;
                }
            }
            Ok(())
        }
    }
}

/// A count as an index. What does not fit finds nothing to index, whatever is read.
fn index(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// A recipe that does not fit its tensors.
fn misfit(expr: &WeightExpr, what: String) -> WeightError {
    let names = expr.tensors();
    let name = if names.is_empty() { "literal".to_owned() } else { names.join(", ") };
    WeightError::Corrupt { name, what }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use roundhouse_graph::WeightFormat;

    use super::*;

    struct Tensors(BTreeMap<&'static str, (Vec<u64>, Vec<f32>)>);

    impl Tensors {
        /// `a` is `[[0, 1, 2], [3, 4, 5]]`, `b` is `[[10, 11, 12]]`, `v` is `[7, 8, 9]`, `e` counts up in three matrices.
        fn new() -> Self {
            Self(BTreeMap::from([
                ("a", (vec![2, 3], (0..6_u8).map(f32::from).collect())),
                ("b", (vec![1, 3], vec![10.0, 11.0, 12.0])),
                ("v", (vec![3], vec![7.0, 8.0, 9.0])),
                ("e", (vec![3, 2, 2], (0..12_u8).map(f32::from).collect())),
            ]))
        }
    }

    impl WeightSource for Tensors {
        fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
            let found = self.0.get(name).ok_or_else(|| WeightError::NotFound { name: name.to_owned() })?;
            Ok(found.0.clone())
        }

        fn names(&self) -> Vec<String> {
            self.0.keys().map(|&name| name.to_owned()).collect()
        }

        fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
            let (shape, values) = &self.0[name];
            let width: u64 = shape[1..].iter().product();
            let range = (rows.start * width) as usize..(rows.end * width) as usize;
            let part = values.get(range).filter(|part| part.len() == out.len());
            let part =
                part.ok_or_else(|| WeightError::Corrupt { name: name.to_owned(), what: "rows".to_owned() })?;
            out.copy_from_slice(part);
            Ok(())
        }
    }

    fn tensor(name: &str) -> Box<WeightExpr> {
        Box::new(WeightExpr::tensor(name))
    }

    fn evaluate(expr: &WeightExpr, rows: Range<u64>) -> Result<Vec<f32>, WeightError> {
        let width: u64 = expr_shape(&Tensors::new(), expr)?[1..].iter().product();
        let mut out = vec![f32::NAN; ((rows.end - rows.start) * width) as usize];
        evaluate_rows(&Tensors::new(), expr, rows, &mut out)?;
        Ok(out)
    }

    #[test]
    fn a_tensor_is_read_as_it_is() {
        assert_eq!(evaluate(&tensor("a"), 1..2).unwrap(), [3.0, 4.0, 5.0]);
        assert_eq!(evaluate(&tensor("v"), 1..3).unwrap(), [8.0, 9.0]);
    }

    #[test]
    fn any_rows_of_a_tensor_of_matrices_can_be_evaluated() {
        let expr = WeightExpr::Matrix { name: "e".to_owned() };
        assert_eq!(expr_shape(&Tensors::new(), &expr).unwrap(), [6, 2]);
        for start in 0..6_u8 {
            for end in start..=6 {
                let found = evaluate(&expr, u64::from(start)..u64::from(end)).unwrap();
                let expected: Vec<f32> = (2 * start..2 * end).map(f32::from).collect();
                assert_eq!(found, expected, "{start}..{end}");
            }
        }
        let matrix = WeightExpr::Matrix { name: "a".to_owned() };
        assert_eq!(evaluate(&matrix, 1..2).unwrap(), [3.0, 4.0, 5.0]);
    }

    #[test]
    fn any_rows_of_a_flattened_tensor_can_be_evaluated() {
        let expr = WeightExpr::Flattened { name: "e".to_owned() };
        assert_eq!(expr_shape(&Tensors::new(), &expr).unwrap(), [3, 4]);
        assert_eq!(evaluate(&expr, 1..3).unwrap(), [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
    }

    #[test]
    fn any_rows_of_a_transpose_can_be_evaluated() {
        let expr = WeightExpr::Transpose { of: tensor("a") };
        assert_eq!(expr_shape(&Tensors::new(), &expr).unwrap(), [3, 2]);
        assert_eq!(evaluate(&expr, 0..3).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(evaluate(&expr, 1..2).unwrap(), [1.0, 4.0]);
    }

    #[test]
    fn a_concatenation_is_evaluated_across_its_parts() {
        let expr = WeightExpr::Concat { parts: vec![*tensor("a"), *tensor("b"), *tensor("a")] };
        assert_eq!(expr_shape(&Tensors::new(), &expr).unwrap(), [5, 3]);
        assert_eq!(evaluate(&expr, 1..4).unwrap(), [3.0, 4.0, 5.0, 10.0, 11.0, 12.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn rows_cut_what_they_are_given() {
        let transposed = Box::new(WeightExpr::Transpose { of: tensor("a") });
        let expr = WeightExpr::Rows { of: transposed, start: 1, end: 3 };
        assert_eq!(expr_shape(&Tensors::new(), &expr).unwrap(), [2, 2]);
        assert_eq!(evaluate(&expr, 0..2).unwrap(), [1.0, 4.0, 2.0, 5.0]);
        assert_eq!(evaluate(&expr, 1..2).unwrap(), [2.0, 5.0]);
    }

    #[test]
    fn a_literal_has_one_element_a_row() {
        let expr = WeightExpr::Literal { values: vec![1.0, 2.0, 3.0] };
        assert_eq!(evaluate(&expr, 1..3).unwrap(), [2.0, 3.0]);
    }

    #[test]
    fn recipes_that_do_not_fit_are_errors_that_name_the_tensor() {
        let cases = [
            (WeightExpr::Transpose { of: tensor("v") }, "\"v\""),
            (WeightExpr::Matrix { name: "v".to_owned() }, "\"v\""),
            (WeightExpr::Flattened { name: "v".to_owned() }, "\"v\""),
            (WeightExpr::Rows { of: tensor("a"), start: 1, end: 3 }, "\"a\""),
            (WeightExpr::Concat { parts: vec![*tensor("a"), *tensor("v")] }, "\"v\""),
            (WeightExpr::Concat { parts: Vec::new() }, "literal"),
            (*tensor("c"), "\"c\""),
        ];
        for (expr, name) in cases {
            let error = expr_shape(&Tensors::new(), &expr).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_quantised_matrix_is_the_same_however_many_rows_are_evaluated_at_once() {
        const COLUMNS: usize = QUANTIZED_ELEMENTS / 30 * 10;
        let numbers = (0..4 * COLUMNS).map(|index| (index * 31 % 257) as f32 - 128.0).collect();
        let source = Tensors(BTreeMap::from([("m", (vec![4, COLUMNS as u64], numbers))]));
        let group_size = COLUMNS as u32 / 5;
        let numbers = Quantization { format: WeightFormat::Int4, group_size };
        let attributes = QuantizedLinearAttributes { quantization: numbers, has_offsets: true };
        for part in [QuantizedPart::Values, QuantizedPart::Scales, QuantizedPart::Offsets] {
            let expr = WeightExpr::Quantized { of: tensor("m"), attributes, part };
            let width = expr_shape(&source, &expr).unwrap()[1] as usize;
            let mut all = vec![f32::NAN; 4 * width];
            evaluate_rows(&source, &expr, 0..4, &mut all).unwrap();
            for (row, expected) in (0..).zip(all.chunks(width)) {
                let mut one = vec![f32::NAN; width];
                evaluate_rows(&source, &expr, row..row + 1, &mut one).unwrap();
                assert!(one == expected, "{part:?} of row {row}");
            }
        }
    }

    #[test]
    fn rows_that_do_not_exist_are_errors() {
        let transpose = WeightExpr::Transpose { of: tensor("a") };
        let concat = WeightExpr::Concat { parts: vec![*tensor("a"), *tensor("b")] };
        let rows = WeightExpr::Rows { of: tensor("a"), start: 0, end: 1 };
        let literal = WeightExpr::Literal { values: vec![1.0] };
        let matrix = WeightExpr::Matrix { name: "e".to_owned() };
        for (expr, range, length) in [
            (matrix, 5..7, 4),
            (transpose, 2..4, 4),
            (concat, 2..4, 6),
            (rows, 0..2, 6),
            (literal, 0..2, 2),
            (*tensor("a"), 1..3, 6),
        ] {
            let mut out = vec![0.0; length];
            let result = evaluate_rows(&Tensors::new(), &expr, range, &mut out);
            assert!(matches!(result, Err(WeightError::Corrupt { .. })), "{expr:?}: {result:?}");
        }
    }
}
