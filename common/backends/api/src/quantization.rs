//! Quantises weights, a row at a time, each group by itself: symmetric, or with an offset beside its scale.

use std::ops::AddAssign;

use half::f16;
use roundhouse_graph::{QuantizedLinearAttributes, QuantizedPart, WeightFormat};

/// Scales that are tried for a group of four bits, as parts of the one that reaches its outermost elements: a smaller one
/// cuts those and rounds all others more finely.
const TRIED_SCALES: [f32; 9] = [1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.825, 0.8];

/// How often the steps of a group are fitted anew to the codes that they give.
const REFITS: usize = 2;

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

/// What the numbers of a group's codes become: `code · scale + offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupSteps {
    /// Exact in fp16.
    pub scale: f32,
    /// Exact in fp16; 0 where groups have none.
    pub offset: f32,
}

impl GroupSteps {
    /// The steps of a group whose elements count by `importance`, one a column. With four bits those that lose least of
    /// some tried, each moved to where the codes that it gives fit best.
    #[must_use]
    pub fn weighted(attributes: QuantizedLinearAttributes, group: &[f32], importance: &[f32]) -> Self {
        let format = attributes.quantization.format;
        if format != WeightFormat::Int4 {
            return steps(format, attributes.has_offsets, group);
        }
        let error = |steps: &Self| -> f32 {
            let lost = |(&x, &weight): (&f32, &f32)| weight * (x - steps.nearest(format, x)).powi(2);
            group.iter().zip(importance).map(lost).sum()
        };
        let mut best: Option<(f32, Self)> = None;
        for part in TRIED_SCALES {
            let mut steps = four_bit_steps(attributes.has_offsets, group, part);
            for _ in 0..=REFITS {
                let lost = error(&steps);
                if best.is_none_or(|(least, _)| lost < least) {
                    best = Some((lost, steps));
                }
                steps = steps.refitted(attributes.has_offsets, group, importance);
            }
        }
        best.map_or_else(|| steps(format, attributes.has_offsets, group), |(_, steps)| steps)
    }

    /// The weighted least squares over a group, its codes as they are with these steps.
    fn refitted(self, has_offset: bool, group: &[f32], importance: &[f32]) -> Self {
        let code = |x: f32| step(x - self.offset, self.scale, -8.0, 7.0);
        let sum = |of: &dyn Fn(f32) -> f32| -> f32 {
            group.iter().zip(importance).map(|(&x, &weight)| weight * of(x)).sum()
        };
        let total = sum(&|_| 1.0);
        let (mut middle, mut middle_code) = (0.0, 0.0);
        if has_offset && total > 0.0 {
            (middle, middle_code) = (sum(&|x| x) / total, sum(&code) / total);
        }
        let spread = sum(&|x| (code(x) - middle_code).powi(2));
        if spread.is_nan() || spread <= 0.0 {
            return self;
        }
        let scale = storable(sum(&|x| (code(x) - middle_code) * (x - middle)) / spread);
        let offset = if has_offset { storable(middle - scale * middle_code) } else { 0.0 };
        Self { scale, offset }
    }

    /// The number of a format that is nearest to `x` on these steps.
    #[must_use]
    pub fn nearest(self, format: WeightFormat, x: f32) -> f32 {
        let Self { scale, offset } = self;
        match format {
            WeightFormat::Int8 => step(x, scale, -127.0, 127.0) * scale,
            WeightFormat::Int4 => step(x - offset, scale, -8.0, 7.0) * scale + offset,
            WeightFormat::Fp8 => {
                if scale == 0.0 {
                    0.0
                } else {
                    quantized_number(format, e4m3(x / scale)) * scale
                }
            }
        }
    }

    /// The bytes of a group, as numbers, for numbers that lie on these steps or anywhere else.
    pub fn bytes(self, format: WeightFormat, group: &[f32], out: &mut [f32]) {
        values(format, group, self, out);
    }
}

/// The shape of a part of a matrix `[N, K]`, or why there is none.
pub(crate) fn shape(
    attributes: QuantizedLinearAttributes,
    part: QuantizedPart,
    matrix: &[u64],
) -> Result<Vec<u64>, String> {
    let quantization = attributes.quantization;
    let [rows, columns] = matrix[..] else {
        return Err(format!("only a matrix can be quantised, the shape is {matrix:?}"));
    };
    let group_size = u64::from(quantization.group_size);
    if group_size == 0 || columns % group_size != 0 {
        return Err(format!("groups of {group_size} do not divide {columns} columns"));
    }
    if attributes.has_offsets && quantization.format != WeightFormat::Int4 {
        return Err(format!("{} is made without offsets", quantization.format.name()));
    }
    Ok(match part {
        QuantizedPart::Values => vec![rows, columns * u64::from(quantization.format.bits()) / 8],
        QuantizedPart::Scales | QuantizedPart::Offsets => vec![rows, columns / group_size],
    })
}

