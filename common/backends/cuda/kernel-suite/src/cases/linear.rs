//! Products with weights of floats.

use roundhouse_cuda_device::Memory;
use roundhouse_cuda_kernels::{Activation, Epilogue, Linear, Method, Prologue, Weight};
use roundhouse_graph::DType;

use super::rows::normalise;
use super::{FLOATS, HALVES, arguments};
use crate::compare::{SUM_SLACK, rounded_slack};
use crate::tensor::rounded;
use crate::{Argument, Case, Random, Runner, SuiteError, Tensor, compare};

/// Rows and outputs that fill no tile and no block.
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) n: usize,
}

const EPILOGUES: [Epilogue; 6] = [
    Epilogue::NONE,
    Epilogue { residual: true, ..Epilogue::NONE },
    Epilogue { bias: true, activation: Activation::GeluTanh, ..Epilogue::NONE },
    Epilogue { gated: true, activation: Activation::Silu, ..Epilogue::NONE },
    Epilogue { bias: true, gated: true, activation: Activation::Gelu, residual: true, ..Epilogue::NONE },
    Epilogue { soft_cap: true, float_output: true, ..Epilogue::NONE },
];
const PROLOGUES: [Prologue; 3] =
    [Prologue::RmsNorm { unit_offset: false }, Prologue::RmsNorm { unit_offset: true }, Prologue::LayerNorm];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |dtype, columns, method, prologue, epilogue, shape| {
        let linear = Linear { dtype, weight: Weight::Float, columns, method, prologue, epilogue };
        cases.push(case(linear, shape));
    };
    for dtype in FLOATS {
        for epilogue in EPILOGUES {
            add(dtype, 24, Method::Any, Prologue::None, epilogue, Shape { rows: 3, n: 11 });
        }
        for prologue in PROLOGUES {
            add(dtype, 37, Method::Any, prologue, Epilogue::NONE, Shape { rows: 2, n: 9 });
        }
    }
    // Types take turns: what is special to a type is its reader and its writer, which all kernels share.
    for (i, epilogue) in EPILOGUES.into_iter().enumerate() {
        // Another split for each; 576 columns are no whole number of steps.
        let method = Method::Rows { rows: 1, split: 1 << (i % 4) };
        add(FLOATS[i % 3], 576, method, Prologue::None, epilogue, Shape { rows: 1, n: 37 });
        add(FLOATS[(i + 1) % 3], 2048, method, Prologue::None, epilogue, Shape { rows: 1, n: 12 });
        let method = Method::Tensor { rows: 8, split: 1 << (i % 4) };
        add(HALVES[i % 2], 288, method, Prologue::None, epilogue, Shape { rows: 5, n: 43 });
        let rows = [128, 64, 32][i % 3];
        let method = Method::Tiles { rows };
        let shape = Shape { rows: rows as usize + 3, n: 70 };
        add(HALVES[i % 2], 160, method, Prologue::None, epilogue, shape);
        let groups = Method::Warpgroups { outputs: [128, 256][i % 2] };
        add(HALVES[i / 2 % 2], 352, groups, Prologue::None, epilogue, Shape { rows: 131, n: 150 });
        add(HALVES[i / 2 % 2], 1120, groups, Prologue::None, epilogue, Shape { rows: 70, n: 150 });
        // Enough columns for several blocks to share a tile, of which one has fewer.
        let shape = Shape { rows: rows as usize - 1, n: 70 };
        add(HALVES[i % 2], 800, method, Prologue::None, epilogue, shape);
    }
    for (i, prologue) in PROLOGUES.into_iter().enumerate() {
        let method = Method::Rows { rows: 1, split: 2 };
        add(FLOATS[i], 896, method, prologue, EPILOGUES[3], Shape { rows: 1, n: 21 });
        let rows = 2 << i;
        let method = Method::Rows { rows, split: 2 };
        let shape = Shape { rows: rows as usize + 1, n: 13 };
        add(FLOATS[i], 320, method, Prologue::None, EPILOGUES[1], shape);
        let rows = 16 << i;
        let method = Method::Tensor { rows, split: 8 };
        let shape = Shape { rows: rows as usize + 3, n: 20 };
        add(HALVES[i % 2], 544, method, Prologue::None, EPILOGUES[1], shape);
    }
    let rows = Method::Rows { rows: 2, split: 1 };
    add(DType::F16, 320, rows, PROLOGUES[2], EPILOGUES[0], Shape { rows: 3, n: 19 });
    let rows = Method::Rows { rows: 1, split: 4 };
    add(DType::F16, 2048, rows, PROLOGUES[0], EPILOGUES[1], Shape { rows: 1, n: 50 });
    let tiles = Method::Tiles { rows: 128 };
    add(DType::F16, 32, tiles, Prologue::None, EPILOGUES[0], Shape { rows: 3, n: 5 });
    cases
}

