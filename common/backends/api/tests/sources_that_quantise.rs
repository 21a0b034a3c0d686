//! Matrices that a source has quantised itself.

use std::ops::Range;

use parking_lot::Mutex;
use roundhouse_backend::{QuantizationLoss, WeightError, WeightSource, evaluate_rows};
use roundhouse_graph::{Quantization, QuantizedLinearAttributes, QuantizedPart, WeightExpr, WeightFormat};

/// Matrices `[2, 3]`, the columns of each row 0, 1 and 2. Has quantised `a`, to ones; hears what was lost.
#[derive(Default)]
struct Source {
    measured: Mutex<Vec<(Range<u64>, f64)>>,
}

impl WeightSource for Source {
    fn shape(&self, _: &str) -> Result<Vec<u64>, WeightError> {
        Ok(vec![2, 3])
    }

    fn names(&self) -> Vec<String> {
        ["a", "b"].map(str::to_owned).to_vec()
    }

    fn read_rows(&self, _: &str, _: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        out.as_chunks_mut().0.fill([0.0, 1.0, 2.0]);
        Ok(())
    }

    fn quantized_rows(
        &self,
        matrix: &WeightExpr,
        _: QuantizedLinearAttributes,
        _: QuantizedPart,
        _: Range<u64>,
        out: &mut [f32],
    ) -> Result<Option<QuantizationLoss>, WeightError> {
        let is_made = matrix.tensors() == ["a"];
        if is_made {
            out.fill(1.0);
        }
        Ok(is_made.then_some(QuantizationLoss { squared_error: 7.0, squared_norm: 9.0 }))
    }

    fn measure(&self, _: &WeightExpr, rows: Range<u64>, lost: QuantizationLoss) {
        self.measured.lock().push((rows, lost.squared_error));
    }
}

#[test]
fn what_a_source_has_quantised_itself_is_taken_and_measured() {
    let quantization = Quantization { format: WeightFormat::Int8, group_size: 3 };
    let attributes = QuantizedLinearAttributes { quantization, has_offsets: false };
    let source = Source::default();
    let evaluate = |name: &str, part, width| {
        let of = Box::new(WeightExpr::tensor(name));
        let mut out = vec![f32::NAN; width];
        evaluate_rows(&source, &WeightExpr::Quantized { of, attributes, part }, 0..1, &mut out).unwrap();
        out
    };
    assert_eq!(evaluate("a", QuantizedPart::Values, 3), [1.0; 3]);
    assert_eq!(evaluate("a", QuantizedPart::Scales, 1), [1.0]);
    // 1 of 2 is half of 127 steps, and ties go to the even one.
    assert_eq!(evaluate("b", QuantizedPart::Values, 3), [0.0, 64.0, 127.0]);
    let measured = source.measured.lock();
    assert_eq!((measured.len(), &measured[0]), (2, &(0..1, 7.0)));
}
