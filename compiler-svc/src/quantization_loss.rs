//! What the weights of an engine lose when the compiler quantises them, measured while the builder reads them.

use std::collections::BTreeMap;
use std::ops::Range;

use parking_lot::Mutex;
use roundhouse_backend::{QuantizationLoss, QuantizedTensor, WeightError, WeightSource};
use roundhouse_graph::{PassReport, QuantizedLinearAttributes, QuantizedPart, WeightExpr};

/// How many of the matrices that lost most are named.
const NAMED: usize = 5;
/// Relative errors in reports, in millionths: the root mean square of the differences by that of the weights.
const RELATIVE_ERROR: &str = "relative_error_ppm";

/// A checkpoint that hears what its matrices lose. Nothing is read twice, and only sums are kept.
pub(crate) struct MeasuredWeights<'a> {
    source: &'a dyn WeightSource,
    matrices: Mutex<BTreeMap<String, Matrix>>,
}

#[derive(Default)]
struct Matrix {
    lost: QuantizationLoss,
    /// The rows measured, by the first of each stretch, so that what a builder evaluates twice counts once.
    measured: BTreeMap<u64, u64>,
}

impl Matrix {
    fn add(&mut self, rows: Range<u64>, lost: QuantizationLoss) {
        let before = self.measured.range(..rows.end).next_back().map(|(&first, &end)| (first, end));
        match before {
            Some((_, end)) if end > rows.start => return,
            // Rows mostly come in order.
            Some((first, end)) if end == rows.start => self.measured.insert(first, rows.end),
            _ => self.measured.insert(rows.start, rows.end),
        };
        self.lost += lost;
    }
}

impl<'a> MeasuredWeights<'a> {
    pub(crate) fn new(source: &'a dyn WeightSource) -> Self {
        Self { source, matrices: Mutex::default() }
    }

    /// What all matrices lost, and each, those that lost most first; `None` where none was quantised.
    pub(crate) fn losses(self) -> Option<Losses> {
        let matrices = self.matrices.into_inner();
        let mut overall = QuantizationLoss::default();
        matrices.values().for_each(|matrix| overall += matrix.lost);
        let mut each: Vec<_> =
            matrices.into_iter().map(|(name, matrix)| (name, matrix.lost.relative_error())).collect();
        each.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        (!each.is_empty()).then(|| Losses { overall: overall.relative_error(), each })
    }
}

impl WeightSource for MeasuredWeights<'_> {
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
        self.source.quantized_rows(matrix, attributes, part, rows, out)
    }

    fn measure(&self, matrix: &WeightExpr, rows: Range<u64>, lost: QuantizationLoss) {
        if rows.start < rows.end {
            self.matrices.lock().entry(name(matrix)).or_default().add(rows, lost);
        }
    }
}

/// Relative errors of quantised matrices.
#[derive(Debug, PartialEq)]
pub(crate) struct Losses {
    overall: f64,
    /// By name, the largest first.
    each: Vec<(String, f64)>,
}

impl Losses {
    /// Adds them to the report of the pass that quantised.
    pub(crate) fn report(&self, pass: &mut PassReport) {
        pass.counts.insert(RELATIVE_ERROR.to_owned(), millionths(self.overall));
        for (name, error) in self.each.iter().take(NAMED) {
            pass.counts.insert(format!("{RELATIVE_ERROR} of {name}"), millionths(*error));
        }
    }

