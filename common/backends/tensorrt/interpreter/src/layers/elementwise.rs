//! Layers that work element by element: `IActivationLayer`, `IUnaryLayer`, `IElementWiseLayer`, `ICastLayer`,
//! `ISelectLayer`.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use roundhouse_backend_conformance::{Data, Tensor};
use roundhouse_tensorrt_network::{Activation, DataType, ElementWise, Unary};

use crate::elements::{broadcast, broadcast_places, floats, integers, pick};

fn map(x: &Tensor, function: impl Fn(f64) -> f64) -> Result<Tensor, String> {
    let values = floats(x)?.iter().map(|&value| function(f64::from(value)) as f32).collect();
    Ok(Tensor::float(&x.shape, values))
}

pub(super) fn activation(function: Activation, x: &Tensor) -> Result<Tensor, String> {
    map(x, |x| match function {
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::GeluErf => 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2)),
        Activation::GeluTanh => 0.5 * x * (1.0 + (FRAC_2_PI.sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
    })
}

pub(super) fn unary(function: Unary, x: &Tensor) -> Result<Tensor, String> {
    match function {
        Unary::Sqrt => map(x, f64::sqrt),
        Unary::Recip => map(x, f64::recip),
        Unary::Not => {
            Ok(Tensor::int(&x.shape, integers(x)?.iter().map(|&value| i64::from(value == 0)).collect()))
        }
        Unary::IsInf => {
            Ok(Tensor::int(&x.shape, floats(x)?.iter().map(|value| i64::from(value.is_infinite())).collect()))
        }
    }
}

pub(super) fn elementwise(operation: ElementWise, a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    let shape = broadcast(&[&a.shape, &b.shape])?;
    let places = [broadcast_places(&shape, &a.shape), broadcast_places(&shape, &b.shape)];
    let pairs = places[0].iter().zip(&places[1]);
    let data = match (&a.data, &b.data) {
        (Data::Float(a), Data::Float(b)) => of_floats(operation, pairs.map(|(&i, &j)| (a[i], b[j]))),
        (Data::Int(a), Data::Int(b)) => of_integers(operation, pairs.map(|(&i, &j)| (a[i], b[j])))?,
        _ => return Err("floats and integers".to_owned()),
    };
    Ok(Tensor { shape, data })
}

fn of_floats(operation: ElementWise, pairs: impl Iterator<Item = (f32, f32)>) -> Data {
    let function: fn(f32, f32) -> f32 = match operation {
        ElementWise::Sum => |a, b| a + b,
        ElementWise::Prod => |a, b| a * b,
        ElementWise::Sub => |a, b| a - b,
        ElementWise::Div => |a, b| a / b,
        ElementWise::Max => |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) },
        ElementWise::Min => |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.min(b) },
        ElementWise::Less => return truths(pairs, |a, b| a < b),
        ElementWise::Greater => return truths(pairs, |a, b| a > b),
        ElementWise::Equal => return truths(pairs, |a, b| a == b),
        // Inference has refused these for floats.
        ElementWise::And => return truths(pairs, |a, b| a != 0.0 && b != 0.0),
        ElementWise::Or => return truths(pairs, |a, b| a != 0.0 || b != 0.0),
    };
    Data::Float(pairs.map(|(a, b)| function(a, b)).collect())
}

fn of_integers(operation: ElementWise, pairs: impl Iterator<Item = (i64, i64)>) -> Result<Data, String> {
    let function: fn(i64, i64) -> Option<i64> = match operation {
        ElementWise::Sum => i64::checked_add,
        ElementWise::Prod => i64::checked_mul,
        ElementWise::Sub => i64::checked_sub,
        ElementWise::Div => i64::checked_div,
        ElementWise::Max => |a, b| Some(a.max(b)),
        ElementWise::Min => |a, b| Some(a.min(b)),
        ElementWise::Less => return Ok(truths(pairs, |a, b| a < b)),
        ElementWise::Greater => return Ok(truths(pairs, |a, b| a > b)),
        ElementWise::Equal => return Ok(truths(pairs, |a, b| a == b)),
        ElementWise::And => return Ok(truths(pairs, |a, b| a != 0 && b != 0)),
        ElementWise::Or => return Ok(truths(pairs, |a, b| a != 0 || b != 0)),
    };
    let results = pairs.map(|(a, b)| function(a, b).ok_or_else(|| format!("{operation:?} of {a} and {b}")));
    Ok(Data::Int(results.collect::<Result<_, _>>()?))
}

fn truths<T>(pairs: impl Iterator<Item = (T, T)>, function: impl Fn(T, T) -> bool) -> Data {
    Data::Int(pairs.map(|(a, b)| i64::from(function(a, b))).collect())
}

/// Floats to integers are cut towards zero; anything but 0 is true.
pub(super) fn cast(x: &Tensor, to: DataType) -> Result<Tensor, String> {
    let data = match (&x.data, to) {
        (Data::Float(values), _) if to.is_float() => Data::Float(values.clone()),
        (Data::Float(values), DataType::Bool) => {
            Data::Int(values.iter().map(|&value| i64::from(value != 0.0)).collect())
        }
        (Data::Float(values), _) => {
            Data::Int(values.iter().map(|&value| cut(value)).collect::<Result<_, _>>()?)
        }
        (Data::Int(values), _) if to.is_float() => {
            Data::Float(values.iter().map(|&value| value as f32).collect())
        }
        (Data::Int(values), DataType::Bool) => {
            Data::Int(values.iter().map(|&value| i64::from(value != 0)).collect())
        }
        (Data::Int(values), _) => Data::Int(values.clone()),
    };
    Ok(Tensor { shape: x.shape.clone(), data })
}

fn cut(value: f32) -> Result<i64, String> {
    // Both bounds are exact in fp32; the upper is one too large.
    if value >= i64::MIN as f32 && value < i64::MAX as f32 {
        Ok(value.trunc() as i64)
    } else {
        Err(format!("{value} as an integer"))
    }
}

pub(super) fn select(condition: &Tensor, then: &Tensor, otherwise: &Tensor) -> Result<Tensor, String> {
    let shape = broadcast(&[&condition.shape, &then.shape, &otherwise.shape])?;
    let conditions = pick(&condition.data, &broadcast_places(&shape, &condition.shape));
    let Data::Int(conditions) = conditions else {
        return Err("a condition of floats".to_owned());
    };
    let thens = pick(&then.data, &broadcast_places(&shape, &then.shape));
    let otherwises = pick(&otherwise.data, &broadcast_places(&shape, &otherwise.shape));
    let data = match (thens, otherwises) {
        (Data::Float(thens), Data::Float(otherwises)) => Data::Float(choose(&conditions, thens, otherwises)),
        (Data::Int(thens), Data::Int(otherwises)) => Data::Int(choose(&conditions, thens, otherwises)),
        _ => return Err("floats and integers".to_owned()),
    };
    Ok(Tensor { shape, data })
}

fn choose<T>(conditions: &[i64], thens: Vec<T>, otherwises: Vec<T>) -> Vec<T> {
    let choices = conditions.iter().zip(thens.into_iter().zip(otherwises));
    choices.map(|(&condition, (then, otherwise))| if condition != 0 { then } else { otherwise }).collect()
}
