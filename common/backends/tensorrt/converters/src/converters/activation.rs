//! SiLU, sigmoid, GELU, soft caps.

use roundhouse_graph::{GeluApproximation, Op};
use roundhouse_tensorrt_network::{Activation, ElementWise, TensorId};

use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

/// `x · sigmoid(x)`.
pub(crate) fn silu(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let x = context.float(site, 0)?;
    let y = silu_of(context, x)?;
    context.store(site, y)
}

pub(crate) fn sigmoid(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let x = context.float(site, 0)?;
    let y = context.activation("sigmoid", Activation::Sigmoid, x)?;
    context.store(site, y)
}

/// `silu(gate) · up`.
pub(crate) fn silu_mul(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let gate = context.float(site, 0)?;
    let up = context.float(site, 1)?;
    let gate = silu_of(context, gate)?;
    let y = context.elementwise("mul", ElementWise::Prod, gate, up)?;
    context.store(site, y)
}

/// `x · sigmoid(x)`.
pub(crate) fn silu_of(context: &mut Context<'_>, x: TensorId) -> Result<TensorId, ConvertError> {
    let sigmoid = context.activation("sigmoid", Activation::Sigmoid, x)?;
    context.elementwise("silu", ElementWise::Prod, x, sigmoid)
}

pub(crate) fn gelu(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::Gelu { approximation } = site.op() else { return Err(site.wrong_converter()) };
    let function = match approximation {
        GeluApproximation::None => Activation::GeluErf,
        GeluApproximation::Tanh => Activation::GeluTanh,
    };
    let x = context.float(site, 0)?;
    let y = context.activation("gelu", function, x)?;
    context.store(site, y)
}

pub(crate) fn soft_cap(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::SoftCap { cap } = site.op() else { return Err(site.wrong_converter()) };
    let x = context.float(site, 0)?;
    let y = soft_cap_of(context, x, *cap)?;
    context.store(site, y)
}

/// `cap · tanh(x / cap)`.
pub(crate) fn soft_cap_of(
    context: &mut Context<'_>,
    x: TensorId,
    cap: f32,
) -> Result<TensorId, ConvertError> {
    let (rank, dtype) = context.form(x);
    let divisor = context.number("soft_cap_divisor", cap, rank, dtype)?;
    let x = context.elementwise("soft_cap_div", ElementWise::Div, x, divisor)?;
    let x = context.activation("tanh", Activation::Tanh, x)?;
    context.times("soft_cap", x, cap)
}
