//! Elements of tensors: how many, where, and how a dtype stores them.

use half::{bf16, f16};
use roundhouse_backend_conformance::{Data, Rounding, Tensor};
use roundhouse_tensorrt_network::DataType;

/// TensorRT counts elements in 31 bits.
const MAX_ELEMENTS: usize = (1 << 31) - 1;

/// How many elements a shape has.
pub(crate) fn volume(shape: &[usize]) -> Result<usize, String> {
    let count = if shape.contains(&0) {
        Some(0)
    } else {
        shape.iter().try_fold(1_usize, |all, &dim| all.checked_mul(dim))
    };
    count.filter(|&count| count <= MAX_ELEMENTS).ok_or_else(|| format!("too many elements: {shape:?}"))
}

/// Distances between neighbours along each axis.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Where the elements of a shape are, in order, if they are so far apart along each axis and the first is at `base`.
pub(crate) fn places(shape: &[usize], strides: &[usize], base: usize) -> Vec<usize> {
    shape.iter().zip(strides).fold(vec![base], |starts, (&length, &stride)| {
        starts.iter().flat_map(|start| (0..length).map(move |index| start + index * stride)).collect()
    })
}

/// The shape to which shapes of equal rank broadcast: dimensions of 1 are repeated.
pub(crate) fn broadcast(shapes: &[&[usize]]) -> Result<Vec<usize>, String> {
    let rank = shapes.first().map_or(0, |shape| shape.len());
    let mut result = vec![1; rank];
    for shape in shapes {
        for (known, &dim) in result.iter_mut().zip(*shape) {
            if *known == 1 {
                *known = dim;
            } else if dim != 1 && dim != *known {
                return Err(format!("shapes {shapes:?} do not broadcast"));
            }
        }
    }
    volume(&result)?;
    Ok(result)
}

/// Where the elements of a shape are in a tensor of another that broadcasts to it.
pub(crate) fn broadcast_places(shape: &[usize], own: &[usize]) -> Vec<usize> {
    let strides: Vec<usize> =
        strides(own).iter().zip(own).map(|(&stride, &dim)| if dim == 1 { 0 } else { stride }).collect();
    places(shape, &strides, 0)
}

/// The elements at these places.
pub(crate) fn pick(data: &Data, places: &[usize]) -> Data {
    match data {
        Data::Float(values) => Data::Float(places.iter().map(|&place| values[place]).collect()),
        Data::Int(values) => Data::Int(places.iter().map(|&place| values[place]).collect()),
    }
}

/// How many elements there are before, along and after an axis.
pub(crate) fn around(shape: &[usize], axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

/// The integers of a tensor.
pub(crate) fn integers(tensor: &Tensor) -> Result<&[i64], String> {
    match &tensor.data {
        Data::Int(values) => Ok(values),
        Data::Float(_) => Err("floats where integers are needed".to_owned()),
    }
}

/// The floats of a tensor.
pub(crate) fn floats(tensor: &Tensor) -> Result<&[f32], String> {
    match &tensor.data {
        Data::Float(values) => Ok(values),
        Data::Int(_) => Err("integers where floats are needed".to_owned()),
    }
}

/// A float as a dtype stores it, to the nearest, ties to even.
pub(crate) fn round(dtype: DataType, value: f32) -> f32 {
    match dtype {
        DataType::Half => f16::from_f32(value).to_f32(),
        DataType::Bf16 => bf16::from_f32(value).to_f32(),
        DataType::Float | DataType::Int32 | DataType::Int64 | DataType::Bool => value,
    }
}

/// Stores elements in a dtype: floats are rounded, if everything is; integers must fit.
pub(crate) fn store(dtype: DataType, data: &mut Data, rounding: Rounding) -> Result<(), String> {
    match data {
        Data::Float(values) if dtype.is_float() => {
            if rounding == Rounding::Stored {
                values.iter_mut().for_each(|value| *value = round(dtype, *value));
            }
            Ok(())
        }
        Data::Int(values) if !dtype.is_float() => {
            let fits = |value: &i64| match dtype {
                DataType::Int32 => i32::try_from(*value).is_ok(),
                DataType::Bool => matches!(value, 0 | 1),
                _ => true,
            };
            values
                .iter()
                .find(|value| !fits(value))
                .map_or(Ok(()), |value| Err(format!("{value} is no {dtype}")))
        }
        Data::Float(_) => Err(format!("floats are no {dtype}")),
        Data::Int(_) => Err(format!("integers are no {dtype}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_order() {
        assert_eq!(strides(&[2, 3, 4]), [12, 4, 1]);
        assert_eq!(strides(&[]), [0; 0]);
        assert_eq!(places(&[2, 2], &[12, 1], 5), [5, 6, 17, 18]);
        assert_eq!(places(&[], &[], 5), [5]);
        assert_eq!(places(&[2, 0], &[1, 1], 0), [0; 0]);
        assert_eq!(around(&[2, 3, 4, 5], 1), [2, 3, 20]);
    }

    #[test]
    fn ones_are_repeated() {
        assert_eq!(broadcast(&[&[2, 1], &[1, 3]]), Ok(vec![2, 3]));
        assert_eq!(broadcast(&[&[1], &[0], &[1]]), Ok(vec![0]));
        assert!(broadcast(&[&[2], &[3]]).is_err());
        assert!(broadcast(&[&[1 << 20, 1], &[1, 1 << 20]]).is_err());
        assert_eq!(broadcast_places(&[2, 3], &[2, 1]), [0, 0, 0, 1, 1, 1]);
        assert_eq!(broadcast_places(&[2, 3], &[1, 3]), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn counts_do_not_overflow() {
        assert_eq!(volume(&[usize::MAX, 2, 0]), Ok(0));
        assert!(volume(&[usize::MAX, 2]).is_err());
        assert!(volume(&[1 << 31]).is_err());
    }

    #[test]
    fn a_dtype_stores_what_it_can() {
        let stored = |dtype, mut data, rounding| store(dtype, &mut data, rounding).map(|()| data);
        let third = Data::Float(vec![1.0 / 3.0]);
        assert_eq!(stored(DataType::Half, third.clone(), Rounding::Weights), Ok(third.clone()));
        assert_eq!(
            stored(DataType::Half, third.clone(), Rounding::Stored),
            Ok(Data::Float(vec![0.333_251_95]))
        );
        assert_eq!(
            stored(DataType::Bf16, third.clone(), Rounding::Stored),
            Ok(Data::Float(vec![0.333_984_38]))
        );
        assert_eq!(stored(DataType::Float, third.clone(), Rounding::Stored), Ok(third.clone()));
        let int = |value| Data::Int(vec![value]);
        assert_eq!(stored(DataType::Int64, int(i64::MIN), Rounding::Stored), Ok(int(i64::MIN)));
        assert_eq!(stored(DataType::Int32, int(-1), Rounding::Stored), Ok(int(-1)));
        assert!(stored(DataType::Int32, int(1 << 31), Rounding::Stored).is_err());
        assert!(stored(DataType::Bool, int(2), Rounding::Stored).is_err());
        assert!(stored(DataType::Bool, third, Rounding::Stored).is_err());
        assert!(stored(DataType::Half, int(1), Rounding::Stored).is_err());
    }
}
