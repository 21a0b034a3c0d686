//! `IShuffleLayer`.

use super::{Inferred, operands, shape_operand, volume};
use crate::{DYNAMIC, Dims, Reshape, Tensor};

pub(super) fn shuffle(
    first_transpose: Option<&[usize]>,
    reshape: Option<&Reshape>,
    second_transpose: Option<&[usize]>,
    inputs: &[&Tensor],
) -> Inferred {
    let (x, shape) = if let Some(Reshape::Input { expected }) = reshape {
        let [x, shape] = operands(inputs)?;
        shape_operand("the shape", shape, expected.len())?;
        (x, Some(expected))
    } else {
        let [x] = operands(inputs)?;
        (x, None)
    };
    let transposed = transpose(first_transpose, &x.dims)?;
    let reshaped = match (reshape, shape) {
        (Some(Reshape::Static(dims)), _) => reshape_static(&transposed, dims)
            .map_err(|what| format!("{transposed:?} reshaped to {dims:?}: {what}"))?,
        (_, Some(expected)) => {
            if expected.iter().any(|&dim| dim == 0 || dim < DYNAMIC) {
                return Err(format!("expected dimensions {expected:?}: they must be above 0, or {DYNAMIC}"));
            }
            same_volume(&transposed, expected)
                .map_err(|what| format!("{transposed:?} reshaped to {expected:?}: {what}"))?;
            expected.clone()
        }
        (_, None) => transposed,
    };
    Ok((x.dtype, transpose(second_transpose, &reshaped)?))
}

fn transpose(permutation: Option<&[usize]>, dims: &[i64]) -> Result<Dims, String> {
    let Some(permutation) = permutation else { return Ok(dims.to_vec()) };
    let mut sorted = permutation.to_vec();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..dims.len()) {
        return Err(format!("{permutation:?} is no permutation of the axes of {dims:?}"));
    }
    Ok(permutation.iter().map(|&axis| dims[axis]).collect())
}

/// What comes of a reshape to dimensions of which 0 copies and −1 is what is left.
fn reshape_static(input: &[i64], dims: &[i64]) -> Result<Dims, String> {
    if dims.iter().any(|&dim| dim < DYNAMIC) {
        return Err(format!("a dimension must be above 0, 0 or {DYNAMIC}"));
    }
    let mut output = Dims::with_capacity(dims.len());
    // Copied dimensions are on both sides, known or not, so they divide out.
    let (mut before, mut after) = (input.to_vec(), Vec::new());
    for (axis, &dim) in dims.iter().enumerate() {
        if dim == 0 {
            output.push(*input.get(axis).ok_or_else(|| format!("there is no axis {axis} to copy"))?);
            before[axis] = 1;
        } else {
            output.push(dim);
            after.push(dim);
        }
    }
    let Some(left) = dims.iter().position(|&dim| dim == DYNAMIC) else {
        same_volume(&before, &after)?;
        return Ok(output);
    };
    after.retain(|&dim| dim != DYNAMIC);
    if after.len() + 1 + dims.iter().filter(|&&dim| dim == 0).count() != dims.len() {
        return Err(format!("at most one dimension may be {DYNAMIC}"));
    }
    if output.contains(&0) {
        return Err(format!("what {DYNAMIC} stands for is not determined where a dimension is 0"));
    }
    let given = volume(&after).ok_or("more elements than can be counted")?;
    if let Some(elements) = volume(&before) {
        if elements % given != 0 {
            return Err(format!("no whole number is left for {DYNAMIC}"));
        }
        output[left] = elements / given;
    }
    Ok(output)
}

fn same_volume(before: &[i64], after: &[i64]) -> Result<(), String> {
    match (volume(before), volume(after)) {
        (Some(before), Some(after)) if before != after => Err("the number of elements changes".to_owned()),
        _ => Ok(()),
    }
}
