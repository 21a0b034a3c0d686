//! Dtypes and dimensions of layer outputs, by TensorRT's rules.
//!
//! Everything is strongly typed: a layer never converts an operand. A dimension is a number or [`DYNAMIC`]; where two
//! dimensions must agree and one is dynamic, they may agree when the engine runs, so only known numbers are compared.

mod attention;
mod constant;
mod elementwise;
mod matrix;
mod movement;
mod shuffle;

use crate::{DYNAMIC, DataType, Dims, LayerKind, Tensor};

/// `Dims::MAX_DIMS`: more dimensions than this no tensor has.
const MAX_RANK: usize = 8;

/// The dtype and dimensions of an output, or what does not fit.
type Inferred = Result<(DataType, Dims), String>;

/// The dtype and dimensions of a layer's output, or what does not fit and with which operands.
pub(crate) fn infer(kind: &LayerKind, inputs: &[&Tensor]) -> Inferred {
    let inferred = output(kind, inputs).and_then(|(dtype, dims)| {
        check_dims(&dims)?;
        Ok((dtype, dims))
    });
    inferred.map_err(|what| {
        let operands =
            inputs.iter().map(|tensor| format!("{:?} {} {:?}", tensor.name, tensor.dtype, tensor.dims));
        let operands = operands.collect::<Vec<_>>().join(", ");
        if operands.is_empty() { what } else { format!("{what}; operands: {operands}") }
    })
}

fn output(kind: &LayerKind, inputs: &[&Tensor]) -> Inferred {
    match kind {
        LayerKind::Constant(it) => {
            let [] = operands(inputs)?;
            constant::constant(it)
        }
        LayerKind::Activation { .. } => {
            let [x] = operands(inputs)?;
            elementwise::activation(x)
        }
        LayerKind::Unary { function } => {
            let [x] = operands(inputs)?;
            elementwise::unary(*function, x)
        }
        LayerKind::ElementWise { operation } => {
            let [a, b] = operands(inputs)?;
            elementwise::elementwise(*operation, a, b)
        }
        LayerKind::Cast { to } => {
            let [x] = operands(inputs)?;
            Ok((*to, x.dims.clone()))
        }
        LayerKind::Shuffle { first_transpose, reshape, second_transpose } => shuffle::shuffle(
            first_transpose.as_deref(),
            reshape.as_ref(),
            second_transpose.as_deref(),
            inputs,
        ),
        LayerKind::Slice { start, size } => movement::slice(start, size, inputs),
        LayerKind::Concatenation { axis } => movement::concatenation(*axis, inputs),
        LayerKind::MatrixMultiply { op_a, op_b } => {
            let [a, b] = operands(inputs)?;
            matrix::multiply(*op_a, *op_b, a, b)
        }
        LayerKind::Gather { axis } => {
            let [x, indices] = operands(inputs)?;
            movement::gather(*axis, x, indices)
        }
        LayerKind::Reduce { axes, .. } => {
            let [x] = operands(inputs)?;
            matrix::reduce(axes, x)
        }
        LayerKind::SoftMax { axis } => {
            let [x] = operands(inputs)?;
            matrix::softmax(*axis, x)
        }
        LayerKind::Shape => {
            let [x] = operands(inputs)?;
            Ok((DataType::Int64, vec![length(x.dims.len())]))
        }
        LayerKind::Iota { length, dtype } => movement::iota(length, *dtype, inputs),
        LayerKind::Select => {
            let [condition, then, otherwise] = operands(inputs)?;
            elementwise::select(condition, then, otherwise)
        }
        LayerKind::RotaryEmbedding { dim, .. } => {
            let [x, cos, sin, position_ids] = operands(inputs)?;
            attention::rotary_embedding(*dim, x, [cos, sin], position_ids)
        }
        LayerKind::KvCacheUpdate => {
            let [cache, update, write_indices] = operands(inputs)?;
            attention::kv_cache_update(cache, update, write_indices)
        }
        LayerKind::Attention { causal, has_mask, has_kv_lengths, .. } => {
            attention::attention(*causal, *has_mask, *has_kv_lengths, inputs)
        }
    }
}

