//! The weights file: `weights.safetensors`, row-major tensors in the graph's dtypes under the graph's names.
//!
//! It depends only on the weights of the lowered graph, so engines of different backends and caches share one blob.

mod map;
mod partial_file;
mod write;

use std::path::Path;

use roundhouse_backend::BackendError;
use roundhouse_graph::DType;
use safetensors::Dtype;

pub use map::{MappedWeights, Tensor};
pub use partial_file::PartialFile;
pub use write::{WeightsLayout, write_weights};

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
        DType::U8 => Some(Dtype::U8),
        DType::I64 | DType::Bool => None,
    }
}

/// A file could not be read or written.
fn io_error(path: &Path, source: std::io::Error) -> BackendError {
    BackendError::Io { path: path.display().to_string(), source }
}
