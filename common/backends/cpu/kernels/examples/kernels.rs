//! Measures the kernels on the shapes of SmolLM2-135M, next to the machine's memory bandwidth:
//! `cargo run --release -p roundhouse-cpu-kernels --example kernels [THREADS] [ISA] [f16|bf16|f32|attention|small]`.

use std::hint::black_box;
use std::time::Instant;

use half::{bf16, f16};
use roundhouse_cpu_kernels::{
    AttentionArgs, AttentionSequence, Elements, Isa, KvView, LinearJob, Matrix, Reduction, Scratch,
    StridedRows, StridedRowsMut, ThreadPool, Weight, attention, linear, linear_silu_mul, rms_norm, silu_mul,
};

const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const KV: usize = 192;
const VOCABULARY: usize = 49152;
const LAYERS: usize = 30;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = arguments.next().and_then(|threads| threads.parse().ok()).unwrap_or(cores);
    let isa = arguments.next().and_then(|name| Isa::named(&name)).unwrap_or_default();
    let pool = ThreadPool::with_isa(threads, isa);
    let only = arguments.next();
    let wanted = |what: &str| only.as_deref().is_none_or(|only| only == what);
    println!("{} threads, {}", pool.threads(), isa.name());

    region(&pool);
    bandwidth(&pool);
    if wanted("small") {
        small(isa);
    }
    let numbers: Vec<f32> = (0..WEIGHTS).map(|i| (i * 7919 % 1013) as f32 / 1e4 - 0.05).collect();
    if wanted("f16") || wanted("attention") {
        let halves: Vec<f16> = numbers.iter().map(|&value| f16::from_f32(value)).collect();
        if wanted("f16") {
            products(&pool, "f16", Elements::F16(&halves));
        }
        if wanted("attention") {
            attention_time(&pool, Elements::F16(&halves));
        }
    }
    if wanted("bf16") {
        let brains: Vec<bf16> = numbers.iter().map(|&value| bf16::from_f32(value)).collect();
        products(&pool, "bf16", Elements::Bf16(&brains));
    }
    if wanted("f32") {
        products(&pool, "f32", Elements::F32(&numbers));
    }
}

/// The shortest of several runs, in seconds: others use the machine too.
fn best(runs: usize, mut run: impl FnMut()) -> f64 {
    run();
    let time = || {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    std::iter::repeat_with(time).take(runs).fold(f64::INFINITY, f64::min)
}

fn region(pool: &ThreadPool) {
    const REGIONS: usize = 1000;
    let seconds = best(20, || (0..REGIONS).for_each(|_| pool.run(&|worker| _ = black_box(worker))));
    println!("empty region: {:.2} µs", seconds * 1e6 / REGIONS as f64);
}

/// Sums memory far larger than the caches of a core, each worker four streams of it.
fn bandwidth(pool: &ThreadPool) {
    const LINES: usize = 32;
    let memory = vec![1u64; 64 << 20];
    let each = memory.len() / pool.threads() / 4;
    let seconds = best(5, || {
        pool.run(&|worker| {
            let stream = |i: usize| memory[(worker * 4 + i) * each..][..each].chunks_exact(LINES);
            let mut sums = [0u64; LINES];
            for (((a, b), c), d) in stream(0).zip(stream(1)).zip(stream(2)).zip(stream(3)) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.wrapping_add(a[i] ^ b[i] ^ c[i] ^ d[i]);
                }
            }
            black_box(sums);
        });
    });
    println!("memory read: {:.1} GB/s", (memory.len() * 8) as f64 / seconds / 1e9);
}

fn small(isa: Isa) {
    let (x, weight, mut out) = (vec![0.5; HIDDEN], vec![1.0; HIDDEN], vec![0.0; HIDDEN]);
    let seconds =
        best(50, || (0..100).for_each(|_| rms_norm(isa, black_box(&x), &weight, 1e-5, false, &mut out)));
    println!("rms_norm of {HIDDEN}: {:.0} ns", seconds * 1e7);
    let (gate, up, mut out) = (vec![0.5; INTERMEDIATE], vec![1.0; INTERMEDIATE], vec![0.0; INTERMEDIATE]);
    let seconds = best(50, || (0..100).for_each(|_| silu_mul(isa, black_box(&gate), &up, &mut out)));
    println!("silu_mul of {INTERMEDIATE}: {:.0} ns", seconds * 1e7);
}

/// What a product of the model is: its name, rows of its weights, their columns, and whether it is gated.
type Shape = (&'static str, &'static [usize], usize, bool);

const LAYER: [Shape; 4] = [
    ("q, k, v", &[HIDDEN, KV, KV], HIDDEN, false),
    ("o", &[HIDDEN], HIDDEN, false),
    ("gate, up", &[INTERMEDIATE, INTERMEDIATE], HIDDEN, true),
    ("down", &[HIDDEN], INTERMEDIATE, false),
];

const HEAD: Shape = ("head", &[VOCABULARY], HIDDEN, false);

const LAYER_WEIGHTS: usize = (HIDDEN + 2 * KV + HIDDEN + 3 * INTERMEDIATE) * HIDDEN;

const WEIGHTS: usize = LAYERS * LAYER_WEIGHTS + VOCABULARY * HIDDEN;

