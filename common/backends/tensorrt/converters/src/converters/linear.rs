//! Matrix products.

use roundhouse_graph::{Dim, Op};
use roundhouse_tensorrt_network::{DataType, ElementWise, MatrixOp, TensorId};

use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

/// `x · weightᵀ + bias`. The weight stays `[N, K]`, as checkpoints have it, and is transposed by the product. The bias is
/// added in the dtype of the product, before the one rounding.
pub(crate) fn linear(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let input = site.input(0)?;
    let dtype = DataType::from(input.dtype);
    let product_dtype = context.product_dtype(dtype);
    // A product is of matrices: a vector is one row.
    let rank = input.shape.len().max(2);
    let x = context.operand_as(site, 0, rank, dtype)?;
    let weight = context.operand_as(site, 1, rank, product_dtype)?;
    let mut y = context.product("matmul", dtype, (x, MatrixOp::None), (weight, MatrixOp::Transpose))?;
    if site.has(2) {
        let bias = context.operand_as(site, 2, rank, product_dtype)?;
        y = context.elementwise("bias", ElementWise::Sum, y, bias)?;
    }
    let output = &site.output().shape;
    if output.len() < rank {
        let mut rows = vec![Dim::constant(1)];
        rows.extend_from_slice(output);
        y = context.reshape("vector", y, &rows, output)?;
    }
    context.store(site, y)
}

pub(crate) fn matmul(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::MatMul { transpose_b } = site.op() else { return Err(site.wrong_converter()) };
    let dtype = DataType::from(site.output().dtype);
    let op_b = if *transpose_b { MatrixOp::Transpose } else { MatrixOp::None };
    let a = context.operand(site, 0)?;
    let b = context.operand(site, 1)?;
    let y = context.product("matmul", dtype, (a, MatrixOp::None), (b, op_b))?;
    context.store(site, y)
}
