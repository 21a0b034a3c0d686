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
        /// The elements; in JSON, those that are not finite are the strings `inf`, `-inf` and `nan`.
        #[serde(with = "crate::floats")]
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
    #[serde(with = "crate::floats")]
    pub inv_freq: Vec<f32>,
    /// Factor on every element.
    pub attention_factor: f32,
}

impl RotaryTable {
    /// The elements, row-major. Angles are fp32 products, as in Transformers; their functions are computed in fp64.
    fn elements(&self, function: fn(f64) -> f64) -> impl Iterator<Item = f32> {
        (0..self.positions).flat_map(move |position| {
            self.inv_freq.iter().map(move |&frequency| {
                #[expect(clippy::cast_precision_loss, reason = "a table has at most 2^24 positions")]
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
        self.dims
            .iter()
            .fold(1, |volume: usize, &dim| volume.saturating_mul(usize::try_from(dim).unwrap_or(0)))
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
            let mut bytes = Vec::new();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(dtype: DataType, values: Values) -> Option<Vec<u8>> {
        Constant { dtype, dims: vec![], values }.bytes()
    }

    fn floats(values: &[f32]) -> Values {
        Values::Floats { values: values.to_vec() }
    }

    fn integers(values: &[i64]) -> Values {
        Values::Integers { values: values.to_vec() }
    }

    #[test]
    fn floats_are_rounded_to_the_nearest_even() {
        assert_eq!(
            bytes(DataType::Float, floats(&[1.0, -2.5])),
            Some(vec![0, 0, 0x80, 0x3F, 0, 0, 0x20, 0xC0])
        );
        // kHALF has 10 fraction bits: 1 + 2⁻¹¹ is halfway and goes down, 1 + 3·2⁻¹¹ is halfway and goes up.
        let halfway = [1.0 + 2_f32.powi(-11), 1.0 + 3.0 * 2_f32.powi(-11)];
        assert_eq!(bytes(DataType::Half, floats(&halfway)), Some(vec![0x00, 0x3C, 0x02, 0x3C]));
        assert_eq!(bytes(DataType::Half, floats(&[65504.0, 65520.0])), Some(vec![0xFF, 0x7B, 0x00, 0x7C]));
        // kBF16 has 7 and the exponents of fp32.
        let halfway = [1.0 + 2_f32.powi(-8), 1.0 + 3.0 * 2_f32.powi(-8)];
        assert_eq!(bytes(DataType::Bf16, floats(&halfway)), Some(vec![0x80, 0x3F, 0x82, 0x3F]));
        assert_eq!(bytes(DataType::Bf16, floats(&[f32::NEG_INFINITY])), Some(vec![0x80, 0xFF]));
    }

    #[test]
    fn integers_beyond_int32_are_clamped() {
        let values = integers(&[-1, i64::MAX, i64::MIN]);
        let expected = [-1_i32, i32::MAX, i32::MIN].map(i32::to_le_bytes).concat();
        assert_eq!(bytes(DataType::Int32, values.clone()), Some(expected));
        let expected = [-1_i64, i64::MAX, i64::MIN].map(i64::to_le_bytes).concat();
        assert_eq!(bytes(DataType::Int64, values), Some(expected));
        assert_eq!(bytes(DataType::Bool, integers(&[0, 1, -7])), Some(vec![0, 1, 1]));
    }

    #[test]
    fn weights_have_their_bytes_elsewhere() {
        let weight = Values::Weight { name: "w".to_owned() };
        assert_eq!(bytes(DataType::Half, weight.clone()), None);
        let constant = Constant { dtype: DataType::Half, dims: vec![2, 3], values: weight };
        assert_eq!((constant.weight(), constant.len(), constant.is_empty()), (Some("w"), 6, false));
        let vast = Constant { dims: vec![i64::MAX, 2, 2], ..constant.clone() };
        assert_eq!(vast.len(), usize::MAX);
        assert!(Constant { dims: vec![3, 0], ..constant }.is_empty());
    }

    #[test]
    fn rotary_tables_have_a_row_for_each_position_and_a_column_for_each_pair() {
        let table = RotaryTable {
            positions: 3,
            inv_freq: vec![std::f32::consts::FRAC_PI_2, 0.0],
            attention_factor: 2.0,
        };
        let read = |bytes: Option<Vec<u8>>| -> Vec<f32> {
            let bytes = bytes.unwrap();
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
        };
        let near = |found: &[f32], expected: &[f32]| {
            assert_eq!(found.len(), expected.len());
            // π/2 and π are not exact in fp32, so zeros are not quite.
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
        };
        near(
            &read(bytes(DataType::Float, Values::RotaryCos(table.clone()))),
            &[2.0, 2.0, 0.0, 2.0, -2.0, 2.0],
        );
        near(
            &read(bytes(DataType::Float, Values::RotarySin(table.clone()))),
            &[0.0, 0.0, 2.0, 0.0, 0.0, 0.0],
        );
        assert_eq!(bytes(DataType::Half, Values::RotaryCos(table)).map(|bytes| bytes.len()), Some(12));
    }

    #[test]
    fn rotary_angles_are_fp32_products() {
        let table = RotaryTable { positions: 100_001, inv_freq: vec![0.1], attention_factor: 1.0 };
        let angle = 100_000.0_f32 * 0.1;
        let expected = f64::from(angle).sin() as f32;
        assert_eq!(table.elements(f64::sin).last(), Some(expected));
    }
}