/// Numbers for the arguments that are not the weight's.
pub(super) struct Operands {
    x: Tensor,
    x_stride: usize,
    norm_weight: Tensor,
    norm_bias: Tensor,
    bias: Tensor,
    residual: Tensor,
    y: Tensor,
    y_stride: usize,
    counters: Memory,
    scratch: Memory,
}

const EPSILON: f32 = 1e-3;
const OUTPUT_SCALE: f32 = 0.75;
const SOFT_CAP: f32 = 3.0;

impl Operands {
    pub(super) fn new(
        runner: &Runner,
        linear: &Linear,
        shape: &Shape,
        random: &mut Random,
    ) -> Result<Self, SuiteError> {
        let (dtype, columns, rows, n) = (linear.dtype, linear.columns as usize, shape.rows, shape.n);
        let (x_stride, y_stride) = (columns.next_multiple_of(8) + 8, n + 3);
        let output = if linear.epilogue.float_output { DType::F32 } else { dtype };
        let x: Vec<f32> = random.floats(rows * x_stride, 1.0).iter().map(|x| x + 0.25).collect();
        let scratch = linear.scratch_bytes(rows as u32, n as u32, runner.multiprocessors()) as usize;
        Ok(Self {
            counters: runner.upload(&vec![0; 4 * Linear::counters(runner.multiprocessors()) as usize])?,
            scratch: runner.poisoned(scratch)?,
            x: runner.numbers(dtype, &x)?,
            x_stride,
            norm_weight: runner.numbers(dtype, &random.floats(columns, 1.0))?,
            norm_bias: runner.numbers(dtype, &random.floats(columns, 0.5))?,
            bias: runner.numbers(dtype, &random.floats(2 * n, 1.0))?,
            residual: runner.numbers(dtype, &random.floats(rows * y_stride, 1.0))?,
            y: runner.output(output, rows * y_stride)?,
            y_stride,
        })
    }

    /// The arguments, with the weight's.
    pub(super) fn arguments(&self, linear: &Linear, shape: &Shape, weight: [Argument; 3]) -> Vec<Argument> {
        let Epilogue { bias, residual, .. } = linear.epilogue;
        let normed = linear.prologue != Prologue::None;
        let [weight, scales, offsets] = weight;
        arguments![
            &self.x,
            self.x_stride,
            normed.then_some(&self.norm_weight),
            (linear.prologue == Prologue::LayerNorm).then_some(&self.norm_bias),
            EPSILON,
            weight,
            scales,
            offsets,
            bias.then_some(&self.bias),
            residual.then_some(&self.residual),
            self.y_stride,
            &self.y,
            self.y_stride,
            shape.n,
            linear.columns as usize,
            shape.rows,
            OUTPUT_SCALE,
            SOFT_CAP,
            linear.flags(),
            &self.counters,
            &self.scratch
        ]
        .to_vec()
    }

