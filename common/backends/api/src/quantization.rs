//! Quantises weights, a row at a time: symmetric, each group by itself.

use std::ops::AddAssign;

use half::f16;
use roundhouse_graph::{Quantization, QuantizedPart, WeightFormat};

/// Scales that are tried for a group of four bits, as parts of the one that reaches its largest element: a smaller one
/// cuts the largest and rounds all others more finely.
const TRIED_SCALES: [f32; 9] = [1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.825, 0.8];

/// What the numbers of a matrix lost when they were quantised, as sums over them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct QuantizationLoss {
    /// Of the squares of the differences.
    pub squared_error: f64,
    /// Of the squares of the numbers.
    pub squared_norm: f64,
}

impl QuantizationLoss {
    /// The root mean square of the differences, as a part of that of the numbers; 0 for zeros that stayed zeros.
    #[must_use]
    pub fn relative_error(&self) -> f64 {
        if self.squared_error == 0.0 { 0.0 } else { (self.squared_error / self.squared_norm).sqrt() }
    }
}

impl AddAssign for QuantizationLoss {
    fn add_assign(&mut self, other: Self) {
        self.squared_error += other.squared_error;
        self.squared_norm += other.squared_norm;
    }
}

/// What a code of a format stands for, before scales. A code of four bits is a nibble.
#[must_use]
pub fn quantized_number(format: WeightFormat, code: u8) -> f32 {
    match format {
        WeightFormat::Int8 => f32::from(code.cast_signed()),
        WeightFormat::Int4 => f32::from(code) - 8.0,
        WeightFormat::Fp8 => number_of_e4m3(code),
    }
}

/// One bit of sign, four of exponent (bias 7), three of mantissa; all ones is not a number, and there is no infinity.
fn number_of_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(code >> 3 & 15), u32::from(code & 7));
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, _) => f32::from(code & 7) / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The shape of a part of a matrix `[N, K]`, or why there is none.
pub(crate) fn shape(
    quantization: Quantization,
    part: QuantizedPart,
    matrix: &[u64],
) -> Result<Vec<u64>, String> {
    let [rows, columns] = matrix[..] else {
        return Err(format!("only a matrix can be quantised, the shape is {matrix:?}"));
    };
    let group_size = u64::from(quantization.group_size);
    if group_size == 0 || columns % group_size != 0 {
        return Err(format!("groups of {group_size} do not divide {columns} columns"));
    }
    Ok(match part {
        QuantizedPart::Values => vec![rows, columns * u64::from(quantization.format.bits()) / 8],
        QuantizedPart::Scales => vec![rows, columns / group_size],
    })
}

/// The part of one row: its bytes as numbers, or its scales, which are exact in fp16. With the bytes it says what was
/// lost.
pub(crate) fn quantize_row(
    quantization: Quantization,
    part: QuantizedPart,
    row: &[f32],
    out: &mut [f32],
) -> QuantizationLoss {
    let group_size = (quantization.group_size as usize).max(1);
    let groups = row.chunks_exact(group_size);
    let width = out.len().checked_div(groups.len()).unwrap_or(0).max(1);
    let mut lost = QuantizationLoss::default();
    for (group, out) in groups.zip(out.chunks_exact_mut(width)) {
        let scale = scale(quantization.format, group);
        match part {
            QuantizedPart::Scales => out.fill(scale),
            QuantizedPart::Values => {
                values(quantization.format, group, scale, out);
                lost += loss(quantization.format, group, scale, out);
            }
        }
    }
    lost
}

/// What a group lost to its bytes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes are 0 to 255")]
fn loss(format: WeightFormat, group: &[f32], scale: f32, bytes: &[f32]) -> QuantizationLoss {
    let mut lost = QuantizationLoss::default();
    let mut add = |x: f32, code: u8| {
        let difference = f64::from(x) - f64::from(quantized_number(format, code) * scale);
        lost.squared_error += difference * difference;
        lost.squared_norm += f64::from(x) * f64::from(x);
    };
    match format {
        WeightFormat::Int8 | WeightFormat::Fp8 => {
            group.iter().zip(bytes).for_each(|(&x, &byte)| add(x, byte as u8));
        }
        WeightFormat::Int4 => {
            for (pair, &byte) in group.chunks_exact(2).zip(bytes) {
                add(pair[0], byte as u8 & 15);
                add(pair[1], byte as u8 >> 4);
            }
        }
    }
    lost
}

