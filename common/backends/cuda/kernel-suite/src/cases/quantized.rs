//! Products with weights of few bits.

use half::f16;
use roundhouse_cuda_kernels::{Activation, Epilogue, Linear, Method, Prologue, Weight};
use roundhouse_graph::{DType, WeightFormat};

use super::linear::{Operands, Shape};
use super::{FLOATS, HALVES};
use crate::{Argument, Case, Random, Runner};

const FORMATS: [(WeightFormat, u32, bool, DType); 5] = [
    (WeightFormat::Int8, 32, false, DType::F32),
    (WeightFormat::Int8, 64, true, DType::F16),
    (WeightFormat::Int4, 32, true, DType::F32),
    (WeightFormat::Int4, 16, false, DType::Bf16),
    (WeightFormat::Fp8, 32, false, DType::F32),
];
/// Groups that begin and end inside of what is loaded at once, and one for all columns.
const OTHER_GROUPS: [(WeightFormat, u32, bool, DType); 3] = [
    (WeightFormat::Int4, 40, true, DType::F16),
    (WeightFormat::Int8, 8, true, DType::F16),
    (WeightFormat::Fp8, 320, false, DType::F16),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, (format, group_size, offsets, scales)) in FORMATS.into_iter().enumerate() {
        let weight = Weight::Quantized { format, group_size, offsets, scales };
        let mut add = |dtype, columns, method, epilogue, rows, n| {
            let linear = Linear { dtype, weight, columns, method, prologue: Prologue::None, epilogue };
            cases.push(case(linear, Shape { rows, n }));
        };
        let residual = Epilogue { residual: true, ..Epilogue::NONE };
        let gated = Epilogue { gated: true, activation: Activation::Silu, ..Epilogue::NONE };
        // A few of all combinations each: what is special to a format is one reader, shared by the methods.
        let dtype = FLOATS[i % FLOATS.len()];
        add(dtype, 64, Method::Any, residual, 2, 5);
        add(DType::F32, 576, Method::Rows { rows: 1, split: 2 }, gated, 1, 19);
        add(dtype, 576, Method::Rows { rows: 2, split: 1 }, residual, 3, 11);
        let half = HALVES[i % 2];
        // 320 columns are no whole number of steps of any format.
        add(half, 320, Method::Tensor { rows: 8, split: 2 }, gated, 3, 13);
        add(half, 320, Method::Tiles { rows: 64 }, residual, 37, 45);
        let groups = Method::Warpgroups { outputs: [256, 128][i % 2] };
        add(half, 704, groups, [gated, residual][i / 2 % 2], 70, 150);
        let other = HALVES[(i + 1) % 2];
        add(other, 320, Method::Tensor { rows: 16, split: 1 }, residual, 17, 37);
        add(other, 320, Method::Tiles { rows: 32 }, gated, 5, 21);
        add(other, 704, groups, residual, 9, 150);
    }
    for (i, (format, group_size, offsets, scales)) in OTHER_GROUPS.into_iter().enumerate() {
        let weight = Weight::Quantized { format, group_size, offsets, scales };
        let mut add = |dtype, method| {
            let (prologue, epilogue) = (Prologue::None, Epilogue::NONE);
            let linear = Linear { dtype, weight, columns: 320, method, prologue, epilogue };
            cases.push(case(linear, Shape { rows: 2, n: 21 }));
        };
        add(DType::F32, Method::Rows { rows: 2, split: 1 });
        add(HALVES[i % 2], Method::Tensor { rows: 8, split: 2 });
        add(HALVES[(i + 1) % 2], Method::Tiles { rows: 32 });
    }
    let int8 =
        Weight::Quantized { format: WeightFormat::Int8, group_size: 64, offsets: false, scales: DType::F16 };
    let mut normed = |dtype, method, prologue, weight| {
        let linear = Linear { dtype, weight, columns: 576, method, prologue, epilogue: Epilogue::NONE };
        cases.push(case(linear, Shape { rows: 1, n: 39 }));
    };
    let rms = |unit_offset| Prologue::RmsNorm { unit_offset };
    normed(DType::F32, Method::Rows { rows: 1, split: 2 }, rms(true), int8);
    normed(DType::F16, Method::Tensor { rows: 8, split: 1 }, rms(false), int8);
    normed(DType::Bf16, Method::Tensor { rows: 8, split: 4 }, Prologue::LayerNorm, int8);
    cases
}