    /// Lines for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let count = self.each.len();
        let overall = format!("relative error of {count} quantised weights: {:.3} %", self.overall * 100.0);
        let named = self.each.iter().take(NAMED);
        let named = named.map(|(name, error)| format!("relative error of {name}: {:.3} %", error * 100.0));
        std::iter::once(overall).chain(named).collect()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
fn millionths(error: f64) -> u64 {
    // A scale that overflowed leaves no numbers.
    if error.is_nan() { u64::MAX } else { (error * 1e6).round() as u64 }
}

/// A matrix by the tensors that it is made of.
fn name(matrix: &WeightExpr) -> String {
    match matrix {
        WeightExpr::Tensor { name } | WeightExpr::Matrix { name } | WeightExpr::Flattened { name } => {
            name.clone()
        }
        WeightExpr::Rows { of, start, end } => format!("{}[{start}..{end}]", name(of)),
        WeightExpr::Transpose { of } => format!("transpose({})", name(of)),
        WeightExpr::Concat { parts } => parts.iter().map(name).collect::<Vec<_>>().join("+"),
        WeightExpr::Quantized { of, part, .. } => format!("{part:?}({})", name(of)),
        WeightExpr::Literal { values } => format!("literal({})", values.len()),
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_backend::evaluate_rows;
    use roundhouse_graph::{Quantization, QuantizedLinearAttributes, QuantizedPart, WeightFormat};

    use super::*;

    /// Matrices of four rows of two columns: `a` of 127 and 1.5 (a difference of ½ in each row), `b` of zeros, `c` that
    /// nothing is lost of.
    struct Source;

    impl WeightSource for Source {
        fn shape(&self, _name: &str) -> Result<Vec<u64>, WeightError> {
            Ok(vec![4, 2])
        }

        fn names(&self) -> Vec<String> {
            ["a", "b", "c"].map(str::to_owned).to_vec()
        }

        fn read_rows(&self, name: &str, _rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
            let row = match name {
                "a" => [127.0, 1.5],
                "b" => [0.0, 0.0],
                _ => [127.0, 2.0],
            };
            out.as_chunks_mut().0.fill(row);
            Ok(())
        }
    }

    fn part(of: WeightExpr, part: QuantizedPart) -> WeightExpr {
        let quantization = Quantization { format: WeightFormat::Int8, group_size: 2 };
        let attributes = QuantizedLinearAttributes { quantization, has_offsets: false };
        WeightExpr::Quantized { of: Box::new(of), attributes, part }
    }

    fn evaluate(source: &dyn WeightSource, expr: &WeightExpr, rows: Range<u64>) {
        let width =
            if matches!(expr, WeightExpr::Quantized { part: QuantizedPart::Scales, .. }) { 1 } else { 2 };
        evaluate_rows(source, expr, rows.clone(), &mut vec![0.0; (rows.end - rows.start) as usize * width])
            .unwrap();
    }

    #[test]
    fn each_row_counts_once_however_often_and_in_which_order_it_is_evaluated() {
        let of_a = 0.5 / (127.0_f64 * 127.0 + 1.5 * 1.5).sqrt();
        for order in [
            vec![0..1, 1..2, 2..3, 3..4],
            vec![0..2, 2..4, 0..2, 2..4],
            vec![2..4, 0..2, 1..3, 0..4],
            vec![0..4, 0..0],
        ] {
            let measured = MeasuredWeights::new(&Source);
            for rows in order.clone() {
                evaluate(&measured, &part(WeightExpr::tensor("a"), QuantizedPart::Values), rows.clone());
                evaluate(&measured, &part(WeightExpr::tensor("a"), QuantizedPart::Scales), rows);
            }
            let matrices = measured.matrices.lock();
            assert_eq!(
                matrices["a"].lost,
                QuantizationLoss { squared_error: 1.0, squared_norm: 64525.0 },
                "{order:?}"
            );
            drop(matrices);
            let losses = measured.losses().unwrap();
            assert!((losses.overall - of_a).abs() < 1e-12, "{losses:?}");
        }
    }

    #[test]
    fn the_report_has_the_overall_error_and_the_worst_by_name() {
        let measured = MeasuredWeights::new(&Source);
        let tensor = |name: &str| WeightExpr::tensor(name);
        let rows = |of: &str| WeightExpr::Rows { of: Box::new(tensor(of)), start: 1, end: 3 };
        for matrix in [tensor("c"), tensor("b"), rows("a")] {
            evaluate(&measured, &part(matrix, QuantizedPart::Values), 0..2);
        }
        // What is read as it is loses nothing and is not named.
        evaluate(&measured, &tensor("a"), 0..4);
        let losses = measured.losses().unwrap();
        let mut report = PassReport::new("pass", [("quantized_linears", 3)]);
        losses.report(&mut report);
        // 2 · ½² of 2 · (127² + 1.5²), and of twice 2 · (127² + 2²) beside it for the overall one.
        let expected = PassReport::new(
            "pass",
            [
                ("quantized_linears", 3),
                ("relative_error_ppm", 2784),
                ("relative_error_ppm of a[1..3]", 3937),
                ("relative_error_ppm of b", 0),
                ("relative_error_ppm of c", 0),
            ],
        );
        assert_eq!(report, expected);
        let lines = losses.lines();
        assert_eq!(
            lines[..2],
            ["relative error of 3 quantised weights: 0.278 %", "relative error of a[1..3]: 0.394 %",]
        );
        assert_eq!(MeasuredWeights::new(&Source).losses(), None);
    }
}
