//! Element by element functions, norms, softmax, rotary embedding, conversions and argmax, on every instruction set.

mod common;

use common::{Numbers, Random, TYPES, Type, assert_close, each_isa, ulps};
use half::{bf16, f16};
use roundhouse_cpu_kernels::{
    Elements, ElementsMut, Isa, ThreadPool, add, add_assign, argmax, gelu_erf, gelu_tanh, layer_norm,
    layer_norm_rows, load, mul, mul_assign, rms_norm, rms_norm_rows, rope_apply, rope_table, scale, silu,
    silu_mul, soft_cap, softmax, store, store_kv,
};

/// Lengths around those of vectors.
const LENGTHS: [usize; 12] = [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 64, 579];

/// A wide range of magnitudes of both signs.
fn spread(len: usize) -> Vec<f32> {
    let mut random = Random::new(len as u64 + 7);
    (0..len).map(|_| random.number() * 2f32.powf(random.number() * 12.0)).collect()
}

#[test]
fn arithmetic_is_exact() {
    each_isa(|isa| {
        for len in LENGTHS {
            let (a, b) = (spread(len), Random::new(3).numbers(len, 5.0));
            let each =
                |f: fn(f32, f32) -> f32| a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect::<Vec<f32>>();
            let mut out = vec![0.0; len];
            add(isa, &a, &b, &mut out);
            assert_eq!(out, each(|a, b| a + b));
            mul(isa, &a, &b, &mut out);
            assert_eq!(out, each(|a, b| a * b));
            out.copy_from_slice(&a);
            add_assign(isa, &mut out, &b);
            assert_eq!(out, each(|a, b| a + b));
            out.copy_from_slice(&a);
            mul_assign(isa, &mut out, &b);
            assert_eq!(out, each(|a, b| a * b));
            out.copy_from_slice(&a);
            scale(isa, &mut out, 0.3);
            assert_eq!(out, each(|a, _| a * 0.3));
        }
    });
}

/// Applies a kernel to many numbers and compares each with the exact function.
fn check_function(
    kernel: impl Fn(Isa, &mut [f32]),
    exact: impl Fn(f64) -> f64,
    error: impl Fn(f32, f32, f64) -> f64,
    tolerance: f64,
) {
    each_isa(|isa| {
        for len in LENGTHS {
            let x = spread(len);
            check_numbers(isa, &x, &kernel, &exact, &error, tolerance);
        }
        let steps: Vec<f32> = (-120_000..120_000).map(|i| i as f32 / 1000.0).collect();
        check_numbers(isa, &steps, &kernel, &exact, &error, tolerance);
        let tiny: Vec<f32> = (0..40).flat_map(|i| [2f32.powi(-i), -2f32.powi(-i)]).chain([0.0]).collect();
        check_numbers(isa, &tiny, &kernel, &exact, &error, tolerance);
    });
}

fn check_numbers(
    isa: Isa,
    x: &[f32],
    kernel: &impl Fn(Isa, &mut [f32]),
    exact: &impl Fn(f64) -> f64,
    error: &impl Fn(f32, f32, f64) -> f64,
    tolerance: f64,
) {
    let mut out = x.to_vec();
    kernel(isa, &mut out);
    for (&x, &found) in x.iter().zip(&out) {
        let expected = exact(f64::from(x));
        let error = error(x, found, expected);
        assert!(error <= tolerance, "f({x}) = {found}, not {expected} (error {error})");
    }
}

#[test]
fn silu_is_within_a_few_units_in_the_last_place() {
    // Where e^-x overflows to infinity, x / (1 + e^-x) is at most 10⁻³⁶ and becomes zero.
    let error =
        |_: f32, found, expected: f64| if expected.abs() < 1e-35 { 0.0 } else { ulps(found, expected) };
    check_function(silu, |x| x / (1.0 + (-x).exp()), error, 4.0);
}

#[test]
fn soft_cap_is_within_a_few_units_in_the_last_place() {
    for cap in [1.0f32, 30.0] {
        let exact = |x: f64| f64::from(cap) * (x / f64::from(cap)).tanh();
        check_function(
            |isa, x| soft_cap(isa, x, cap),
            exact,
            |_, found, expected| ulps(found, expected),
            5.0,
        );
    }
}

