//! Measures products with quantised weights next to those with fp16 ones, on the shapes of Llama 3.2 1B:
//! `cargo run --release -p roundhouse-cpu-kernels --example quantized [THREADS] [ISA] [LAYERS] [FORMAT|all] [TOKENS]`.

use std::time::Instant;

use half::f16;
use roundhouse_cpu_kernels::{
    Elements, Isa, LinearJob, Matrix, QuantizedFormat, QuantizedMatrix, Reduction, Scratch, ThreadPool,
    Weight, linear, linear_silu_mul,
};

const HIDDEN: usize = 2048;
const INTERMEDIATE: usize = 8192;
const KV: usize = 512;

/// What a product of the model is: its name, rows of its weights, their columns, and whether it is gated.
type Shape = (&'static str, &'static [usize], usize, bool);

const LAYER: [Shape; 4] = [
    ("q, k, v", &[HIDDEN, KV, KV], HIDDEN, false),
    ("o", &[HIDDEN], HIDDEN, false),
    ("gate, up", &[INTERMEDIATE, INTERMEDIATE], HIDDEN, true),
    ("down", &[HIDDEN], INTERMEDIATE, false),
];

const LAYER_WEIGHTS: usize = (2 * HIDDEN + 2 * KV + 3 * INTERMEDIATE) * HIDDEN;

/// How weights are stored.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    /// Without one, fp16.
    format: Option<QuantizedFormat>,
    group_size: usize,
    with_offsets: bool,
    reduction: Reduction,
}

/// The memory that weights of every kind are read from, different weights from different parts.
struct Memory {
    halves: Vec<f16>,
    bytes: Vec<u8>,
    scales: Vec<f16>,
    offsets: Vec<f32>,
}

impl Memory {
    fn new(layers: usize) -> Self {
        let weights = layers * LAYER_WEIGHTS;
        let small = |i: usize| (i * 7919 % 1013) as f32 / 1e4 - 0.05;
        let table: Vec<f16> = (0..1013).map(|i| f16::from_f32(small(i))).collect();
        Self {
            halves: (0..weights).map(|i| table[i % 1013]).collect(),
            // No code of E4M3 that is no number.
            bytes: (0..weights).map(|i| (i * 31 % 251) as u8 & 0xf7).collect(),
            scales: (0..weights / 16).map(|i| table[i % 1013]).collect(),
            offsets: (0..weights / 16).map(|i| small(i % 1013)).collect(),
        }
    }

    /// The matrix whose weights come after `start` others.
    fn weight(&self, kind: Kind, start: usize, rows: usize, columns: usize) -> Weight<'_> {
        let count = rows * columns;
        let Some(format) = kind.format else {
            return Matrix { elements: Elements::F16(&self.halves[start..start + count]), rows, columns }
                .into();
        };
        let group_size = if kind.group_size == 0 { columns } else { kind.group_size };
        let bytes = |weights: usize| weights * format.bits() / 8;
        let groups = count / group_size;
        let first = start / group_size.max(16);
        Weight::Quantized(QuantizedMatrix {
            format,
            values: &self.bytes[bytes(start)..bytes(start + count)],
            scales: Elements::F16(&self.scales[first..first + groups]),
            offsets: kind.with_offsets.then(|| Elements::F32(&self.offsets[first..first + groups])),
            rows,
            columns,
            group_size,
        })
    }
}

impl Kind {
    /// Bytes of a layer's weights.
    fn layer_bytes(self) -> f64 {
        let Some(format) = self.format else { return LAYER_WEIGHTS as f64 * 2.0 };
        let of_group = 2.0 + if self.with_offsets { 4.0 } else { 0.0 };
        let groups = if self.group_size == 0 { 0.0 } else { LAYER_WEIGHTS as f64 / self.group_size as f64 };
        (LAYER_WEIGHTS * format.bits() / 8) as f64 + groups * of_group
    }
}

/// The shortest times of a kind of weights, in seconds.
struct Times {
    kind: Kind,
    /// Of a whole step.
    step: f64,
    /// Of each product, which another process on the machine disturbs less.
    products: Vec<f64>,
}

impl Times {
    fn new(kind: Kind, layers: usize) -> Self {
        Self { kind, step: f64::INFINITY, products: vec![f64::INFINITY; layers * LAYER.len()] }
    }

