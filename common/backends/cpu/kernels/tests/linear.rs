//! Products with weights, on every instruction set, for every type of weight, at sizes that fit no vector or tile.

mod common;

use common::{Numbers, Random, TYPES, Type, assert_close, each_isa};
use roundhouse_cpu_kernels::{Isa, LinearJob, Reduction, Scratch, ThreadPool, linear, linear_silu_mul};

/// Rounding of an fp32 sum, relative to the sum of the magnitudes of its terms: well above √K · 2⁻²⁴, the expected one.
const FP32_SUM: f64 = 1.0 / (1 << 19) as f64;

/// The matrix unit drops about 2⁻¹⁷ of each product besides.
const SPLIT_SUM: f64 = 1.0 / (1 << 16) as f64;

fn tolerance(isa: Isa) -> f64 {
    if isa.name() == "amx" { SPLIT_SUM } else { FP32_SUM }
}

/// `x · wᵀ` and the sum of the magnitudes of its terms.
fn dot(x: &[f32], weight: &Numbers, row: usize) -> (f64, f64) {
    let k = x.len();
    let terms = x.iter().enumerate().map(|(i, &x)| f64::from(x) * weight.at(row * k + i));
    terms.fold((0.0, 0.0), |(sum, magnitude), term| (sum + term, magnitude + term.abs()))
}