#[test]
fn gelu_by_tanh_is_accurate_relative_to_its_result() {
    let exact = |x: f64| {
        // ½ (1 + tanh u) = 1 / (1 + e^-2u), which does not cancel.
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
        x / (1.0 + (-2.0 * u).exp())
    };
    // The rounding of 2u, at most 90 where the result counts, is an error relative to e^-2u.
    let error = |_, found: f32, expected: f64| (f64::from(found) - expected).abs() / (expected.abs() + 1e-30);
    check_function(gelu_tanh, exact, error, 2e-5);
    let near = |x: f32, found: f32, expected: f64| {
        if x.abs() > 4.0 { 0.0 } else { (f64::from(found) - expected).abs() / (expected.abs() + 1e-30) }
    };
    check_function(gelu_tanh, exact, near, 2e-6);
}

/// The error function by its series, and the continued fraction of its complement.
fn erfc(x: f64) -> f64 {
    let z = x.abs();
    let complement = if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for n in 1..200 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum
    } else {
        let mut fraction = z;
        for n in (1..200).rev() {
            fraction = z + f64::from(n) / 2.0 / fraction;
        }
        (-z * z).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    if x < 0.0 { 2.0 - complement } else { complement }
}

#[test]
fn gelu_by_erf_is_accurate_relative_to_its_argument() {
    let exact = |x: f64| 0.5 * x * erfc(-x / std::f64::consts::SQRT_2);
    let error = |x: f32, found: f32, expected: f64| {
        (f64::from(found) - expected).abs() / f64::from(x.abs().max(1e-30))
    };
    check_function(gelu_erf, exact, error, 3e-7);
}

#[test]
fn silu_mul_is_the_product() {
    each_isa(|isa| {
        for len in LENGTHS {
            let (gate, up) = (spread(len), Random::new(9).numbers(len, 3.0));
            let mut out = vec![0.0; len];
            silu_mul(isa, &gate, &up, &mut out);
            for i in 0..len {
                let x = f64::from(gate[i]);
                let expected = x / (1.0 + (-x).exp()) * f64::from(up[i]);
                assert!(ulps(out[i], expected) <= 5.0 || expected.abs() < 1e-35, "{} {expected}", out[i]);
            }
        }
    });
}

#[test]
fn special_numbers_pass_through_as_in_the_formulas() {
    each_isa(|isa| {
        let special = [f32::NAN, f32::INFINITY, -200.0, 200.0, 0.0];
        let mut x = special;
        silu(isa, &mut x);
        assert!(x[0].is_nan() && x[1] == f32::INFINITY && x[2] == 0.0 && x[3] == 200.0 && x[4] == 0.0);
        let mut x = special;
        gelu_tanh(isa, &mut x);
        assert!(x[0].is_nan() && x[1] == f32::INFINITY && x[2] == 0.0 && x[3] == 200.0 && x[4] == 0.0);
        let mut x = special;
        soft_cap(isa, &mut x, 50.0);
        assert!(x[0].is_nan() && x[1] == 50.0 && x[4] == 0.0);
    });
}

#[test]
fn norms_match_their_definitions() {
    each_isa(|isa| {
        for len in LENGTHS.into_iter().skip(1) {
            let mut random = Random::new(len as u64);
            let x: Vec<f32> = random.numbers(len, 4.0).iter().map(|x| x + 1.0).collect();
            let (weight, bias) = (random.numbers(len, 2.0), random.numbers(len, 2.0));
            let n = len as f64;
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let mean_square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
            let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
            let mut out = vec![0.0; len];
            for unit_offset in [false, true] {
                rms_norm(isa, &x, &weight, 1e-5, unit_offset, &mut out);
                for i in 0..len {
                    let weight = f64::from(weight[i]) + if unit_offset { 1.0 } else { 0.0 };
                    let expected = f64::from(x[i]) / (mean_square + 1e-5).sqrt() * weight;
                    assert_close(
                        out[i],
                        expected,
                        expected.abs() * 1e-6 + 1e-7,
                        format!("rms_norm {len} {i}"),
                    );
                }
            }
            for bias in [None, Some(bias.as_slice())] {
                layer_norm(isa, &x, &weight, bias, 1e-5, &mut out);
                for i in 0..len {
                    let normal = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                    let expected =
                        normal * f64::from(weight[i]) + bias.map_or(0.0, |bias| f64::from(bias[i]));
                    // Around a mean of 1 the difference loses bits that the size of the numbers does not show; with one
                    // element it is all that is left, times 1/√epsilon.
                    assert_close(out[i], expected, 5e-6, format!("layer_norm {len} {i}"));
                }
            }
        }
    });
}

