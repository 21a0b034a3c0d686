//! Dtypes and dimensions on their way to TensorRT and back.

use roundhouse_tensorrt_network::{DataType, Dims};

use crate::TensorRtError;

/// The most dimensions that `trtx` reads back.
const MAX_RANK: usize = 7;

/// What TensorRT infers for a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inferred {
    /// Its element type.
    pub dtype: DataType,
    /// Its dimensions, −1 where they are known only when the engine runs.
    pub dims: Dims,
}

pub(super) fn to_trt(dtype: DataType) -> trtx::DataType {
    match dtype {
        DataType::Float => trtx::DataType::kFLOAT,
        DataType::Half => trtx::DataType::kHALF,
        DataType::Bf16 => trtx::DataType::kBF16,
        DataType::Int32 => trtx::DataType::kINT32,
        DataType::Int64 => trtx::DataType::kINT64,
        DataType::Bool => trtx::DataType::kBOOL,
    }
}

pub(super) fn from_trt(dtype: trtx::DataType) -> Option<DataType> {
    Some(match dtype {
        trtx::DataType::kFLOAT => DataType::Float,
        trtx::DataType::kHALF => DataType::Half,
        trtx::DataType::kBF16 => DataType::Bf16,
        trtx::DataType::kINT32 => DataType::Int32,
        trtx::DataType::kINT64 => DataType::Int64,
        trtx::DataType::kBOOL => DataType::Bool,
        _ => return None,
    })
}

/// `trtx` drops dimensions past the eighth without a word.
pub(super) fn check_rank(name: &str, dims: &[i64]) -> Result<(), TensorRtError> {
    if dims.len() <= MAX_RANK {
        return Ok(());
    }
    Err(TensorRtError::misuse(format!("{name:?} has {} dimensions; {MAX_RANK} can be read back", dims.len())))
}
