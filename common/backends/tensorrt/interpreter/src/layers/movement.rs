//! Layers that copy elements or count: `ISliceLayer`, `IConcatenationLayer`, `IGatherLayer`, `IShapeLayer`, `IFillLayer`.

use roundhouse_backend_conformance::{Data, Tensor};
use roundhouse_tensorrt_network::{DYNAMIC, DataType, FillDims, SliceOperand};

use super::Operand;
use crate::elements::{around, integers, pick, places, strides, volume};

/// `SampleMode::kSTRICT_BOUNDS`: out of bounds is an error.
pub(super) fn slice(
    start: &SliceOperand,
    size: &SliceOperand,
    x: &Tensor,
    given: &[Operand<'_>],
) -> Result<Tensor, String> {
    let mut given = given.iter();
    let start = indices("start", start, &mut given, &x.shape)?;
    let size = indices("size", size, &mut given, &x.shape)?;
    for ((&start, &size), &dim) in start.iter().zip(&size).zip(&x.shape) {
        if start.checked_add(size).is_none_or(|end| end > dim) {
            return Err(format!("{size} elements from {start} on of {dim}"));
        }
    }
    let strides = strides(&x.shape);
    let base = start.iter().zip(&strides).map(|(start, stride)| start * stride).sum();
    let data = pick(&x.data, &places(&size, &strides, base));
    Ok(Tensor { shape: size, data })
}

fn indices<'a, 'b: 'a>(
    what: &str,
    operand: &SliceOperand,
    given: &mut impl Iterator<Item = &'a Operand<'b>>,
    shape: &[usize],
) -> Result<Vec<usize>, String> {
    let values = match operand {
        SliceOperand::Static(dims) => dims,
        SliceOperand::Input { expected } => {
            let values = integers(given.next().ok_or_else(|| format!("the {what} is not there"))?.value)?;
            let fits = |(&expected, &value): (&i64, &i64)| expected == DYNAMIC || expected == value;
            if values.len() != expected.len() || !expected.iter().zip(values).all(fits) {
                return Err(format!("the {what} is {values:?}: {expected:?} is expected"));
            }
            values
        }
    };
    if values.len() != shape.len() {
        return Err(format!("the {what} is {values:?} for the shape {shape:?}"));
    }
    let index = |&value| usize::try_from(value).map_err(|_| format!("the {what} is {values:?}"));
    values.iter().map(index).collect()
}

pub(super) fn concatenation(axis: usize, operands: &[Operand<'_>]) -> Result<Tensor, String> {
    let tensors: Vec<&Tensor> = operands.iter().map(|operand| operand.value).collect();
    let mut shape = tensors.first().ok_or("nothing to join")?.shape.clone();
    shape[axis] = 0;
    for tensor in &tensors {
        let alike = |(at, (&dim, &other)): (usize, (&usize, &usize))| at == axis || dim == other;
        if tensor.shape.len() != shape.len() || !tensor.shape.iter().zip(&shape).enumerate().all(alike) {
            let shapes: Vec<_> = tensors.iter().map(|tensor| &tensor.shape).collect();
            return Err(format!("shapes {shapes:?} joined along axis {axis}"));
        }
        shape[axis] += tensor.shape[axis];
    }
    volume(&shape)?;
    let [before, ..] = around(&shape, axis);
    let data = if tensors.iter().all(|tensor| matches!(tensor.data, Data::Float(_))) {
        Data::Float(join(before, tensors.iter().map(|tensor| tensor.floats()).collect()))
    } else {
        Data::Int(join(before, tensors.iter().map(|tensor| integers(tensor)).collect::<Result<_, _>>()?))
    };
    Ok(Tensor { shape, data })
}

/// Row by row, the rows of all parts.
fn join<T: Copy>(rows: usize, parts: Vec<&[T]>) -> Vec<T> {
    let mut joined = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    for row in 0..rows {
        for part in &parts {
            let length = part.len() / rows;
            joined.extend_from_slice(&part[row * length..(row + 1) * length]);
        }
    }
    joined
}

/// `GatherMode::kDEFAULT`: out of bounds gives zero. A negative index counts from the back, but only along an axis whose
/// length is known when the engine is built.
pub(super) fn gather(axis: usize, x: &Operand<'_>, indices: &Tensor) -> Result<Tensor, String> {
    let (declared, x) = (x.declared.dims[axis], x.value);
    let [before, length, after] = around(&x.shape, axis);
    let shape = [&x.shape[..axis], &indices.shape, &x.shape[axis + 1..]].concat();
    let mut chosen = Vec::with_capacity(volume(&shape)?);
    let resolved = integers(indices)?
        .iter()
        .map(|&index| match usize::try_from(index) {
            Ok(index) => Ok((index < length).then_some(index)),
            Err(_) if declared == DYNAMIC => Err(format!("index {index} of an axis of dynamic length")),
            Err(_) => {
                Ok(usize::try_from(index.unsigned_abs()).ok().and_then(|back| length.checked_sub(back)))
            }
        })
        .collect::<Result<Vec<Option<usize>>, String>>()?;
    for outer in 0..before {
        for index in &resolved {
            chosen
                .extend((0..after).map(|inner| index.map(|index| (outer * length + index) * after + inner)));
        }
    }
    let data = match &x.data {
        Data::Float(values) => Data::Float(or_zero(&chosen, values)),
        Data::Int(values) => Data::Int(or_zero(&chosen, values)),
    };
    Ok(Tensor { shape, data })
}

fn or_zero<T: Copy + Default>(places: &[Option<usize>], values: &[T]) -> Vec<T> {
    places.iter().map(|place| place.map_or_else(T::default, |place| values[place])).collect()
}

pub(super) fn shape(x: &Tensor) -> Result<Tensor, String> {
    let dims = x.shape.iter().map(|&dim| i64::try_from(dim).map_err(|_| format!("dimension {dim}")));
    Ok(Tensor::int(&[x.shape.len()], dims.collect::<Result<_, _>>()?))
}

/// `FillOperation::kLINSPACE` from 0 in steps of 1.
pub(super) fn iota(length: &FillDims, dtype: DataType, operands: &[Operand<'_>]) -> Result<Tensor, String> {
    let length = match (length, operands) {
        (FillDims::Static(length), []) => *length,
        (FillDims::Input, [length]) => match integers(length.value)? {
            &[length] => length,
            other => return Err(format!("the length is {other:?}")),
        },
        _ => return Err(format!("{} operands", operands.len())),
    };
    let count = usize::try_from(length).map_err(|_| format!("a length of {length}"))?;
    volume(&[count])?;
    Ok(if dtype.is_float() {
        Tensor::float(&[count], (0..length).map(|index| index as f32).collect())
    } else {
        Tensor::int(&[count], (0..length).collect())
    })
}