    /// Runs one step of `m` tokens through all layers.
    fn step(&mut self, pool: &ThreadPool, scratch: &mut Scratch, memory: &Memory, m: usize) {
        let x = vec![0.01; m * INTERMEDIATE];
        let mut outs: Vec<Vec<f32>> = [INTERMEDIATE, KV, KV].iter().map(|n| vec![0.0; m * n]).collect();
        let step_begun = Instant::now();
        let mut start = 0;
        let reduction = self.kind.reduction;
        let products = LAYER.into_iter().cycle();
        for ((_, rows, k, gated), shortest) in products.zip(&mut self.products) {
            let weights = rows.iter().map(|&n| {
                let weight = memory.weight(self.kind, start, n, k);
                start += n * k;
                weight
            });
            let weights: Vec<Weight<'_>> = weights.collect();
            let begun = Instant::now();
            if gated {
                let out = &mut outs[0];
                linear_silu_mul(pool, scratch, reduction, &x, m, k, weights[0], weights[1], out, rows[0]);
            } else {
                let jobs = weights.iter().zip(&mut outs).zip(rows).map(|((&weight, out), &n)| LinearJob {
                    weight,
                    bias: None,
                    accumulate: false,
                    out,
                    out_stride: n,
                });
                linear(pool, scratch, reduction, &x, m, k, &mut jobs.collect::<Vec<_>>());
            }
            *shortest = begun.elapsed().as_secs_f64().min(*shortest);
        }
        self.step = step_begun.elapsed().as_secs_f64().min(self.step);
    }

    fn print(&self, m: usize, of_fp16: f64) {
        let best: f64 = self.products.iter().sum();
        let layers = (self.products.len() / LAYER.len()) as f64;
        let group = match (self.kind.format, self.kind.group_size) {
            (None, _) => String::new(),
            (_, 0) => " a group a row".to_owned(),
            (_, size) => format!(" groups of {size}"),
        };
        println!(
            "{m} tokens, {}{group}{}{}: {:.1} ms (best of each {:.1} ms), {:.1} GB/s, {:.0} GFLOP/s, {:.2} x fp16",
            self.kind.name,
            if self.kind.with_offsets { " with offsets" } else { "" },
            if self.kind.reduction == Reduction::BatchInvariant { " in any batch the same" } else { "" },
            self.step * 1e3,
            best * 1e3,
            self.kind.layer_bytes() * layers / best / 1e9,
            2.0 * LAYER_WEIGHTS as f64 * layers * m as f64 / best / 1e9,
            of_fp16 / best,
        );
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = arguments.next().and_then(|threads| threads.parse().ok()).unwrap_or(cores);
    let isa = arguments.next().and_then(|name| Isa::named(&name)).unwrap_or_default();
    let layers = arguments.next().and_then(|layers| layers.parse().ok()).unwrap_or(16);
    let only = arguments.next().filter(|only| only != "all");
    let tokens: Option<usize> = arguments.next().and_then(|tokens| tokens.parse().ok());
    let pool = ThreadPool::with_isa(threads, isa);
    println!("{} threads, {}, {layers} layers", pool.threads(), isa.name());
    let memory = Memory::new(layers);

    let fp16 = Kind {
        name: "fp16",
        format: None,
        group_size: 0,
        with_offsets: false,
        reduction: Reduction::Fastest,
    };
    let mut kinds = vec![fp16];
    for (name, format) in
        [("int8", QuantizedFormat::Int8), ("int4", QuantizedFormat::Int4), ("fp8", QuantizedFormat::E4m3)]
    {
        for (group_size, with_offsets) in
            [(0, false), (128, false), (64, false), (32, false), (16, false), (128, true), (32, true)]
        {
            for reduction in [Reduction::Fastest, Reduction::BatchInvariant] {
                kinds.push(Kind { name, format: Some(format), group_size, with_offsets, reduction });
            }
        }
    }
    kinds.retain(|kind| kind.format.is_none() || only.as_deref().is_none_or(|only| only == kind.name));
    let mut scratch = Scratch::new();
    for m in tokens.map_or_else(|| vec![1, 2, 4, 8, 16, 32, 512], |tokens| vec![tokens]) {
        let (layers, rounds) = if m < 16 { (layers, 30) } else { (layers.min(2), 5) };
        let mut times: Vec<Times> = kinds.iter().map(|&kind| Times::new(kind, layers)).collect();
        // In turn, so that whatever else the machine does meets all kinds.
        for _ in 0..rounds {
            times.iter_mut().for_each(|times| times.step(&pool, &mut scratch, &memory, m));
        }
        let of_fp16 = times[0].products.iter().sum();
        times.iter().for_each(|times| times.print(m, of_fp16));
    }
}
