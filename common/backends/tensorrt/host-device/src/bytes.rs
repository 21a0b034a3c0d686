//! Tensors to and from the bytes that a device has of them.

use half::{bf16, f16};
use roundhouse_tensorrt_interpreter::{Data, Tensor};
use roundhouse_tensorrt_network::DataType;

/// Little-endian elements as a tensor.
pub(crate) fn decode(dtype: DataType, dims: &[usize], bytes: &[u8]) -> Tensor {
    let chunks = bytes.chunks_exact(dtype.size());
    let int = |chunk: &[u8]| match dtype {
        DataType::Int64 => i64::from_le_bytes(chunk.try_into().unwrap()),
        DataType::Int32 => i64::from(i32::from_le_bytes(chunk.try_into().unwrap())),
        _ => i64::from(chunk[0]),
    };
    let float = |chunk: &[u8]| match dtype {
        DataType::Half => f16::from_le_bytes(chunk.try_into().unwrap()).to_f32(),
        DataType::Bf16 => bf16::from_le_bytes(chunk.try_into().unwrap()).to_f32(),
        _ => f32::from_le_bytes(chunk.try_into().unwrap()),
    };
    let data = if dtype.is_float() {
        Data::Float(chunks.map(float).collect())
    } else {
        Data::Int(chunks.map(int).collect())
    };
    Tensor { shape: dims.to_vec(), data }
}

/// A tensor of floats as little-endian elements.
pub(crate) fn encode(dtype: DataType, tensor: &Tensor) -> Vec<u8> {
    assert!(dtype.is_float(), "no other outputs are known");
    let each = tensor.floats().iter().map(|&value| match dtype {
        DataType::Half => f16::from_f32(value).to_le_bytes().to_vec(),
        DataType::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    });
    each.flatten().collect()
}