#[test]
fn norms_of_many_rows_are_those_of_each() {
    each_isa(|isa| {
        let pool = ThreadPool::with_isa(3, isa);
        for (rows, len) in [(1, 33), (3, 20), (70, 579)] {
            let mut random = Random::new(1);
            let (x, weight) = (random.numbers(rows * len, 1.0), random.numbers(len, 1.0));
            let bias = random.numbers(len, 1.0);
            let (mut out, mut row_out) = (vec![0.0; rows * len], vec![0.0; len]);
            rms_norm_rows(&pool, &x, &weight, 1e-6, false, &mut out);
            for (x, out) in x.chunks(len).zip(out.chunks(len)) {
                rms_norm(isa, x, &weight, 1e-6, false, &mut row_out);
                assert_eq!(out, row_out);
            }
            layer_norm_rows(&pool, &x, &weight, Some(&bias), 1e-6, &mut out);
            for (x, out) in x.chunks(len).zip(out.chunks(len)) {
                layer_norm(isa, x, &weight, Some(&bias), 1e-6, &mut row_out);
                assert_eq!(out, row_out);
            }
        }
    });
}

#[test]
fn softmax_sums_to_one_and_hides_negative_infinity() {
    each_isa(|isa| {
        for len in LENGTHS.into_iter().skip(1) {
            let mut row = Random::new(len as u64).numbers(len, 30.0);
            row[len / 2] = f32::NEG_INFINITY;
            row[len - 1] = 100.0;
            let exps: Vec<f64> = row.iter().map(|&x| (f64::from(x) - 100.0).exp()).collect();
            let sum: f64 = exps.iter().sum();
            softmax(isa, &mut row);
            for (found, exp) in row.iter().zip(exps) {
                // The difference from the largest, up to 130, is rounded to multiples of 2⁻¹⁷ or finer.
                assert_close(*found, exp / sum, exp / sum * 8e-6 + 1e-38, format!("softmax of {len}"));
            }
        }
        let mut hidden = [f32::NEG_INFINITY; 21];
        softmax(isa, &mut hidden);
        assert_eq!(hidden, [0.0; 21]);
    });
}

#[test]
fn rotation_turns_pairs_by_the_angle() {
    each_isa(|isa| {
        for (dim, rotary) in [(64, 64), (64, 32), (20, 14), (6, 2), (128, 128), (4, 0)] {
            let half = rotary / 2;
            let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
            let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
            rope_table(&inv_freq, 1.5, 1234, &mut cos, &mut sin);
            let x = Random::new(dim as u64).numbers(dim, 1.0);
            for interleaved in [false, true] {
                let mut head = x.clone();
                rope_apply(isa, &mut head, &cos, &sin, interleaved);
                for (i, frequency) in inv_freq.iter().enumerate() {
                    let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                    let (sine, cosine) = f64::from(1234.0f32 * frequency).sin_cos();
                    let (xa, xb) = (f64::from(x[a]) * 1.5, f64::from(x[b]) * 1.5);
                    assert_close(head[a], xa * cosine - xb * sine, 4e-7, format!("{dim} {rotary} {a}"));
                    assert_close(head[b], xb * cosine + xa * sine, 4e-7, format!("{dim} {rotary} {b}"));
                }
                assert_eq!(head[rotary..], x[rotary..], "the other dimensions pass unchanged");
            }
        }
    });
}

