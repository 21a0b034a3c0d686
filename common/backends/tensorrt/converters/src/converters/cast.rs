//! Conversions of dtype.

use roundhouse_graph::{DType, Op};
use roundhouse_tensorrt_network::{DataType, ElementWise, LayerKind, TensorId, Unary};

use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

/// Whether this is the truth value of numbers, which is `x ≠ 0`.
fn is_truth(site: &Site<'_>) -> Result<bool, ConvertError> {
    let Op::Cast { to } = site.op() else { return Err(site.wrong_converter()) };
    Ok(*to == DType::Bool && site.input(0)?.dtype != DType::Bool)
}

pub(crate) fn validate(site: &Site<'_>) -> Result<(), String> {
    if is_truth(site).map_err(|error| error.to_string())? && site.output().shape.is_empty() {
        return Err("the truth value of a scalar: kNOT takes none".to_owned());
    }
    Ok(())
}

/// `ICastLayer`, but to truth values: TensorRT does not say what it makes of fractions.
pub(crate) fn cast(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let x = context.operand(site, 0)?;
    if !is_truth(site)? {
        return context.layer("cast", LayerKind::Cast { to: DataType::from(site.output().dtype) }, &[x]);
    }
    let (rank, dtype) = context.form(x);
    let zero = match dtype {
        DataType::Int32 | DataType::Int64 | DataType::Bool => context.integer("zero", 0, rank)?,
        DataType::Float | DataType::Half | DataType::Bf16 => context.number("zero", 0.0, rank, dtype)?,
    };
    let is_zero = context.elementwise("is_zero", ElementWise::Equal, x, zero)?;
    context.unary("not", Unary::Not, is_zero)
}
