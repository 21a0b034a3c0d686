//! Embedding and matrix products.

use super::check::{Inputs, show};
use crate::{DType, Dim, ExpertAttributes, GraphError, Op, QuantizedLinearAttributes, Shape, Value};

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

pub(super) fn quantized_linear(
    op: &Op,
    values: &[&Value],
    attributes: QuantizedLinearAttributes,
) -> Result<(DType, Shape), GraphError> {
    let names: &[&str] = if attributes.has_offsets {
        &["x", "weight", "scales", "offsets", "bias"]
    } else {
        &["x", "weight", "scales", "bias"]
    };
    let bias = names.len() - 1;
    let inputs = Inputs::new(op, values, names, bias)?;
    let dtype = inputs.float(&[0, bias])?;
    inputs.has_dtype(1, DType::U8)?;
    let (features, leading) = inputs.last(0)?;
    let [out_features, _] = inputs.rank(1)?;
    let (format, group_size) =
        (attributes.quantization.format, i64::from(attributes.quantization.group_size));
    let groups = features.as_constant().filter(|features| group_size > 0 && features % group_size == 0);
    let Some(groups) = groups.map(|features| features / group_size) else {
        return Err(
            inputs.error(format!("attribute group_size: {group_size} does not divide the {features} of x"))
        );
    };
    let bits = i64::from(format.bits());
    if group_size * bits % 8 != 0 {
        return Err(
            inputs.error(format!("attribute group_size: {group_size} of {bits} bits are no whole bytes"))
        );
    }
    inputs.dim(1, 1, &Dim::constant(groups * group_size * bits / 8), "the bytes of a row")?;
    inputs.float(if attributes.has_offsets { &[2, 3] } else { &[2] })?;
    for index in 2..bias {
        inputs.rank::<2>(index)?;
        inputs.dim(index, 0, out_features, "the first of weight")?;
        inputs.dim(index, 1, &Dim::constant(groups), "the groups of a row")?;
    }
    if inputs.has(bias) {
        inputs.rank::<1>(bias)?;
        inputs.dim(bias, 0, out_features, "the first of weight")?;
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

pub(super) fn mixture_of_experts(
    op: &Op,
    values: &[&Value],
    attributes: ExpertAttributes,
) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x", "router_logits", "gate_up", "down"], 4)?;
    let dtype = inputs.float(&[0, 1, 2, 3])?;
    let [batch, seq, hidden] = inputs.rank(0)?;
    let [_, _, experts] = inputs.rank(1)?;
    inputs.dim(1, 0, batch, "the first of x")?;
    inputs.dim(1, 1, seq, "the second of x")?;
    let Some(count) = experts.as_constant().filter(|&count| count > 0) else {
        return Err(inputs.wrong(1, "a known number of experts", experts));
    };
    if attributes.top_k == 0 || i64::from(attributes.top_k) > count {
        let found = attributes.top_k;
        return Err(inputs.error(format!("attribute top_k: expected 1 to {count}, found {found}")));
    }
    inputs.rank::<2>(2)?;
    let [_, intermediate] = inputs.rank(3)?;
    inputs.dim(2, 0, &intermediate.times(2 * count), "gate and up of every expert")?;
    inputs.dim(2, 1, hidden, "the last of x")?;
    let rows: Dim = hidden.times(count);
    inputs.dim(3, 0, &rows, "the last of x for every expert")?;
    Ok((dtype, inputs.shape(0).to_vec()))
}
