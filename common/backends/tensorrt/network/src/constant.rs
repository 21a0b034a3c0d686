//! Constants and where their values come from.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::{DataType, Dims};

/// An `IConstantLayer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Constant {
    /// Its element type.
    pub dtype: DataType,
    /// Its dimensions, all static.
    pub dims: Dims,
    /// Its elements.
    pub values: Values,
}

/// The elements of a constant, row-major.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Values {
    /// A weight of the graph, by name. Its elements are in the weights file, in the constant's dtype, as many as the
    /// constant has. The one kind that a weight-less plan leaves out.
    Weight {
        /// The name in the graph and in the weights file; also TensorRT's name for refitting.
        name: String,
    },
    /// Floats given here, rounded to the constant's dtype.
    Floats {
        /// The elements.
        values: Vec<f32>,
    },
    /// Integers given here.
    Integers {
        /// The elements.
        values: Vec<i64>,
    },
    /// Cosines of a rotary embedding `[positions, pairs]`.
    RotaryCos(RotaryTable),
    /// Sines of a rotary embedding `[positions, pairs]`.
    RotarySin(RotaryTable),
}

/// The table of a rotary embedding: row `p`, column `i` is `attention_factor · cos(p · inv_freq[i])`, or sine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RotaryTable {
    /// Rows: positions from 0 on.
    pub positions: u32,
    /// Angle per position of each pair.
    pub inv_freq: Vec<f32>,
    /// Factor on every element.
    pub attention_factor: f32,
}

impl RotaryTable {
    /// The elements, row-major. Angles are fp32 products, as in Transformers; their functions are computed in fp64.
    fn elements(&self, function: fn(f64) -> f64) -> impl Iterator<Item = f32> {
        (0..self.positions).flat_map(move |position| {
            self.inv_freq.iter().map(move |&frequency| {
                #[expect(clippy::cast_precision_loss, reason = "positions are far below 2^24")]
                let angle = position as f32 * frequency;
                #[expect(clippy::cast_possible_truncation, reason = "rounded to fp32 on purpose")]
                let value = function(f64::from(angle)) as f32;
                value * self.attention_factor
            })
        })
    }
}

impl Constant {
    /// How many elements it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.dims.iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).product()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of the graph's weight that it is.
    #[must_use]
    pub fn weight(&self) -> Option<&str> {
        match &self.values {
            Values::Weight { name } => Some(name),
            _ => None,
        }
    }

    /// The bytes that TensorRT is given, little-endian in the constant's dtype; `None` for a weight, whose bytes are in
    /// the weights file.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let floats = |values: &mut dyn Iterator<Item = f32>| {
            let mut bytes = Vec::with_capacity(self.len() * self.dtype.size());
            for value in values {
                push_float(&mut bytes, self.dtype, value);
            }
            bytes
        };
        match &self.values {
            Values::Weight { .. } => None,
            Values::Floats { values } => Some(floats(&mut values.iter().copied())),
            Values::Integers { values } => {
                let mut bytes = Vec::with_capacity(values.len() * self.dtype.size());
                for &value in values {
                    push_integer(&mut bytes, self.dtype, value);
                }
                Some(bytes)
            }
            Values::RotaryCos(table) => Some(floats(&mut table.elements(f64::cos))),
            Values::RotarySin(table) => Some(floats(&mut table.elements(f64::sin))),
        }
    }
}

fn push_float(bytes: &mut Vec<u8>, dtype: DataType, value: f32) {
    match dtype {
        DataType::Half => bytes.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
        DataType::Bf16 => bytes.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
        DataType::Float | DataType::Int32 | DataType::Int64 | DataType::Bool => {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
    }
}

fn push_integer(bytes: &mut Vec<u8>, dtype: DataType, value: i64) {
    match dtype {
        DataType::Bool => bytes.push(u8::from(value != 0)),
        DataType::Int32 => {
            let clamped = value.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
            bytes.extend_from_slice(&i32::try_from(clamped).unwrap_or(0).to_le_bytes());
        }
        DataType::Int64 | DataType::Float | DataType::Half | DataType::Bf16 => {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
    }
}
