//! Layers that sum: `IMatrixMultiplyLayer`, `IReduceLayer`, `ISoftMaxLayer`.

use super::{Inferred, broadcast_all, equal, float, has_axis, same_dtype};
use crate::{DataType, MatrixOp, Tensor};

pub(super) fn multiply(op_a: MatrixOp, op_b: MatrixOp, a: &Tensor, b: &Tensor) -> Inferred {
    same_dtype("the matrices", a, b)?;
    float("a matrix", a)?;
    let (leading_a, [rows, inner_a]) = matrix(op_a, a)?;
    let (leading_b, [inner_b, columns]) = matrix(op_b, b)?;
    equal("the inner dimension of the first matrix", inner_a, "that of the second", inner_b)?;
    let mut dims = broadcast_all(leading_a, leading_b)
        .map_err(|what| format!("dimensions before the matrices: {what}"))?;
    dims.extend([rows, columns]);
    Ok((a.dtype, dims))
}

/// The dimensions before the matrix, and its rows and columns.
fn matrix(op: MatrixOp, tensor: &Tensor) -> Result<(&[i64], [i64; 2]), String> {
    let Some((leading, &[rows, columns])) = tensor.dims.split_last_chunk::<2>() else {
        return Err(format!("a matrix of rank {}: it must be 2 or more", tensor.dims.len()));
    };
    Ok(match op {
        MatrixOp::None => (leading, [rows, columns]),
        MatrixOp::Transpose => (leading, [columns, rows]),
    })
}

pub(super) fn reduce(axes: &[usize], x: &Tensor) -> Inferred {
    if x.dtype == DataType::Bool {
        return Err("the operand is kBOOL: it must be numbers".to_owned());
    }
    if axes.is_empty() {
        return Err("no axes: one or more are needed".to_owned());
    }
    let mut dims = x.dims.clone();
    for (index, &axis) in axes.iter().enumerate() {
        has_axis(axis, x)?;
        if axes[..index].contains(&axis) {
            return Err(format!("axis {axis} twice"));
        }
        dims[axis] = 1;
    }
    Ok((x.dtype, dims))
}

pub(super) fn softmax(axis: usize, x: &Tensor) -> Inferred {
    float("the operand", x)?;
    has_axis(axis, x)?;
    Ok((x.dtype, x.dims.clone()))
}
