//! `IMatrixMultiplyLayer`.

use roundhouse_backend_conformance::Tensor;
use roundhouse_tensorrt_network::MatrixOp;

use crate::elements::{broadcast, floats, places, strides, volume};

/// One side of a product: the leading dimensions, rows and columns after its operation, and how far apart they are.
struct Side<'a> {
    values: &'a [f32],
    leading: &'a [usize],
    size: [usize; 2],
    distance: [usize; 2],
}

impl<'a> Side<'a> {
    fn new(op: MatrixOp, tensor: &'a Tensor) -> Result<Self, String> {
        let Some((leading, &[rows, columns])) = tensor.shape.split_last_chunk::<2>() else {
            return Err(format!("a matrix of shape {:?}", tensor.shape));
        };
        let (size, distance) = match op {
            MatrixOp::None => ([rows, columns], [columns, 1]),
            MatrixOp::Transpose => ([columns, rows], [1, columns]),
        };
        Ok(Self { values: floats(tensor)?, leading, size, distance })
    }

    /// Where each matrix begins, for leading dimensions to which its own broadcast.
    fn starts(&self, leading: &[usize]) -> Vec<usize> {
        let matrix = self.size[0] * self.size[1];
        let repeated = strides(self.leading).into_iter().zip(self.leading);
        let distances: Vec<usize> =
            repeated.map(|(stride, &dim)| if dim == 1 { 0 } else { stride * matrix }).collect();
        places(leading, &distances, 0)
    }
}

pub(super) fn multiply(op_a: MatrixOp, op_b: MatrixOp, a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    let (a, b) = (Side::new(op_a, a)?, Side::new(op_b, b)?);
    let ([rows, inner], [inner_b, columns]) = (a.size, b.size);
    if inner != inner_b {
        return Err(format!("inner dimensions {inner} and {inner_b}"));
    }
    let leading = broadcast(&[a.leading, b.leading])?;
    let shape = [&leading[..], &[rows, columns]].concat();
    let mut out = Vec::with_capacity(volume(&shape)?);
    for (start_a, start_b) in a.starts(&leading).into_iter().zip(b.starts(&leading)) {
        for row in 0..rows {
            let row = start_a + row * a.distance[0];
            for column in 0..columns {
                let column = start_b + column * b.distance[1];
                let product = |k: usize| {
                    f64::from(a.values[row + k * a.distance[1]])
                        * f64::from(b.values[column + k * b.distance[0]])
                };
                out.push((0..inner).map(product).sum::<f64>() as f32);
            }
        }
    }
    Ok(Tensor::float(&shape, out))
}