/// A weight of few bits, and what it is exactly.
struct Quantized {
    bytes: Vec<u8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl Quantized {
    fn random(random: &mut Random, format: WeightFormat, rows: usize, columns: usize, group: usize) -> Self {
        let mut bytes: Vec<u8> =
            (0..rows * columns * format.bits() as usize / 8).map(|_| random.number() as u8).collect();
        let largest = match format {
            WeightFormat::Int8 => 127.0,
            WeightFormat::Int4 => 8.0,
            WeightFormat::Fp8 => {
                // The two bytes that are no numbers.
                bytes.iter_mut().filter(|byte| **byte & 0x7f == 0x7f).for_each(|byte| *byte &= 0x80);
                448.0
            }
        };
        let size = 2.0 / (columns as f32).sqrt() / largest;
        let groups = rows * columns / group;
        // Scales of both signs and of different sizes.
        let scales = (0..groups)
            .map(|_| random.float(size) + if random.below(2) == 0 { size } else { -size })
            .collect();
        Self { bytes, scales, offsets: random.floats(groups, size * largest * 0.5) }
    }

    /// The number that element `index` stands for, before its scale.
    fn number(&self, format: WeightFormat, index: usize) -> f64 {
        match format {
            WeightFormat::Int8 => f64::from(self.bytes[index].cast_signed()),
            WeightFormat::Int4 => f64::from((self.bytes[index / 2] >> (4 * (index % 2))) & 15) - 8.0,
            WeightFormat::Fp8 => {
                let byte = self.bytes[index];
                let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
                let size = if exponent == 0 {
                    mantissa / 8.0 * 2_f64.powi(-6)
                } else {
                    (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7)
                };
                if byte & 0x80 == 0 { size } else { -size }
            }
        }
    }
}

fn case(linear: Linear, shape: Shape) -> Case {
    let kernel: roundhouse_cuda_kernels::Kernel = linear.clone().into();
    let name = format!("{} {}x{}", kernel.name(), shape.rows, shape.n);
    let kernels = vec![kernel.clone()];
    let run = move |runner: &Runner| {
        let Weight::Quantized { format, group_size, offsets: has_offsets, scales: scale_type } =
            linear.weight
        else {
            return Ok(());
        };
        let (columns, group) = (linear.columns as usize, group_size as usize);
        let mut random = Random::new(columns as u64 + shape.n as u64);
        let weight_rows = if linear.epilogue.gated { 2 * shape.n } else { shape.n };
        let operands = Operands::new(runner, &linear, &shape, &mut random)?;
        let quantized = Quantized::random(&mut random, format, weight_rows, columns, group);
        let bytes = runner.upload(&quantized.bytes)?;
        let scales = runner.numbers(scale_type, &quantized.scales)?;
        let offsets = runner.numbers(scale_type, &quantized.offsets)?;
        let elements: Vec<f64> = (0..weight_rows * columns)
            .map(|index| {
                let group = index / group;
                let offset = if has_offsets { offsets.values[group] } else { 0.0 };
                quantized.number(format, index) * scales.values[group] + offset
            })
            .collect();
        let offsets = if has_offsets { Argument::from(&offsets) } else { Argument::Pointer(0) };
        let arguments =
            operands.arguments(&linear, &shape, [Argument::from(&bytes), Argument::from(&scales), offsets]);
        let launch = linear.launch(shape.rows as u32, shape.n as u32, runner.multiprocessors());
        runner.launch(&kernel, launch, &arguments)?;
        // On the tensor cores scales and weights are rounded to the activations' type.
        let exact = matches!(linear.method, Method::Any | Method::Rows { .. });
        let slack = match linear.dtype {
            _ if exact => 0.0,
            DType::F16 => 2.0 * f16::EPSILON.to_f64(),
            _ => 2.0_f64.powi(-6),
        };
        // What one of a gated product's factors loses is multiplied by the other, which may be some times its mean square.
        let slack = if linear.epilogue.gated { 4.0 * slack } else { slack };
        operands.check(runner, &linear, &shape, &elements, slack)
    };
    Case::new(name, kernels, run)
}
