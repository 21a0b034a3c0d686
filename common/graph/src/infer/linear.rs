//! Embedding and matrix products.

use super::check::{Inputs, show};
use crate::{DType, GraphError, Op, Shape, Value};

pub(super) fn embedding(op: &Op, values: &[&Value]) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["ids", "table"], 2)?;
    inputs.has_dtype(0, DType::I64)?;
    let [batch, seq] = inputs.rank(0)?;
    let [_, hidden] = inputs.rank(1)?;
    let dtype = inputs.float(&[1])?;
    Ok((dtype, vec![batch.clone(), seq.clone(), hidden.clone()]))
}

pub(super) fn linear(op: &Op, values: &[&Value]) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x", "weight", "bias"], 2)?;
    let dtype = inputs.float(&[0, 1, 2])?;
    let (features, leading) = inputs.last(0)?;
    let [out_features, _] = inputs.rank(1)?;
    inputs.dim(1, 1, features, "the last of x")?;
    if inputs.has(2) {
        inputs.rank::<1>(2)?;
        inputs.dim(2, 0, out_features, "the first of weight")?;
    }
    let mut shape = leading.to_vec();
    shape.push(out_features.clone());
    Ok((dtype, shape))
}

pub(super) fn matmul(op: &Op, values: &[&Value], transpose_b: bool) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["a", "b"], 2)?;
    let dtype = inputs.float(&[0, 1])?;
    let a = inputs.at_least_rank(0, 2)?;
    let b = inputs.at_least_rank(1, 2)?;
    let leading = a.len() - 2;
    if b.len() != a.len() || a[..leading] != b[..leading] {
        let expected = format!("the leading dimensions {} of a", show(&a[..leading]));
        return Err(inputs.wrong(1, expected, show(b)));
    }
    let (inner, columns) = if transpose_b { (leading + 1, leading) } else { (leading, leading + 1) };
    inputs.dim(1, inner, &a[leading + 1], "the last of a")?;
    let mut shape = a[..=leading].to_vec();
    shape.push(b[columns].clone());
    Ok((dtype, shape))
}