/// The part of one row: its bytes as numbers, or its scales or offsets, which are exact in fp16. With the bytes it says
/// what was lost.
pub(crate) fn quantize_row(
    attributes: QuantizedLinearAttributes,
    part: QuantizedPart,
    row: &[f32],
    out: &mut [f32],
) -> QuantizationLoss {
    let format = attributes.quantization.format;
    let group_size = (attributes.quantization.group_size as usize).max(1);
    let groups = row.chunks_exact(group_size);
    let width = out.len().checked_div(groups.len()).unwrap_or(0).max(1);
    let mut lost = QuantizationLoss::default();
    for (group, out) in groups.zip(out.chunks_exact_mut(width)) {
        let steps = steps(format, attributes.has_offsets, group);
        match part {
            QuantizedPart::Scales => out.fill(steps.scale),
            QuantizedPart::Offsets => out.fill(steps.offset),
            QuantizedPart::Values => {
                values(format, group, steps, out);
                lost += loss(format, group, steps, out);
            }
        }
    }
    lost
}

/// What a group lost to its bytes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes are 0 to 255")]
fn loss(format: WeightFormat, group: &[f32], steps: GroupSteps, bytes: &[f32]) -> QuantizationLoss {
    let mut lost = QuantizationLoss::default();
    let mut add = |x: f32, code: u8| {
        let difference =
            f64::from(x) - f64::from(quantized_number(format, code) * steps.scale + steps.offset);
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

/// The scale and offset of a group; a scale of zero for a group of equal numbers with an offset, or of zeros without.
fn steps(format: WeightFormat, has_offset: bool, group: &[f32]) -> GroupSteps {
    let largest = group.iter().copied().fold(0.0_f32, |max, x| if x.abs() > max.abs() { x } else { max });
    let symmetric = |scale: f32| GroupSteps { scale: storable(scale), offset: 0.0 };
    match format {
        WeightFormat::Int8 => symmetric(largest.abs() / 127.0),
        WeightFormat::Fp8 => symmetric(largest.abs() / 448.0),
        WeightFormat::Int4 => best_of_four_bits(group, |part| four_bit_steps(has_offset, group, part)),
    }
}

/// GroupSteps of four bits for a part of a group's full range.
fn four_bit_steps(has_offset: bool, group: &[f32], part: f32) -> GroupSteps {
    if !has_offset {
        let largest = group.iter().copied().fold(0.0_f32, |max, x| if x.abs() > max.abs() { x } else { max });
        // There are eight steps below zero and seven above: the largest element goes where the eight are.
        return GroupSteps { scale: storable(largest / -8.0 * part), offset: 0.0 };
    }
    let (low, high) =
        group.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)));
    let (middle, half) = (f32::midpoint(low, high), (high - low) / 2.0);
    let scale = storable(half * part / 7.5);
    // The middle of the codes -8 to 7 is -½.
    GroupSteps { scale, offset: storable(middle + scale / 2.0) }
}