#[test]
fn products_match_the_exact_ones() {
    let shapes = [(1, 1), (3, 5), (17, 33), (64, 64), (37, 100), (130, 321), (33, 700)];
    each_isa(|isa| {
        let mut scratch = Scratch::new();
        for threads in [1, 3] {
            let pool = ThreadPool::with_isa(threads, isa);
            for of in TYPES {
                for (n, k) in shapes {
                    for m in [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33, 45] {
                        let mut random = Random::new((n * 1000 + k * 10 + m) as u64);
                        let x_stride = k + 3;
                        let x = random.numbers(m * x_stride, 1.0);
                        let weight = Numbers::new(of, &random.numbers(n * k, 1.0));
                        let stride = n + 2;
                        let mut out = vec![7.0; m * stride];
                        let job = LinearJob {
                            weight: weight.matrix(n, k).into(),
                            bias: None,
                            accumulate: false,
                            out: &mut out,
                            out_stride: stride,
                        };
                        linear(&pool, &mut scratch, Reduction::Fastest, &x, m, x_stride, &mut [job]);
                        for t in 0..m {
                            for row in 0..n {
                                let (sum, magnitude) = dot(&x[t * x_stride..t * x_stride + k], &weight, row);
                                let what = format!("{of:?} n {n} k {k} m {m} threads {threads} ({t}, {row})");
                                assert_close(out[t * stride + row], sum, magnitude * tolerance(isa), what);
                            }
                            assert_eq!(
                                out[t * stride + n..(t + 1) * stride],
                                [7.0, 7.0],
                                "the gap between rows"
                            );
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn a_group_of_products_shares_its_inputs_and_adds_biases_and_residuals() {
    each_isa(|isa| {
        let pool = ThreadPool::with_isa(2, isa);
        let mut scratch = Scratch::new();
        let k = 200;
        for of in TYPES {
            for m in [1, 4, 11, 40] {
                let mut random = Random::new(m as u64);
                let x = random.numbers(m * k, 1.0);
                let rows = [150, 51, 1];
                let weights: Vec<Numbers> =
                    rows.iter().map(|n| Numbers::new(of, &random.numbers(n * k, 1.0))).collect();
                let biases: Vec<Vec<f32>> = rows.iter().map(|&n| random.numbers(n, 1.0)).collect();
                let before: Vec<Vec<f32>> = rows.iter().map(|n| random.numbers(m * n, 1.0)).collect();
                let mut outs = before.clone();
                let mut jobs: Vec<LinearJob<'_>> = outs
                    .iter_mut()
                    .enumerate()
                    .map(|(i, out)| LinearJob {
                        weight: weights[i].matrix(rows[i], k).into(),
                        bias: (i != 1).then_some(biases[i].as_slice()),
                        accumulate: i != 0,
                        out,
                        out_stride: rows[i],
                    })
                    .collect();
                linear(&pool, &mut scratch, Reduction::Fastest, &x, m, k, &mut jobs);
                for (i, n) in rows.into_iter().enumerate() {
                    for t in 0..m {
                        for row in 0..n {
                            let (mut sum, magnitude) = dot(&x[t * k..(t + 1) * k], &weights[i], row);
                            if i != 1 {
                                sum += f64::from(biases[i][row]);
                            }
                            if i != 0 {
                                sum += f64::from(before[i][t * n + row]);
                            }
                            let tolerance = (magnitude + 2.0) * tolerance(isa);
                            assert_close(
                                outs[i][t * n + row],
                                sum,
                                tolerance,
                                format!("{i} m {m} ({t}, {row})"),
                            );
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn gate_and_up_are_combined() {
    each_isa(|isa| {
        let pool = ThreadPool::with_isa(2, isa);
        let mut scratch = Scratch::new();
        for of in TYPES {
            for (n, k, m) in
                [(5, 9, 1), (150, 130, 1), (150, 130, 3), (70, 64, 8), (70, 64, 16), (150, 130, 50)]
            {
                let mut random = Random::new((n + m) as u64);
                let x = random.numbers(m * k, 1.0);
                let gate = Numbers::new(of, &random.numbers(n * k, 0.5));
                let up = Numbers::new(of, &random.numbers(n * k, 0.5));
                let stride = n + 1;
                let mut out = vec![0.0; m * stride];
                linear_silu_mul(
                    &pool,
                    &mut scratch,
                    Reduction::Fastest,
                    &x,
                    m,
                    k,
                    gate.matrix(n, k).into(),
                    up.matrix(n, k).into(),
                    &mut out,
                    stride,
                );
                for t in 0..m {
                    for row in 0..n {
                        let (gate, gate_magnitude) = dot(&x[t * k..(t + 1) * k], &gate, row);
                        let (up, up_magnitude) = dot(&x[t * k..(t + 1) * k], &up, row);
                        let expected = gate / (1.0 + (-gate).exp()) * up;
                        // The slope of silu is at most 1.1.
                        let magnitude = 1.1 * gate_magnitude * up.abs() + gate.abs() * up_magnitude;
                        let tolerance = (magnitude + expected.abs()) * tolerance(isa);
                        assert_close(
                            out[t * stride + row],
                            expected,
                            tolerance,
                            format!("m {m} ({t}, {row})"),
                        );
                    }
                }
            }
        }
    });
}

/// One product with every row of `x` alone, or all together.
fn product(isa: Isa, threads: usize, x: &[f32], m: usize, weight: &Numbers, n: usize) -> Vec<f32> {
    let pool = ThreadPool::with_isa(threads, isa);
    let k = x.len() / m;
    let mut out = vec![0.0; m * n];
    let job = LinearJob {
        weight: weight.matrix(n, k).into(),
        bias: None,
        accumulate: false,
        out: &mut out,
        out_stride: n,
    };
    linear(&pool, &mut Scratch::new(), Reduction::Fastest, x, m, k, &mut [job]);
    out
}

#[test]
fn a_row_does_not_depend_on_the_others_or_on_the_threads() {
    // More columns than a block of the blocked product has, and the end of neither block a whole vector.
    for (n, k) in [(201, 333), (37, 1100)] {
        each_isa(|isa| {
            for of in TYPES {
                let mut random = Random::new(5);
                let weight = Numbers::new(of, &random.numbers(n * k, 1.0));
                let x = random.numbers(80 * k, 1.0);
                // The matrix unit multiplies many rows in another way, but for fp32.
                let on_unit = isa.name() == "amx" && of != Type::F32;
                let few = product(isa, 3, &x[..6 * k], 6, &weight, n);
                let many = product(isa, 3, &x, 80, &weight, n);
                assert!(on_unit || few[..] == many[..6 * n]);
                for m in 1..6 {
                    assert!(product(isa, 1, &x[..m * k], m, &weight, n) == few[..m * n], "few rows: {m}");
                }
                for m in 7..70 {
                    assert!(product(isa, 2, &x[..m * k], m, &weight, n) == many[..m * n], "many rows: {m}");
                }
                // Wherever it stands among the others.
                let last = product(isa, 2, &x[79 * k..], 1, &weight, n);
                assert!(on_unit || last == many[79 * n..]);
            }
        });
    }
}

#[test]
fn blocks_of_many_rows_are_put_together() {
    // Enough rows that the packed activations are cut into several blocks, and enough columns for several of those.
    let (n, k, m) = (40, 1500, 700);
    each_isa(|isa| {
        let mut random = Random::new(11);
        let weight = Numbers::new(Type::F16, &random.numbers(n * k, 1.0));
        let x = random.numbers(m * k, 1.0);
        let out = product(isa, 2, &x, m, &weight, n);
        for t in (0..m).step_by(13).chain([m - 1]) {
            for row in 0..n {
                let (sum, magnitude) = dot(&x[t * k..(t + 1) * k], &weight, row);
                assert_close(out[t * n + row], sum, magnitude * tolerance(isa), format!("({t}, {row})"));
            }
        }
    });
}

#[test]
fn fp16_weights_below_the_normal_numbers_count() {
    each_isa(|isa| {
        let (n, k) = (3, 40);
        let mut random = Random::new(3);
        let weight = Numbers::new(Type::F16, &random.numbers(n * k, 5e-5));
        for m in [1, 20] {
            let x = random.numbers(m * k, 1.0);
            let out = product(isa, 1, &x, m, &weight, n);
            for t in 0..m {
                for row in 0..n {
                    let (sum, magnitude) = dot(&x[t * k..(t + 1) * k], &weight, row);
                    assert_close(
                        out[t * n + row],
                        sum,
                        magnitude * tolerance(isa),
                        format!("m {m} ({t}, {row})"),
                    );
                }
            }
        }
    });
}

#[test]
fn empty_shapes_are_no_work() {
    each_isa(|isa| {
        let pool = ThreadPool::with_isa(2, isa);
        let mut scratch = Scratch::new();
        linear(&pool, &mut scratch, Reduction::Fastest, &[], 0, 4, &mut []);
        for m in [1, 20] {
            // Without columns, the sums are of nothing.
            let mut out = vec![1.0; m * 2];
            let weight = Numbers::new(Type::F16, &[]);
            let job = LinearJob {
                weight: weight.matrix(2, 0).into(),
                bias: Some(&[3.0, 4.0]),
                accumulate: false,
                out: &mut out,
                out_stride: 2,
            };
            linear(&pool, &mut scratch, Reduction::Fastest, &[], m, 0, &mut [job]);
            assert_eq!(out, [3.0, 4.0].repeat(m));
        }
    });
}
