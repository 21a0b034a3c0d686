//! Ops that move, cut, join or convert elements.

use super::check::{Inputs, show};
use crate::{DType, Dim, GraphError, Op, Shape, Value};

pub(super) fn cat(op: &Op, values: &[&Value], axis: usize) -> Result<(DType, Shape), GraphError> {
    // Every input has the same rule, so each is checked as the second of a pair with the first.
    let Some((first, others)) = values.split_first() else {
        return Err(GraphError::InputCount { op: op.name(), expected: "at least 1".to_owned(), found: 0 });
    };
    let alone = [*first];
    let mut total = Inputs::new(op, &alone, &["part 0"], 1)?.axis(0, axis)?.clone();
    for other in others {
        let pair = [*first, *other];
        let inputs = Inputs::new(op, &pair, &["part 0", "a later part"], 2)?;
        inputs.has_dtype(1, first.dtype)?;
        let along = inputs.axis(1, axis)?;
        let rest = |shape: &[Dim]| [&shape[..axis], &shape[axis + 1..]].concat();
        if rest(&first.shape) != rest(&other.shape) {
            let expected = format!("{} but for axis {axis}", show(&first.shape));
            return Err(inputs.wrong(1, expected, show(&other.shape)));
        }
        total = total + along.clone();
    }
    let mut shape = first.shape.clone();
    shape[axis] = total;
    Ok((first.dtype, shape))
}

pub(super) fn slice(
    op: &Op,
    values: &[&Value],
    axis: usize,
    start: &Dim,
    end: &Dim,
) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x"], 1)?;
    let length = inputs.axis(0, axis)?;
    // A difference that is no constant depends on symbols: the verifier knows their ranges.
    let negative = |dim: Dim| dim.as_constant().is_some_and(|value| value < 0);
    if negative(start.clone())
        || negative(end.clone() - start.clone())
        || negative(length.clone() - end.clone())
    {
        return Err(inputs.wrong(
            0,
            format!("axis {axis} to hold {start}..{end}"),
            format!("a length of {length}"),
        ));
    }
    let mut shape = inputs.shape(0).to_vec();
    shape[axis] = end.clone() - start.clone();
    Ok((inputs.dtype(0), shape))
}

pub(super) fn reshape(op: &Op, values: &[&Value], shape: &[Dim]) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x"], 1)?;
    let (Some(from), Some(to)) = (elements(inputs.shape(0)), elements(shape)) else {
        let what = format!("{} to {}: too many elements", show(inputs.shape(0)), show(shape));
        return Err(inputs.error(what));
    };
    if from != to {
        let expected = format!("provably as many elements as {}", show(shape));
        return Err(inputs.wrong(0, expected, show(inputs.shape(0))));
    }
    Ok((inputs.dtype(0), shape.to_vec()))
}

/// The number of elements of a shape: a constant times symbolic factors, sorted, so that equal products of dimensions
/// compare equal. `None` beyond what an `i64` holds or with a negative dimension.
fn elements(shape: &[Dim]) -> Option<(i64, Vec<Dim>)> {
    let mut factors = Vec::new();
    let mut product = 1_i64;
    for dim in shape {
        if let Some(constant) = dim.as_constant() {
            if constant < 0 {
                return None;
            }
            product = product.checked_mul(constant)?;
        } else {
            let (factor, rest) = dim.split_factor();
            product = product.checked_mul(factor)?;
            factors.push(rest);
        }
    }
    factors.sort_unstable();
    Some((product, factors))
}

pub(super) fn transpose(
    op: &Op,
    values: &[&Value],
    permutation: &[usize],
) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x"], 1)?;
    let shape = inputs.shape(0);
    let mut sorted = permutation.to_vec();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..shape.len()) {
        return Err(inputs.wrong(0, format!("as many dimensions as {permutation:?} permutes"), show(shape)));
    }
    Ok((inputs.dtype(0), permutation.iter().map(|&axis| shape[axis].clone()).collect()))
}

pub(super) fn gather(op: &Op, values: &[&Value], axis: usize) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x", "indices"], 2)?;
    inputs.has_dtype(1, DType::I64)?;
    inputs.axis(0, axis)?;
    let mut shape = inputs.shape(0).to_vec();
    shape.splice(axis..=axis, inputs.shape(1).iter().cloned());
    Ok((inputs.dtype(0), shape))
}

pub(super) fn replace_rows(op: &Op, values: &[&Value]) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x", "rows", "indices"], 3)?;
    let dtype = inputs.float(&[0, 1])?;
    inputs.has_dtype(2, DType::I64)?;
    let [batch, seq, width] = inputs.rank(0)?;
    inputs.rank::<2>(1)?;
    inputs.dim(1, 1, width, "the last of x")?;
    inputs.rank::<2>(2)?;
    inputs.dim(2, 0, batch, "the batch of x")?;
    inputs.dim(2, 1, seq, "the positions of x")?;
    Ok((dtype, inputs.shape(0).to_vec()))
}

pub(super) fn cast(op: &Op, values: &[&Value], to: DType) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x"], 1)?;
    Ok((to, inputs.shape(0).to_vec()))
}