/// Of the steps for each part of the full range those that lose least.
fn best_of_four_bits(group: &[f32], steps: impl Fn(f32) -> GroupSteps) -> GroupSteps {
    let error = |steps: &GroupSteps| -> f32 {
        let number = |x| step(x - steps.offset, steps.scale, -8.0, 7.0) * steps.scale + steps.offset;
        group.iter().map(|&x| (x - number(x)).powi(2)).sum()
    };
    let tried = TRIED_SCALES.iter().map(|&part| steps(part));
    tried.min_by(|a, b| error(a).total_cmp(&error(b))).unwrap_or_else(|| steps(1.0))
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
fn values(format: WeightFormat, group: &[f32], steps: GroupSteps, out: &mut [f32]) {
    let GroupSteps { scale, offset } = steps;
    match format {
        WeightFormat::Int8 => {
            for (out, &x) in out.iter_mut().zip(group) {
                *out = f32::from((step(x, scale, -127.0, 127.0) as i8).cast_unsigned());
            }
        }
        WeightFormat::Int4 => {
            for (out, pair) in out.iter_mut().zip(group.chunks_exact(2)) {
                let nibble = |x: f32| (step(x - offset, scale, -8.0, 7.0) + 8.0) as u8;
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
    use roundhouse_graph::Quantization;

    use super::*;

    const fn attributes(format: WeightFormat, group_size: u32) -> QuantizedLinearAttributes {
        QuantizedLinearAttributes { quantization: Quantization { format, group_size }, has_offsets: false }
    }

    fn quantized(format: WeightFormat, group_size: u32, row: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let attributes = attributes(format, group_size);
        let matrix = [1, row.len() as u64];
        let part = |part| {
            let shape = shape(attributes, part, &matrix).unwrap();
            let mut out = vec![f32::NAN; shape[1] as usize];
            quantize_row(attributes, part, row, &mut out);
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
            let attributes = attributes(format, row.len() as u32);
            let width = row.len() * format.bits() as usize / 8;
            quantize_row(attributes, QuantizedPart::Values, row, &mut vec![f32::NAN; width])
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
        let int8 = attributes(WeightFormat::Int8, 2);
        let of_scales = quantize_row(int8, QuantizedPart::Scales, &[1.0, 0.3], &mut [0.0]);
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
    fn an_offset_finds_a_grid_that_is_not_around_zero_again() {
        let with_offsets =
            QuantizedLinearAttributes { has_offsets: true, ..attributes(WeightFormat::Int4, 16) };
        let part = |part, row: &[f32]| {
            let shape = shape(with_offsets, part, &[1, row.len() as u64]).unwrap();
            let mut out = vec![f32::NAN; shape[1] as usize];
            (quantize_row(with_offsets, part, row, &mut out), out)
        };
        // Sixteen numbers from 0.25 on, a quarter apart; and sixteen equal ones.
        let grid: Vec<f32> = (1..=16_u8).map(|step| f32::from(step) / 4.0).collect();
        let row = [&grid[..], &[0.5; 16]].concat();
        let (lost, bytes) = part(QuantizedPart::Values, &row);
        assert_eq!((lost.squared_error, bytes.len()), (0.0, 16));
        // The lowest code is -8: the offset is eight steps above the lowest number.
        assert_eq!(part(QuantizedPart::Scales, &row).1, [0.25, 0.0]);
        assert_eq!(part(QuantizedPart::Offsets, &row).1, [2.25, 0.5]);
        assert_eq!(bytes[..8], [0x10_u8, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe].map(f32::from));
        // Without offsets the same numbers do not lie on any sixteen steps around zero.
        let symmetric = attributes(WeightFormat::Int4, 16);
        assert!(quantize_row(symmetric, QuantizedPart::Values, &row, &mut [0.0; 16]).squared_error > 0.1);
    }

    #[test]
    fn weighted_steps_lose_less_where_it_counts() {
        let group: Vec<f32> = (0..32_u16).map(|at| f32::from(at * 37 % 101) / 7.0 - 5.0).collect();
        let mut importance = [1.0; 32];
        importance[5..9].fill(100.0);
        for has_offsets in [true, false] {
            let attributes = QuantizedLinearAttributes { has_offsets, ..attributes(WeightFormat::Int4, 32) };
            let lost = |steps: GroupSteps| -> f32 {
                let each =
                    |(x, weight): (&f32, &f32)| weight * (x - steps.nearest(WeightFormat::Int4, *x)).powi(2);
                group.iter().zip(&importance).map(each).sum()
            };
            let weighted = lost(GroupSteps::weighted(attributes, &group, &importance));
            let equal = lost(GroupSteps::weighted(attributes, &group, &[1.0; 32]));
            let tried = lost(steps(WeightFormat::Int4, has_offsets, &group));
            assert!(weighted < equal && weighted < tried, "{has_offsets}: {weighted} {equal} {tried}");
        }
    }

    #[test]
    fn what_does_not_divide_is_refused() {
        let int8 = attributes(WeightFormat::Int8, 3);
        assert!(shape(int8, QuantizedPart::Scales, &[2, 4]).unwrap_err().contains("3"));
        assert!(shape(int8, QuantizedPart::Scales, &[4]).is_err());
        assert!(shape(attributes(WeightFormat::Int8, 0), QuantizedPart::Values, &[2, 4]).is_err());
        let with_offsets =
            QuantizedLinearAttributes { has_offsets: true, ..attributes(WeightFormat::Fp8, 2) };
        assert!(shape(with_offsets, QuantizedPart::Offsets, &[2, 4]).unwrap_err().contains("fp8"));
    }
}