/// The scale of a group; zero for a group of zeros.
fn scale(format: WeightFormat, group: &[f32]) -> f32 {
    let largest = group.iter().copied().fold(0.0_f32, |max, x| if x.abs() > max.abs() { x } else { max });
    match format {
        WeightFormat::Int8 => storable(largest.abs() / 127.0),
        WeightFormat::Fp8 => storable(largest.abs() / 448.0),
        WeightFormat::Int4 => {
            // There are eight steps below zero and seven above: the largest element goes where the eight are.
            let full = largest / -8.0;
            let candidates = TRIED_SCALES.iter().map(|part| storable(full * part));
            let error = |scale: f32| -> f32 {
                group.iter().map(|&x| (x - step(x, scale, -8.0, 7.0) * scale).powi(2)).sum()
            };
            candidates.min_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap_or(full)
        }
    }
}

/// As it is stored.
fn storable(scale: f32) -> f32 {
    f16::from_f32(scale).to_f32()
}

/// The step that is nearest to a number.
fn step(x: f32, scale: f32, lowest: f32, highest: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even().clamp(lowest, highest) }
}

/// The bytes of a group.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "steps are clamped")]
fn values(format: WeightFormat, group: &[f32], scale: f32, out: &mut [f32]) {
    match format {
        WeightFormat::Int8 => {
            for (out, &x) in out.iter_mut().zip(group) {
                *out = f32::from((step(x, scale, -127.0, 127.0) as i8).cast_unsigned());
            }
        }
        WeightFormat::Int4 => {
            for (out, pair) in out.iter_mut().zip(group.chunks_exact(2)) {
                let nibble = |x: f32| (step(x, scale, -8.0, 7.0) + 8.0) as u8;
                *out = f32::from(nibble(pair[0]) | nibble(pair[1]) << 4);
            }
        }
        WeightFormat::Fp8 => {
            for (out, &x) in out.iter_mut().zip(group) {
                *out = f32::from(if scale == 0.0 { 0 } else { e4m3(x / scale) });
            }
        }
    }
}

