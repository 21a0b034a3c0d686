//! The weights file: `weights.safetensors`, row-major tensors in the graph's dtypes under the graph's names.

mod map;
mod write;

use roundhouse_graph::DType;
use safetensors::Dtype;

pub(crate) use map::{MappedWeights, Tensor};
pub(crate) use write::{WeightsLayout, write_weights};

#[cfg(target_endian = "big")]
compile_error!("weights files are little-endian and mapped as they are");

/// Where tensor data begins, and where each tensor does as far as sizes allow: a cache line, so that kernels load
/// whole vectors.
const ALIGNMENT: usize = 64;

/// The dtype in the file of a weight of `dtype`; `None` for what no weight can be.
fn file_dtype(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::Bf16 => Some(Dtype::BF16),
        DType::I64 | DType::Bool => None,
    }
}