/// Refuses dimensions that no tensor has.
pub(crate) fn check_dims(dims: &[i64]) -> Result<(), String> {
    if dims.len() > MAX_RANK {
        return Err(format!("{} dimensions {dims:?}: a tensor has at most {MAX_RANK}", dims.len()));
    }
    if let Some(dim) = dims.iter().find(|&&dim| dim < DYNAMIC) {
        return Err(format!(
            "dimension {dim} of {dims:?}: it must be 0 or more, or {DYNAMIC} where it is dynamic"
        ));
    }
    if volume(dims).is_none() && !dims.contains(&DYNAMIC) {
        return Err(format!("dimensions {dims:?}: more elements than can be counted"));
    }
    Ok(())
}

/// Exactly this many operands.
fn operands<'a, const N: usize>(inputs: &[&'a Tensor]) -> Result<[&'a Tensor; N], String> {
    <[&Tensor; N]>::try_from(inputs).map_err(|_| format!("{} operands, {N} are needed", inputs.len()))
}

/// A rank or count as a dimension.
fn length(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// How many elements there are; `None` where a dimension is dynamic or there are too many.
fn volume(dims: &[i64]) -> Option<i64> {
    dims.iter().try_fold(1_i64, |volume, &dim| if dim == DYNAMIC { None } else { volume.checked_mul(dim) })
}

/// The one dimension of two that must be equal when the engine runs.
fn merge(a: i64, b: i64) -> Option<i64> {
    match (a, b) {
        (DYNAMIC, known) | (known, DYNAMIC) => Some(known),
        (a, b) => (a == b).then_some(a),
    }
}

/// The dimension of two of which one is repeated where it is 1. Against a dynamic dimension any number but 1 is what
/// comes of it; with 1 it is not known.
fn broadcast(a: i64, b: i64) -> Option<i64> {
    match (a, b) {
        (1, other) | (other, 1) => Some(other),
        (a, b) => merge(a, b),
    }
}

/// All dimensions of two tensors, of which each may repeat the other's.
fn broadcast_all(a: &[i64], b: &[i64]) -> Result<Dims, String> {
    if a.len() != b.len() {
        return Err(format!("ranks {} and {}: they must be equal", a.len(), b.len()));
    }
    let dims = a.iter().zip(b).enumerate().map(|(axis, (&left, &right))| {
        broadcast(left, right)
            .ok_or_else(|| format!("{left} and {right} on axis {axis}: they must be equal, or one of them 1"))
    });
    dims.collect()
}

fn same_dtype(what: &str, a: &Tensor, b: &Tensor) -> Result<(), String> {
    if a.dtype == b.dtype {
        return Ok(());
    }
    Err(format!("{what} are {} and {}: their dtypes must be equal", a.dtype, b.dtype))
}

fn float(what: &str, tensor: &Tensor) -> Result<(), String> {
    if tensor.dtype.is_float() {
        return Ok(());
    }
    Err(format!("{what} is {}: it must be kFLOAT, kHALF or kBF16", tensor.dtype))
}

fn integer(what: &str, tensor: &Tensor) -> Result<(), String> {
    if tensor.dtype.is_integer() {
        return Ok(());
    }
    Err(format!("{what} is {}: it must be kINT32 or kINT64", tensor.dtype))
}

fn of_dtype(what: &str, tensor: &Tensor, dtype: DataType) -> Result<(), String> {
    if tensor.dtype == dtype {
        return Ok(());
    }
    Err(format!("{what} is {}: it must be {dtype}", tensor.dtype))
}

fn of_rank(what: &str, tensor: &Tensor, rank: usize) -> Result<(), String> {
    if tensor.dims.len() == rank {
        return Ok(());
    }
    Err(format!("{what} has rank {}: it must be {rank}", tensor.dims.len()))
}

fn has_axis(axis: usize, tensor: &Tensor) -> Result<(), String> {
    if axis < tensor.dims.len() {
        return Ok(());
    }
    Err(format!("axis {axis} of a tensor of rank {}", tensor.dims.len()))
}

/// An operand that holds one integer for each of `count` dimensions. TensorRT must know how many there are.
fn shape_operand(what: &str, tensor: &Tensor, count: usize) -> Result<(), String> {
    integer(what, tensor)?;
    of_rank(what, tensor, 1)?;
    if tensor.dims == [length(count)] {
        return Ok(());
    }
    Err(format!("{what} has {} elements: it must have {count}", tensor.dims[0]))
}

/// Two dimensions with names that must be equal when the engine runs.
fn equal(what: &str, a: i64, other: &str, b: i64) -> Result<(), String> {
    if merge(a, b).is_some() {
        return Ok(());
    }
    Err(format!("{what} is {a} and {other} is {b}: they must be equal"))
}
