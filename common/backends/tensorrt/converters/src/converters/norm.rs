//! RMS norm and layer norm, over the last axis, in fp32.

use roundhouse_graph::Op;
use roundhouse_tensorrt_network::{DataType, ElementWise, Reduce, TensorId, Unary};

use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

/// `x / sqrt(mean(x²) + epsilon) · weight`, or `· (1 + weight)`.
pub(crate) fn rms_norm(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::RmsNorm { epsilon, unit_offset } = site.op() else { return Err(site.wrong_converter()) };
    let x = context.float(site, 0)?;
    let normed = divide_by_root_mean_square(context, x, *epsilon)?;
    let (rank, _) = context.form(x);
    let mut weight = context.operand_as(site, 1, rank, DataType::Float)?;
    if *unit_offset {
        weight = context.plus("offset", weight, 1.0)?;
    }
    let y = context.elementwise("weight", ElementWise::Prod, normed, weight)?;
    context.store(site, y)
}

/// `(x − mean(x)) / sqrt(variance(x) + epsilon) · weight + bias`, the variance being the mean of squared differences.
pub(crate) fn layer_norm(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::LayerNorm { epsilon } = site.op() else { return Err(site.wrong_converter()) };
    let x = context.float(site, 0)?;
    let (rank, _) = context.form(x);
    let mean = context.reduce("mean", Reduce::Avg, rank.saturating_sub(1), x)?;
    let centred = context.elementwise("centred", ElementWise::Sub, x, mean)?;
    let normed = divide_by_root_mean_square(context, centred, *epsilon)?;
    let weight = context.operand_as(site, 1, rank, DataType::Float)?;
    let mut y = context.elementwise("weight", ElementWise::Prod, normed, weight)?;
    if site.has(2) {
        let bias = context.operand_as(site, 2, rank, DataType::Float)?;
        y = context.elementwise("bias", ElementWise::Sum, y, bias)?;
    }
    context.store(site, y)
}

/// `x / sqrt(mean(x²) + epsilon)`.
fn divide_by_root_mean_square(
    context: &mut Context<'_>,
    x: TensorId,
    epsilon: f32,
) -> Result<TensorId, ConvertError> {
    let (rank, _) = context.form(x);
    let square = context.elementwise("square", ElementWise::Prod, x, x)?;
    let mean_square = context.reduce("mean_square", Reduce::Avg, rank.saturating_sub(1), square)?;
    let sum = context.plus("epsilon", mean_square, epsilon)?;
    let root = context.unary("sqrt", Unary::Sqrt, sum)?;
    let factor = context.unary("recip", Unary::Recip, root)?;
    context.elementwise("normed", ElementWise::Prod, x, factor)
}
