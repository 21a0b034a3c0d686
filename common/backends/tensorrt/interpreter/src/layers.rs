//! What each layer computes.

mod attention;
mod elementwise;
mod matrix;
mod movement;
mod normalization;
mod shuffle;

use roundhouse_backend_conformance::Tensor;
use roundhouse_tensorrt_network as network;
use roundhouse_tensorrt_network::LayerKind;

/// An operand of a layer.
pub(crate) struct Operand<'a> {
    /// What the network says of it.
    pub declared: &'a network::Tensor,
    /// What it is in this run.
    pub value: &'a Tensor,
}

/// What a layer makes of its operands.
pub(crate) fn compute(kind: &LayerKind, operands: &[Operand<'_>]) -> Result<Tensor, String> {
    match kind {
        LayerKind::Constant(_) => Err("a constant is not computed".to_owned()),
        LayerKind::Activation { function } => {
            let [x] = exactly(operands)?;
            elementwise::activation(*function, x.value)
        }
        LayerKind::Unary { function } => {
            let [x] = exactly(operands)?;
            elementwise::unary(*function, x.value)
        }
        LayerKind::ElementWise { operation } => {
            let [a, b] = exactly(operands)?;
            elementwise::elementwise(*operation, a.value, b.value)
        }
        LayerKind::Cast { to } => {
            let [x] = exactly(operands)?;
            elementwise::cast(x.value, *to)
        }
        LayerKind::Select => {
            let [condition, then, otherwise] = exactly(operands)?;
            elementwise::select(condition.value, then.value, otherwise.value)
        }
        LayerKind::Shuffle { first_transpose, reshape, second_transpose } => {
            let (x, shape) = first(operands)?;
            let shape = shape.first().map(|operand| operand.value);
            shuffle::shuffle(
                first_transpose.as_deref(),
                reshape.as_ref(),
                second_transpose.as_deref(),
                x.value,
                shape,
            )
        }
        LayerKind::Slice { start, size } => {
            let (x, given) = first(operands)?;
            movement::slice(start, size, x.value, given)
        }
        LayerKind::Concatenation { axis } => movement::concatenation(*axis, operands),
        LayerKind::Gather { axis } => {
            let [x, indices] = exactly(operands)?;
            movement::gather(*axis, x, indices.value)
        }
        LayerKind::Shape => {
            let [x] = exactly(operands)?;
            movement::shape(x.value)
        }
        LayerKind::Iota { length, dtype } => movement::iota(length, *dtype, operands),
        LayerKind::MatrixMultiply { op_a, op_b } => {
            let [a, b] = exactly(operands)?;
            matrix::multiply(*op_a, *op_b, a.value, b.value)
        }
        LayerKind::Reduce { operation, axes } => {
            let [x] = exactly(operands)?;
            normalization::reduce(*operation, axes, x.value)
        }
        LayerKind::SoftMax { axis } => {
            let [x] = exactly(operands)?;
            normalization::softmax(*axis, x.value)
        }
        LayerKind::RotaryEmbedding { interleaved, dim } => {
            let [x, cos, sin, position_ids] = exactly(operands)?;
            attention::rotary_embedding(
                *interleaved,
                *dim,
                x.value,
                [cos.value, sin.value],
                position_ids.value,
            )
        }
        LayerKind::KvCacheUpdate => {
            let [cache, update, write_indices] = exactly(operands)?;
            attention::kv_cache_update(cache.value, update.value, write_indices.value)
        }
        LayerKind::Attention { causal, has_mask, has_kv_lengths, .. } => {
            let ([query, key, value], rest) =
                operands.split_first_chunk::<3>().ok_or("3 operands or more are needed")?;
            let mut rest = rest.iter().map(|operand| operand.value);
            let mask = if *has_mask { rest.next() } else { None };
            let kv_lengths = if *has_kv_lengths { rest.next() } else { None };
            attention::attention(*causal, [query.value, key.value, value.value], mask, kv_lengths)
        }
    }
}

/// This many operands, as the network inferred already.
fn exactly<'a, 'b, const N: usize>(operands: &'a [Operand<'b>]) -> Result<&'a [Operand<'b>; N], String> {
    operands.try_into().map_err(|_| format!("{} operands, {N} are needed", operands.len()))
}

fn first<'a, 'b>(operands: &'a [Operand<'b>]) -> Result<(&'a Operand<'b>, &'a [Operand<'b>]), String> {
    operands.split_first().ok_or_else(|| "no operands, one or more are needed".to_owned())
}
