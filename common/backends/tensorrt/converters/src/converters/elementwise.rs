//! Sums, products and scales.

use roundhouse_graph::Op;
use roundhouse_tensorrt_network::{DataType, ElementWise, TensorId};

use crate::ConvertError;
use crate::context::{Context, expanded};
use crate::reshape::plan;
use crate::site::Site;

/// Dimensions that an operand lacks can be put in front of it.
pub(crate) fn validate_broadcast(site: &Site<'_>) -> Result<(), String> {
    let rank = site.output().shape.len();
    let shapes = site.node.inputs.iter().map(|&id| &site.graph.value(id).shape);
    for shape in shapes.filter(|shape| shape.len() < rank) {
        plan(shape, &expanded(shape, rank), site.graph.symbols())?;
    }
    Ok(())
}

pub(crate) fn add(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    binary(context, site, "add", ElementWise::Sum)
}

pub(crate) fn mul(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    binary(context, site, "mul", ElementWise::Prod)
}

/// In the values' dtype: one operation rounds once. TensorRT broadcasts dimensions of 1, between equal ranks only.
fn binary(
    context: &mut Context<'_>,
    site: &Site<'_>,
    what: &str,
    operation: ElementWise,
) -> Result<TensorId, ConvertError> {
    let rank = site.output().shape.len();
    let dtype = DataType::from(site.output().dtype);
    let a = context.operand_as(site, 0, rank, dtype)?;
    let b = context.operand_as(site, 1, rank, dtype)?;
    context.elementwise(what, operation, a, b)
}

/// In fp32: the factor need not be a number of the values' dtype.
pub(crate) fn scale(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::Scale { factor } = site.op() else { return Err(site.wrong_converter()) };
    let x = context.float(site, 0)?;
    let y = context.times("scale", x, *factor)?;
    context.store(site, y)
}