/// The nearest number of E4M3, ties to even; beyond 448 it is 448.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 15 · 8 + 7")]
fn e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs().min(448.0);
    // Below 2⁻⁶ steps are 2⁻⁹, above them an eighth of the power of two.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * 2.0_f32.powi(3 - exponent)).round_ties_even();
    // Subnormals have fewer than 8 steps and exponent 0; 16 steps carry into the exponent by themselves.
    let code = steps as i32 + (exponent + 6) * 8;
    sign | code.min(0x7e) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(format: WeightFormat, group_size: u32, row: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let quantization = Quantization { format, group_size };
        let matrix = [1, row.len() as u64];
        let part = |part| {
            let shape = shape(quantization, part, &matrix).unwrap();
            let mut out = vec![f32::NAN; shape[1] as usize];
            quantize_row(quantization, part, row, &mut out);
            out
        };
        (part(QuantizedPart::Values), part(QuantizedPart::Scales))
    }

    #[test]
    fn int8_reaches_the_largest_element_of_each_group() {
        let (bytes, scales) = quantized(WeightFormat::Int8, 2, &[127.0, -1.0, -254.0, 3.0]);
        assert_eq!(scales, [1.0, 2.0]);
        // -1 is 255, -127 is 129; 1.5 steps go to the even 2.
        assert_eq!(bytes, [127.0, 255.0, 129.0, 2.0]);
    }

    #[test]
    fn int4_packs_two_nibbles_with_an_offset_of_eight() {
        let (bytes, scales) = quantized(WeightFormat::Int4, 4, &[-8.0, 7.0, 0.0, 1.0]);
        assert_eq!(scales, [1.0]);
        assert_eq!(bytes, [f32::from(0xf0_u8), f32::from(0x98_u8)]);
        // The largest element above zero: the scale is negative, so that it takes the eighth step.
        let (bytes, scales) = quantized(WeightFormat::Int4, 2, &[8.0, -7.0]);
        assert_eq!((bytes, scales), (vec![f32::from(0xf0_u8)], vec![-1.0]));
    }

    #[test]
    fn fp8_is_the_nearest_number() {
        let (bytes, scales) =
            quantized(WeightFormat::Fp8, 8, &[448.0, -1.0, 1.0625, 1.1875, 0.001, 0.0, 300.0, -0.0]);
        assert_eq!(scales, [1.0]);
        // 1.0625 lies between 1 and 1.125 and goes to the even mantissa, 1.1875 between 1.125 and 1.25, 0.001 to 2⁻⁹ · ½.
        let expected: [u8; 8] = [0x7e, 0xb8, 0x38, 0x3a, 0x01, 0x00, 0x79, 0x80];
        assert_eq!(bytes, expected.map(f32::from));
    }

    #[test]
    fn zeros_stay_zeros() {
        for format in [WeightFormat::Int8, WeightFormat::Fp8] {
            assert_eq!(quantized(format, 2, &[0.0, 0.0]), (vec![0.0, 0.0], vec![0.0]));
        }
        let (bytes, scales) = quantized(WeightFormat::Int4, 2, &[0.0, 0.0]);
        assert_eq!((bytes, scales[0].abs()), (vec![f32::from(0x88_u8)], 0.0));
    }

    #[test]
    fn the_loss_is_of_what_the_bytes_and_the_scale_stand_for() {
        let lost = |format, row: &[f32]| {
            let quantization = Quantization { format, group_size: row.len() as u32 };
            let width = row.len() * format.bits() as usize / 8;
            quantize_row(quantization, QuantizedPart::Values, row, &mut vec![f32::NAN; width])
        };
        // Steps of 1: what lies between them is rounded to even.
        let of_int8 = lost(WeightFormat::Int8, &[127.0, 1.5, -2.25, 0.0]);
        assert_eq!((of_int8.squared_error, of_int8.squared_norm), (0.3125, 16136.3125));
        assert_eq!(of_int8.relative_error(), (0.3125_f64 / 16136.3125).sqrt());
        let of_int4 = lost(WeightFormat::Int4, &[-8.0, 7.0, 0.25, 1.0]);
        assert_eq!((of_int4.squared_error, of_int4.squared_norm), (0.0625, 114.0625));
        // 1.0625 lies between 1 and 1.125.
        let of_fp8 = lost(WeightFormat::Fp8, &[448.0, -1.0625]);
        assert_eq!(of_fp8.squared_error, 0.0625 * 0.0625);
        let of_zeros = lost(WeightFormat::Int4, &[0.0, 0.0]);
        assert_eq!((of_zeros, of_zeros.relative_error()), (QuantizationLoss::default(), 0.0));
        let quantization = Quantization { format: WeightFormat::Int8, group_size: 2 };
        let of_scales = quantize_row(quantization, QuantizedPart::Scales, &[1.0, 0.3], &mut [0.0]);
        assert_eq!(of_scales, QuantizationLoss::default());
    }

    #[test]
    fn every_code_of_e4m3_is_found_again() {
        for code in (0..=u8::MAX).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(e4m3(quantized_number(WeightFormat::Fp8, code)), code);
        }
        assert!(quantized_number(WeightFormat::Fp8, 0xff).is_nan());
    }

    #[test]
    fn what_does_not_divide_is_refused() {
        let quantization = Quantization { format: WeightFormat::Int8, group_size: 3 };
        assert!(shape(quantization, QuantizedPart::Scales, &[2, 4]).unwrap_err().contains("3"));
        assert!(shape(quantization, QuantizedPart::Scales, &[4]).is_err());
        assert!(
            shape(Quantization { group_size: 0, ..quantization }, QuantizedPart::Values, &[2, 4]).is_err()
        );
    }
}
