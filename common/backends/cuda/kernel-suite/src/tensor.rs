//! Numbers on the device and what they are exactly.

use half::{bf16, f16};
use roundhouse_cuda_device::Memory;
use roundhouse_graph::DType;

/// Numbers of one type on the device.
pub struct Tensor {
    /// Where.
    pub memory: Memory,
    /// What they are, after rounding to the type. Empty for outputs.
    pub values: Vec<f64>,
}

impl Tensor {
    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.memory.address()
    }
}

/// The bytes of numbers in a type.
pub(crate) fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// The numbers of bytes in a type.
pub(crate) fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let pairs = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        DType::F16 => pairs.map(|b| f16::from_le_bytes(b).to_f64()).collect(),
        DType::Bf16 => pairs.map(|b| bf16::from_le_bytes(b).to_f64()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
    }
}

/// A number as a type has it.
pub(crate) fn rounded(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(value).to_f64(),
        DType::Bf16 => bf16::from_f64(value).to_f64(),
        _ => f64::from(value as f32),
    }
}