/// The products of a step of `m` tokens in the order of the model, each with weights of its own, so that none comes from a
/// core's cache. Returns the seconds of each kind of product, the shortest of several steps, and of the shortest step.
fn step(pool: &ThreadPool, elements: Elements<'_>, m: usize) -> ([f64; 5], f64) {
    let mut scratch = Scratch::new();
    let mut shortest = vec![f64::INFINITY; LAYERS * LAYER.len() + 1];
    let x = vec![0.01; m * INTERMEDIATE];
    let mut outs: Vec<Vec<f32>> =
        [if m == 1 { VOCABULARY } else { INTERMEDIATE }, KV, KV].iter().map(|n| vec![0.0; m * n]).collect();
    let step =
        best(if m < 10 { 20 } else { 5 }, || {
            let mut start = 0;
            let layers = std::iter::repeat_n(LAYER, LAYERS).flatten();
            for (shortest, (_, rows, k, gated)) in
                shortest.iter_mut().zip(layers.chain((m == 1).then_some(HEAD)))
            {
                let matrices = rows.iter().map(|&n| {
                    let elements = elements.slice(start..start + n * k);
                    start += n * k;
                    Weight::from(Matrix { elements, rows: n, columns: k })
                });
                let matrices: Vec<Weight<'_>> = matrices.collect();
                let begun = Instant::now();
                if gated {
                    let out = &mut outs[0];
                    linear_silu_mul(
                        pool,
                        &mut scratch,
                        Reduction::Fastest,
                        &x,
                        m,
                        k,
                        matrices[0],
                        matrices[1],
                        out,
                        rows[0],
                    );
                } else {
                    let jobs = matrices.iter().zip(&mut outs).zip(rows).map(|((&weight, out), &n)| {
                        LinearJob { weight, bias: None, accumulate: false, out, out_stride: n }
                    });
                    linear(pool, &mut scratch, Reduction::Fastest, &x, m, k, &mut jobs.collect::<Vec<_>>());
                }
                *shortest = begun.elapsed().as_secs_f64().min(*shortest);
            }
        });
    let mut kinds = [0.0; 5];
    for (i, seconds) in shortest.into_iter().enumerate().filter(|(_, seconds)| seconds.is_finite()) {
        kinds[if i == LAYERS * LAYER.len() { 4 } else { i % LAYER.len() }] += seconds;
    }
    (kinds, step)
}

fn products(pool: &ThreadPool, name: &str, elements: Elements<'_>) {
    for m in [1, 2, 4, 8, 9, 16, 17, 24, 32, 64, 65, 128, 512] {
        let (kinds, step) = step(pool, elements, m);
        if m == 1 || m == 512 {
            for ((what, rows, k, _), seconds) in LAYER.into_iter().chain((m == 1).then_some(HEAD)).zip(kinds)
            {
                let count = if what == "head" { 1 } else { LAYERS };
                let weights = (rows.iter().sum::<usize>() * k * count) as f64;
                let read = weights * elements.element_size() as f64 / seconds / 1e9;
                let computed = 2.0 * weights * m as f64 / seconds / 1e9;
                let each = seconds / count as f64 * 1e6;
                println!("{name} m {m} {what}: {each:.1} µs, {read:.1} GB/s, {computed:.0} GFLOP/s");
            }
        }
        let sum: f64 = kinds.iter().sum();
        println!(
            "{name} m {m} all products: {:.2} ms (best of each {:.2} ms), {:.0} tokens/s",
            step * 1e3,
            sum * 1e3,
            m as f64 / step
        );
    }
}

fn attention_time(pool: &ThreadPool, elements: Elements<'_>) {
    let full = AttentionArgs {
        query_heads: 9,
        kv_heads: 3,
        head_dim: 64,
        value_dim: 64,
        scale: 0.125,
        soft_cap: None,
        window: None,
        causal: true,
    };
    let sizes = [(1, 64), (1, 512), (1, 2048), (1, 8192), (512, 512), (512, 2048), (2048, 2048)];
    for (tokens, len) in sizes {
        one_attention(pool, elements, &full, tokens, len, 8192);
    }
    // A sliding window over all positions, and over a ring of those that steps of 512 tokens need.
    let sliding = AttentionArgs { window: Some(512), ..full };
    for (tokens, len) in [(1, 512), (1, 8192), (512, 512), (512, 8192)] {
        for rows in [8192, 1023] {
            one_attention(pool, elements, &sliding, tokens, len, rows);
        }
    }
}

/// Times one layer's attention over a cache of so many rows.
fn one_attention(
    pool: &ThreadPool,
    elements: Elements<'_>,
    args: &AttentionArgs,
    tokens: usize,
    len: usize,
    rows: usize,
) {
    let mut scratch = Scratch::new();
    let queries = vec![0.1; tokens * HIDDEN];
    let mut out = vec![0.0; tokens * HIDDEN];
    let view = KvView { elements, head_stride: rows * 64, row_stride: 64, rows, len };
    let seconds = best(if tokens == 1 { 100 } else { 5 }, || {
        let mut sequences = [AttentionSequence {
            queries: StridedRows { data: &queries, token_stride: HIDDEN, head_stride: 64 },
            tokens,
            keys: view,
            values: view,
            mask: None,
            out: StridedRowsMut { data: &mut out, token_stride: HIDDEN, head_stride: 64 },
        }];
        attention(pool, &mut scratch, args, &mut sequences);
    });
    let window = args.window.map_or_else(String::new, |window| format!(", window {window} in {rows} rows"));
    println!("attention, {tokens} queries, {len} keys{window}: {:.1} µs a layer", seconds * 1e6);
}
