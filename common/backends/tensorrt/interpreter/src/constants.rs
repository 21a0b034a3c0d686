//! The values of constants.

use half::{bf16, f16};
use roundhouse_backend_conformance::{Data, Rounding, Tensor};
use roundhouse_tensorrt_network::{Constant, DataType, Values};

use crate::InterpreterError;
use crate::elements::{round, volume};

/// A constant's elements. A weight is always rounded to its dtype; other floats are, if everything is.
pub(crate) fn constant(
    layer: &str,
    constant: &Constant,
    rounding: Rounding,
    weights: &dyn Fn(&str) -> Option<Vec<f32>>,
) -> Result<Tensor, InterpreterError> {
    let broken = |what: String| InterpreterError::Layer { layer: layer.to_owned(), what };
    let shape = constant
        .dims
        .iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| broken(format!("a constant of {:?}", constant.dims))))
        .collect::<Result<Vec<usize>, _>>()?;
    let count = volume(&shape).map_err(broken)?;
    let data = match &constant.values {
        Values::Weight { name } => Data::Float(weight(name, count, constant.dtype, weights)?),
        Values::Floats { values } if rounding == Rounding::Weights => Data::Float(values.clone()),
        // The very bytes that TensorRT is given, unless floats are to keep their fp32.
        Values::RotaryCos(_) | Values::RotarySin(_) if rounding == Rounding::Weights => {
            decode(&Constant { dtype: DataType::Float, ..constant.clone() })
        }
        _ => decode(constant),
    };
    let tensor = Tensor { shape, data };
    if tensor.len() == count {
        Ok(tensor)
    } else {
        Err(broken(format!("{} values for {count} elements", tensor.len())))
    }
}

fn weight(
    name: &str,
    count: usize,
    dtype: DataType,
    weights: &dyn Fn(&str) -> Option<Vec<f32>>,
) -> Result<Vec<f32>, InterpreterError> {
    let wrong = |what: String| InterpreterError::Weight { name: name.to_owned(), what };
    let mut values = weights(name).ok_or_else(|| wrong("there is no such weight".to_owned()))?;
    if values.len() != count {
        return Err(wrong(format!("{} elements: {count} are needed", values.len())));
    }
    values.iter_mut().for_each(|value| *value = round(dtype, *value));
    Ok(values)
}

fn decode(constant: &Constant) -> Data {
    let bytes = constant.bytes().unwrap_or_default();
    let two = || bytes.as_chunks::<2>().0.iter();
    let four = || bytes.as_chunks::<4>().0.iter();
    let eight = || bytes.as_chunks::<8>().0.iter();
    match constant.dtype {
        DataType::Float => Data::Float(four().map(|&bytes| f32::from_le_bytes(bytes)).collect()),
        DataType::Half => Data::Float(two().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()),
        DataType::Bf16 => Data::Float(two().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect()),
        DataType::Int32 => Data::Int(four().map(|&bytes| i64::from(i32::from_le_bytes(bytes))).collect()),
        DataType::Int64 => Data::Int(eight().map(|&bytes| i64::from_le_bytes(bytes)).collect()),
        DataType::Bool => Data::Int(bytes.iter().map(|&byte| i64::from(byte)).collect()),
    }
}
