//! `IShuffleLayer`: a transpose, a reshape and another transpose.

use roundhouse_backend_conformance::Tensor;
use roundhouse_tensorrt_network::{DYNAMIC, Reshape};

use crate::elements::{integers, pick, places, strides, volume};

pub(super) fn shuffle(
    first_transpose: Option<&[usize]>,
    reshape: Option<&Reshape>,
    second_transpose: Option<&[usize]>,
    x: &Tensor,
    shape: Option<&Tensor>,
) -> Result<Tensor, String> {
    let mut tensor = transpose(first_transpose, x.clone())?;
    match reshape {
        None => {}
        Some(Reshape::Static(dims)) => tensor.shape = resolve(dims, &tensor.shape)?,
        Some(Reshape::Input { .. }) => {
            tensor.shape = resolve(integers(shape.ok_or("the shape is not there")?)?, &tensor.shape)?;
        }
    }
    transpose(second_transpose, tensor)
}

/// Output axis `i` is input axis `permutation[i]`.
fn transpose(permutation: Option<&[usize]>, x: Tensor) -> Result<Tensor, String> {
    let Some(permutation) = permutation else { return Ok(x) };
    if permutation.len() != x.shape.len() {
        return Err(format!("a transpose {permutation:?} of the shape {:?}", x.shape));
    }
    let own = strides(&x.shape);
    let shape: Vec<usize> = permutation.iter().map(|&axis| x.shape[axis]).collect();
    let strides: Vec<usize> = permutation.iter().map(|&axis| own[axis]).collect();
    let data = pick(&x.data, &places(&shape, &strides, 0));
    Ok(Tensor { shape, data })
}

/// What a reshape to dimensions gives, of which 0 copies and −1 is what is left.
fn resolve(dims: &[i64], shape: &[usize]) -> Result<Vec<usize>, String> {
    let misfit = |what: &str| format!("a reshape of {shape:?} to {dims:?}: {what}");
    let mut left = None;
    let mut resolved = Vec::with_capacity(dims.len());
    for (axis, &dim) in dims.iter().enumerate() {
        resolved.push(match dim {
            0 => *shape.get(axis).ok_or_else(|| misfit("there is no such axis to copy"))?,
            DYNAMIC if left.replace(axis).is_some() => return Err(misfit("-1 twice")),
            DYNAMIC => 1,
            dim => usize::try_from(dim).map_err(|_| misfit("a negative dimension"))?,
        });
    }
    let (elements, others) = (volume(shape)?, volume(&resolved)?);
    if let Some(axis) = left {
        if others == 0 || elements % others != 0 {
            return Err(misfit("what is left is no whole number"));
        }
        resolved[axis] = elements / others;
    } else if elements != others {
        return Err(misfit("the number of elements changes"));
    }
    Ok(resolved)
}