    /// Compares `y` with the reference for a weight of these elements `[rows of the weight, columns]`. `slack` is
    /// for what the method loses of the weight.
    pub(super) fn check(
        &self,
        runner: &Runner,
        linear: &Linear,
        shape: &Shape,
        weight: &[f64],
        slack: f64,
    ) -> Result<(), SuiteError> {
        let (dtype, columns, n) = (linear.dtype, linear.columns as usize, shape.n);
        let epilogue = linear.epilogue;
        let output = if epilogue.float_output { DType::F32 } else { dtype };
        let found = runner.read(output, &self.y.memory)?;
        let slack = slack + if linear.prologue == Prologue::None { SUM_SLACK } else { rounded_slack(dtype) };
        let mut expected = Vec::new();
        let mut stored = Vec::new();
        for row in 0..shape.rows {
            let at = row * self.x_stride;
            let h = self.normalised(linear, &self.x.values[at..at + columns]);
            let product = |j: usize| {
                let w = &weight[j * columns..(j + 1) * columns];
                let sum: f64 = h.iter().zip(w).map(|(x, w)| x * w).sum();
                sum + if epilogue.bias { self.bias.values[j] } else { 0.0 }
            };
            for j in 0..n {
                let mut v = activate(epilogue.activation, product(j));
                v *= if epilogue.gated { product(n + j) } else { 1.0 };
                v *= f64::from(OUTPUT_SCALE);
                let cap = f64::from(SOFT_CAP);
                v = if epilogue.soft_cap { cap * (v / cap).tanh() } else { v };
                v += if epilogue.residual { self.residual.values[row * self.y_stride + j] } else { 0.0 };
                expected.push(v);
                stored.push(found[row * self.y_stride + j]);
            }
        }
        compare("product", output, &stored, &expected, slack)?;
        let counters = runner.read_integers(&self.counters)?;
        if counters.iter().any(|&counter| counter != 0) {
            compare("counters afterwards", DType::F32, &[1.0], &[0.0], 0.0)?;
        }
        // Between the rows nothing is written.
        let between = (0..shape.rows)
            .all(|row| found[row * self.y_stride + n..(row + 1) * self.y_stride].iter().all(|x| x.is_nan()));
        if between { Ok(()) } else { compare("between rows", output, &[0.0], &[f64::NAN], 0.0) }
    }

    fn normalised(&self, linear: &Linear, x: &[f64]) -> Vec<f64> {
        let layer = linear.prologue == Prologue::LayerNorm;
        let unit = match linear.prologue {
            Prologue::None => return x.to_vec(),
            Prologue::RmsNorm { unit_offset: true } => 1.0,
            Prologue::RmsNorm { .. } | Prologue::LayerNorm => 0.0,
        };
        let normal = normalise(x, layer, f64::from(EPSILON));
        let weighed = normal.iter().enumerate().map(|(k, x)| {
            x * (self.norm_weight.values[k] + unit) + if layer { self.norm_bias.values[k] } else { 0.0 }
        });
        weighed.map(|x| rounded(linear.dtype, x)).collect()
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * normal_distribution(x),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x.powi(3))).tanh())
        }
    }
}

/// `Φ(x)`, by its integral from 0 (Simpson's rule), which is right to 1e-10.
fn normal_distribution(x: f64) -> f64 {
    const STEPS: u32 = 400;
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let bound = x.clamp(-9.0, 9.0);
    let width = bound / f64::from(STEPS);
    let sum: f64 = (0..=STEPS)
        .map(|i| {
            let weight = if i == 0 || i == STEPS {
                1.0
            } else if i % 2 == 1 {
                4.0
            } else {
                2.0
            };
            weight * density(f64::from(i) * width)
        })
        .sum();
    0.5 + sum * width / 3.0
}

/// Sets the size of weights so that sums of products are around 1.
pub(super) fn weight_scale(columns: usize) -> f32 {
    2.0 / (columns as f32).sqrt()
}

fn case(linear: Linear, shape: Shape) -> Case {
    let kernel: roundhouse_cuda_kernels::Kernel = linear.clone().into();
    let name = format!("{} {}x{}", kernel.name(), shape.rows, shape.n);
    let name =
        if linear.method == Method::Any { format!("{name} flags {:#x}", linear.flags()) } else { name };
    let kernels = vec![kernel.clone()];
    let run = move |runner: &Runner| {
        let columns = linear.columns as usize;
        let mut random = Random::new(columns as u64 + shape.n as u64);
        let weight_rows = if linear.epilogue.gated { 2 * shape.n } else { shape.n };
        let operands = Operands::new(runner, &linear, &shape, &mut random)?;
        let weight = random.floats(weight_rows * columns, weight_scale(columns));
        let weight = runner.numbers(linear.dtype, &weight)?;
        let arguments = operands.arguments(
            &linear,
            &shape,
            [Argument::from(&weight), Argument::Pointer(0), Argument::Pointer(0)],
        );
        let launch = linear.launch(shape.rows as u32, shape.n as u32, runner.multiprocessors());
        runner.launch(&kernel, launch, &arguments)?;
        operands.check(runner, &linear, &shape, &weight.values, 0.0)
    };
    Case::new(name, kernels, run)
}
