//! Ops whose output has the shape of an input: activations, sums, norms, softmax.

use super::check::{Inputs, show};
use crate::{DType, Dim, GraphError, Op, Shape, Value};

pub(super) fn unary(
    op: &Op,
    values: &[&Value],
    numbers: &[(&str, f32)],
) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x"], 1)?;
    for (attribute, value) in numbers {
        inputs.finite(attribute, *value)?;
    }
    Ok((inputs.float(&[0])?, inputs.shape(0).to_vec()))
}

pub(super) fn soft_cap(op: &Op, values: &[&Value], cap: f32) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x"], 1)?;
    inputs.positive("cap", cap)?;
    Ok((inputs.float(&[0])?, inputs.shape(0).to_vec()))
}

pub(super) fn binary(op: &Op, values: &[&Value]) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["a", "b"], 2)?;
    let dtype = inputs.float(&[0, 1])?;
    let (a, b) = (inputs.shape(0), inputs.shape(1));
    let rank = a.len().max(b.len());
    let one = Dim::constant(1);
    // Dimension `axis` of the output, counted from its first, where `shape` has one.
    let aligned = |shape: &'_ [Dim], axis: usize| {
        (axis + shape.len())
            .checked_sub(rank)
            .and_then(|own| shape.get(own).cloned())
            .unwrap_or_else(|| one.clone())
    };
    let mut shape = Vec::with_capacity(rank);
    for axis in 0..rank {
        let (from_a, from_b) = (aligned(a, axis), aligned(b, axis));
        if from_a == from_b || from_b == one {
            shape.push(from_a);
        } else if from_a == one {
            shape.push(from_b);
        } else {
            return Err(inputs.wrong(1, format!("a shape that broadcasts with {}", show(a)), show(b)));
        }
    }
    Ok((dtype, shape))
}

pub(super) fn silu_mul(op: &Op, values: &[&Value]) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["gate", "up"], 2)?;
    let dtype = inputs.float(&[0, 1])?;
    inputs.last(0)?;
    if inputs.shape(0) != inputs.shape(1) {
        return Err(inputs.wrong(
            1,
            format!("the shape {} of gate", show(inputs.shape(0))),
            show(inputs.shape(1)),
        ));
    }
    Ok((dtype, inputs.shape(0).to_vec()))
}

/// RMS norm and layer norm: `names` are `x`, `weight` and, where the op has one, an optional `bias`.
pub(super) fn norm(
    op: &Op,
    values: &[&Value],
    epsilon: f32,
    names: &'static [&'static str],
) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, names, 2)?;
    if !(epsilon.is_finite() && epsilon >= 0.0) {
        return Err(inputs.error(format!("attribute epsilon: expected zero or more, found {epsilon}")));
    }
    let dtype = inputs.float(&[0, 1, 2])?;
    let (hidden, _) = inputs.last(0)?;
    for index in [1, 2].into_iter().filter(|&index| inputs.has(index)) {
        inputs.rank::<1>(index)?;
        inputs.dim(index, 0, hidden, "the last of x")?;
    }
    Ok((dtype, inputs.shape(0).to_vec()))
}

pub(super) fn softmax(op: &Op, values: &[&Value], axis: usize) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x"], 1)?;
    inputs.axis(0, axis)?;
    Ok((inputs.float(&[0])?, inputs.shape(0).to_vec()))
}
