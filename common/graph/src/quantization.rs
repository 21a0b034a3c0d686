//! Weights of few bits.

use serde::{Deserialize, Serialize};

/// How the bytes of a quantised weight are read: `w[n, k] = q[n, k] · scales[n, k / group_size]`, plus
/// `offsets[n, k / group_size]` where there are some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// `q` is a byte in two's complement.
    Int8,
    /// `q` is a nibble minus 8; byte `j` of a row holds `q[2j]` in its low nibble and `q[2j + 1]` in its high one.
    Int4,
    /// `q` is a byte in E4M3 (Micikevicius et al. 2022; finite only, 448 the largest).
    Fp8,
}

impl WeightFormat {
    /// Bits of one `q`.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Int8 | Self::Fp8 => 8,
            Self::Int4 => 4,
        }
    }

    /// Its name in dumps: `int8`, `int4`, `fp8`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Fp8 => "fp8",
        }
    }
}

/// How a weight is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Quantization {
    /// The format of its bytes.
    pub format: WeightFormat,
    /// Columns that share a scale; divides the columns.
    pub group_size: u32,
}

/// The attributes of `QuantizedLinear`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QuantizedLinearAttributes {
    /// How the weight is quantised.
    pub quantization: Quantization,
    /// Whether there is an `offsets` input.
    pub has_offsets: bool,
}

/// Which part of a quantised weight a recipe makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantizedPart {
    /// The bytes `[N, K · bits / 8]`.
    Values,
    /// The scales `[N, K / group_size]`.
    Scales,
    /// The offsets `[N, K / group_size]`.
    Offsets,
}
