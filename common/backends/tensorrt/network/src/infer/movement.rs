//! Layers that copy elements or count: `ISliceLayer`, `IConcatenationLayer`, `IGatherLayer`, `IFillLayer`.

use super::{Inferred, has_axis, integer, merge, of_rank, operands, same_dtype, shape_operand};
use crate::{DYNAMIC, DataType, Dims, FillDims, SliceOperand, Tensor};

pub(super) fn slice(start: &SliceOperand, size: &SliceOperand, inputs: &[&Tensor]) -> Inferred {
    let given = [start, size].iter().filter(|operand| matches!(operand, SliceOperand::Input { .. })).count();
    let needed = 1 + given;
    let (&x, rest) = inputs
        .split_first()
        .filter(|_| inputs.len() == needed)
        .ok_or_else(|| format!("{} operands, {needed} are needed", inputs.len()))?;
    let mut rest = rest.iter();
    let start = indices("the start", start, &mut rest, x)?;
    let size = indices("the size", size, &mut rest, x)?;
    for (axis, &dim) in x.dims.iter().enumerate() {
        let (first, many) = (start[axis].max(0), size[axis]);
        if dim != DYNAMIC && many != DYNAMIC && first.checked_add(many).is_none_or(|end| end > dim) {
            return Err(format!("{many} elements from {first} on axis {axis}, which has {dim}"));
        }
    }
    Ok((x.dtype, size))
}

/// The elements of a start or size, as far as they are known.
fn indices<'a>(
    what: &str,
    operand: &SliceOperand,
    rest: &mut impl Iterator<Item = &'a &'a Tensor>,
    x: &Tensor,
) -> Result<Dims, String> {
    let (known, least) = match operand {
        SliceOperand::Static(dims) => (dims, 0),
        SliceOperand::Input { expected } => {
            if let Some(tensor) = rest.next() {
                shape_operand(what, tensor, x.dims.len())?;
            }
            (expected, DYNAMIC)
        }
    };
    if known.len() != x.dims.len() {
        return Err(format!("{what} is {known:?}: it must have {} elements", x.dims.len()));
    }
    if known.iter().any(|&index| index < least) {
        return Err(format!("{what} is {known:?}: its elements must be {least} or more"));
    }
    Ok(known.clone())
}

pub(super) fn concatenation(axis: usize, inputs: &[&Tensor]) -> Inferred {
    let (&first, rest) = inputs.split_first().ok_or("no operands: one or more are needed")?;
    has_axis(axis, first)?;
    let mut dims = first.dims.clone();
    for tensor in rest {
        same_dtype("operands", first, tensor)?;
        of_rank("an operand", tensor, dims.len())?;
        for (at, (known, &dim)) in dims.iter_mut().zip(&tensor.dims).enumerate() {
            *known = match (*known, dim) {
                (known, dim) if at != axis => merge(known, dim)
                    .ok_or_else(|| format!("{known} and {dim} on axis {at}: only axis {axis} may differ"))?,
                (DYNAMIC, _) | (_, DYNAMIC) => DYNAMIC,
                (known, dim) => known.checked_add(dim).ok_or("more elements than can be counted")?,
            };
        }
    }
    Ok((first.dtype, dims))
}

pub(super) fn gather(axis: usize, x: &Tensor, indices: &Tensor) -> Inferred {
    integer("the index tensor", indices)?;
    has_axis(axis, x)?;
    let (before, after) = x.dims.split_at(axis);
    Ok((x.dtype, [before, &indices.dims, &after[1..]].concat()))
}

pub(super) fn iota(length: &FillDims, dtype: DataType, inputs: &[&Tensor]) -> Inferred {
    if !matches!(dtype, DataType::Int32 | DataType::Int64 | DataType::Float) {
        return Err(format!("an iota of {dtype}: it must be kINT32, kINT64 or kFLOAT"));
    }
    let dim = match length {
        FillDims::Static(length) => {
            let [] = operands(inputs)?;
            if *length < 0 {
                return Err(format!("a length of {length}: it must be 0 or more"));
            }
            *length
        }
        FillDims::Input => {
            let [length] = operands(inputs)?;
            shape_operand("the length", length, 1)?;
            DYNAMIC
        }
    };
    Ok((dtype, vec![dim]))
}