/// Numbers that conversions get wrong: subnormals of both types, ties, overflows and specials, and random bits.
fn difficult() -> Vec<f32> {
    let mut random = Random::new(4);
    let mut values = vec![0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 1e30, f32::INFINITY, f32::NEG_INFINITY];
    values.extend([
        6e-8,
        2.98e-8,
        2.981e-8,
        6.1e-5,
        1e-40,
        -1e-40,
        1.000_488_3,
        1.001_464_8,
        1.003_906_3,
        1.011_718_8,
    ]);
    values.extend((0..3000).map(|_| f32::from_bits(random.bits() as u32)).filter(|value| !value.is_nan()));
    values
}

#[test]
fn conversions_round_to_nearest_even() {
    each_isa(|isa| {
        let all = difficult();
        for len in LENGTHS.into_iter().chain([all.len()]) {
            let values = &all[..len];
            let mut halves = vec![f16::ONE; len];
            store(isa, values, ElementsMut::F16(&mut halves));
            for (&found, &value) in halves.iter().zip(values) {
                assert_eq!(found.to_bits(), f16::from_f32(value).to_bits(), "{value} to fp16");
            }
            let mut brains = vec![bf16::ONE; len];
            store(isa, values, ElementsMut::Bf16(&mut brains));
            for (&found, &value) in brains.iter().zip(values) {
                assert_eq!(found.to_bits(), bf16::from_f32(value).to_bits(), "{value} to bfloat16");
            }
            let mut floats = vec![1.0; len];
            store(isa, values, ElementsMut::F32(&mut floats));
            assert_eq!(floats, values);
        }
        let mut nan = ([f16::ONE; 3], [bf16::ONE; 3]);
        store(isa, &[f32::NAN; 3], ElementsMut::F16(&mut nan.0));
        store(isa, &[f32::NAN; 3], ElementsMut::Bf16(&mut nan.1));
        assert!(nan.0.iter().all(|x| x.is_nan()) && nan.1.iter().all(|x| x.is_nan()));
    });
}

#[test]
fn conversions_back_are_exact_for_every_number() {
    each_isa(|isa| {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut out = vec![0.0; halves.len()];
        load(isa, Elements::F16(&halves), &mut out);
        for (&found, &value) in out.iter().zip(&halves) {
            assert!(
                found.to_bits() == value.to_f32().to_bits() || found.is_nan() && value.is_nan(),
                "{value:?}"
            );
        }
        load(isa, Elements::Bf16(&brains), &mut out);
        for (&found, &value) in out.iter().zip(&brains) {
            assert!(
                found.to_bits() == value.to_f32().to_bits() || found.is_nan() && value.is_nan(),
                "{value:?}"
            );
        }
        for of in TYPES {
            for len in LENGTHS {
                let numbers = Numbers::new(of, &Random::new(5).numbers(len, 1.0));
                let mut out = vec![0.0; len];
                load(isa, numbers.elements(), &mut out);
                assert!((0..len).all(|i| f64::from(out[i]) == numbers.at(i)));
            }
        }
    });
}

#[test]
fn rows_of_a_token_go_to_their_heads() {
    each_isa(|isa| {
        let (heads, dim, capacity) = (3, 5, 4);
        let row = Random::new(6).numbers(heads * dim, 1.0);
        let mut cache = vec![f16::ZERO; heads * capacity * dim];
        store_kv(isa, &row, dim, ElementsMut::F16(&mut cache), capacity * dim, dim, 2);
        let expected = Numbers::new(Type::F16, &row);
        for (i, value) in cache.iter().enumerate() {
            let (head, position, d) = (i / dim / capacity, i / dim % capacity, i % dim);
            let expected = if position == 2 { expected.at(head * dim + d) } else { 0.0 };
            assert_eq!(f64::from(*value), expected);
        }
    });
}

#[test]
fn argmax_is_the_first_of_the_largest() {
    each_isa(|isa| {
        assert_eq!(argmax(isa, &[]), 0);
        assert_eq!(argmax(isa, &[f32::NEG_INFINITY; 3]), 0);
        assert_eq!(argmax(isa, &[f32::NAN, 1.0, f32::NAN, 2.0, 2.0]), 3);
        for len in LENGTHS.into_iter().skip(1) {
            for place in [0, len / 2, len - 1] {
                let mut values = Random::new(len as u64).numbers(len, 1.0);
                values[place] = 3.0;
                values[len - 1] = 3.0;
                assert_eq!(argmax(isa, &values), place);
            }
        }
    });
}
