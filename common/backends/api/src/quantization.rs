//! Quantises weights, a row at a time: symmetric, each group by itself.

use half::f16;
use roundhouse_graph::{Quantization, QuantizedPart, WeightFormat};

/// Scales that are tried for a group of four bits, as parts of the one that reaches its largest element: a smaller one
/// cuts the largest and rounds all others more finely.
const TRIED_SCALES: [f32; 9] = [1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.825, 0.8];

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

/// The part of one row: its bytes as numbers, or its scales, which are exact in fp16.
pub(crate) fn quantize_row(quantization: Quantization, part: QuantizedPart, row: &[f32], out: &mut [f32]) {
    let group_size = (quantization.group_size as usize).max(1);
    let groups = row.chunks_exact(group_size);
    let width = out.len().checked_div(groups.len()).unwrap_or(0).max(1);
    for (group, out) in groups.zip(out.chunks_exact_mut(width)) {
        let scale = scale(quantization.format, group);
        match part {
            QuantizedPart::Scales => out.fill(scale),
            QuantizedPart::Values => values(quantization.format, group, scale, out),
        }
    }
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
    fn what_does_not_divide_is_refused() {
        let quantization = Quantization { format: WeightFormat::Int8, group_size: 3 };
        assert!(shape(quantization, QuantizedPart::Scales, &[2, 4]).unwrap_err().contains("3"));
        assert!(shape(quantization, QuantizedPart::Scales, &[4]).is_err());
        assert!(
            shape(Quantization { group_size: 0, ..quantization }, QuantizedPart::Values, &[2, 4]).is_err()
        );
    }
}
