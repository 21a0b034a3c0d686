//! Layers that work element by element: `IActivationLayer`, `IUnaryLayer`, `IElementWiseLayer`, `ISelectLayer`.

use super::{Inferred, broadcast_all, float, of_dtype, same_dtype};
use crate::{DataType, ElementWise, Tensor, Unary};

pub(super) fn activation(x: &Tensor) -> Inferred {
    float("the operand", x)?;
    Ok((x.dtype, x.dims.clone()))
}

pub(super) fn unary(function: Unary, x: &Tensor) -> Inferred {
    let dtype = match function {
        Unary::Sqrt | Unary::Recip => {
            float("the operand", x)?;
            x.dtype
        }
        Unary::Not => {
            of_dtype("the operand", x, DataType::Bool)?;
            DataType::Bool
        }
        Unary::IsInf => {
            float("the operand", x)?;
            DataType::Bool
        }
    };
    Ok((dtype, x.dims.clone()))
}

pub(super) fn elementwise(operation: ElementWise, a: &Tensor, b: &Tensor) -> Inferred {
    same_dtype("the operands", a, b)?;
    let truth = a.dtype == DataType::Bool;
    let dtype = match operation {
        ElementWise::And | ElementWise::Or if truth => DataType::Bool,
        ElementWise::And | ElementWise::Or => {
            return Err(format!("the operands are {}: they must be kBOOL", a.dtype));
        }
        ElementWise::Equal => DataType::Bool,
        _ if truth => return Err("the operands are kBOOL: they must be numbers".to_owned()),
        ElementWise::Less | ElementWise::Greater => DataType::Bool,
        ElementWise::Sum
        | ElementWise::Prod
        | ElementWise::Sub
        | ElementWise::Div
        | ElementWise::Max
        | ElementWise::Min => a.dtype,
    };
    Ok((dtype, broadcast_all(&a.dims, &b.dims)?))
}

pub(super) fn select(condition: &Tensor, then: &Tensor, otherwise: &Tensor) -> Inferred {
    of_dtype("the condition", condition, DataType::Bool)?;
    same_dtype("the choices", then, otherwise)?;
    let choices = broadcast_all(&then.dims, &otherwise.dims)?;
    Ok((then.dtype, broadcast_all(&condition.dims, &choices)?))
}
