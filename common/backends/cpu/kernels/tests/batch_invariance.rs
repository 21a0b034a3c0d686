//! With [`Reduction::BatchInvariant`] a row of a product is the same, bit for bit, whatever the others are and however many.

mod common;

use common::{Numbers, Random, TYPES, Type, each_isa};
use roundhouse_cpu_kernels::{
    Isa, LinearJob, QuantizedFormat, QuantizedMatrix, Reduction, Scratch, ThreadPool, Weight, linear,
    linear_silu_mul,
};

const ROWS: usize = 75;
/// More than a block of the blocked product has.
const COLUMNS: usize = 1120;
/// Activations of the largest product.
const MANY: usize = 80;

/// The product of the first `m` activations with a weight, which is also the gate and the other factor of a gated one.
fn products(isa: Isa, threads: usize, x: &[f32], m: usize, weight: Weight<'_>) -> [Vec<f32>; 2] {
    let (pool, mut scratch) = (ThreadPool::with_isa(threads, isa), Scratch::new());
    let (mut out, mut gated) = (vec![0.0; m * ROWS], vec![0.0; m * ROWS]);
    let job = LinearJob { weight, bias: None, accumulate: false, out: &mut out, out_stride: ROWS };
    let reduction = Reduction::BatchInvariant;
    linear(&pool, &mut scratch, reduction, x, m, COLUMNS, &mut [job]);
    linear_silu_mul(&pool, &mut scratch, reduction, x, m, COLUMNS, weight, weight, &mut gated, ROWS);
    [out, gated]
}

/// Checks products of few activations against that of many.
fn check(isa: Isa, x: &[f32], weight: Weight<'_>, what: &str) {
    let many = products(isa, 3, x, MANY, weight);
    for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 18, 24, 25, 40, 61] {
        // Wherever they stand among the others.
        for first in [0, MANY - m] {
            let few = products(isa, 1 + m % 2, &x[first * COLUMNS..(first + m) * COLUMNS], m, weight);
            for (few, many) in few.iter().zip(&many) {
                let same = few[..] == many[first * ROWS..(first + m) * ROWS];
                assert!(same, "{what}, {m} activations from {first}, {}", isa.name());
            }
        }
    }
}

#[test]
fn of_plain_weights() {
    each_isa(|isa| {
        let mut random = Random::new(5);
        let x = random.numbers(MANY * COLUMNS, 1.0);
        for of in TYPES {
            let weight = Numbers::new(of, &random.numbers(ROWS * COLUMNS, 1.0));
            check(isa, &x, weight.matrix(ROWS, COLUMNS).into(), &format!("{of:?}"));
        }
    });
}

#[test]
fn of_quantised_weights() {
    each_isa(|isa| {
        let mut random = Random::new(7);
        let x = random.numbers(MANY * COLUMNS, 1.0);
        for format in [QuantizedFormat::Int8, QuantizedFormat::Int4, QuantizedFormat::E4m3] {
            // Vectors, pairs of vectors, neither, and a group a row.
            for group_size in [16, 32, 40, COLUMNS] {
                for with_offsets in [false, true] {
                    let bytes = ROWS * COLUMNS * format.bits() / 8;
                    // No code of E4M3 that is no number.
                    let values: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8 & 0xf7).collect();
                    let groups = ROWS * COLUMNS / group_size;
                    let scales = Numbers::new(Type::F32, &random.numbers(groups, 0.1));
                    let offsets = Numbers::new(Type::F16, &random.numbers(groups, 0.1));
                    let weight = QuantizedMatrix {
                        format,
                        values: &values,
                        scales: scales.matrix(ROWS, COLUMNS / group_size).elements,
                        offsets: with_offsets.then(|| offsets.matrix(ROWS, COLUMNS / group_size).elements),
                        rows: ROWS,
                        columns: COLUMNS,
                        group_size,
                    };
                    let what = format!("{format:?} in groups of {group_size}, offsets {with_offsets}");
                    check(isa, &x, weight.into(), &what);
                }
            }
        }
    });
}
