//! Element types of TensorRT.

use roundhouse_graph::DType;
use serde::{Deserialize, Serialize};

/// The element type of a tensor: TensorRT's `DataType`, as far as networks here use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataType {
    /// `kFLOAT`: IEEE 754 binary32.
    Float,
    /// `kHALF`: IEEE 754 binary16.
    Half,
    /// `kBF16`: bfloat16.
    Bf16,
    /// `kINT32`.
    Int32,
    /// `kINT64`.
    Int64,
    /// `kBOOL`: one byte, 0 or 1.
    Bool,
}

impl DataType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Float | Self::Int32 => 4,
            Self::Half | Self::Bf16 => 2,
            Self::Int64 => 8,
            Self::Bool => 1,
        }
    }

    /// Whether this is a floating-point type.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::Float | Self::Half | Self::Bf16)
    }

    /// Whether this is an integer type.
    #[must_use]
    pub const fn is_integer(self) -> bool {
        matches!(self, Self::Int32 | Self::Int64)
    }

    /// TensorRT's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float => "kFLOAT",
            Self::Half => "kHALF",
            Self::Bf16 => "kBF16",
            Self::Int32 => "kINT32",
            Self::Int64 => "kINT64",
            Self::Bool => "kBOOL",
        }
    }
}

impl From<DType> for DataType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::Float,
            DType::F16 => Self::Half,
            DType::Bf16 => Self::Bf16,
            DType::I64 => Self::Int64,
            // Quantised weights have no converter yet, so no tensor is made of them.
            DType::Bool | DType::U8 => Self::Bool,
        }
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
