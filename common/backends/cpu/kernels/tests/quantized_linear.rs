//! Products with quantised weights, on every instruction set, for every format and type of scale, at sizes that fit no vector
//! or tile.

mod common;

use common::{Numbers, Random, TYPES, Type, assert_close, each_isa};
use roundhouse_cpu_kernels::{
    Isa, LinearJob, QuantizedFormat, QuantizedMatrix, Reduction, Scratch, ThreadPool, Weight, linear,
    linear_silu_mul,
};

const FORMATS: [QuantizedFormat; 3] = [QuantizedFormat::Int8, QuantizedFormat::Int4, QuantizedFormat::E4m3];

/// Rounding of an fp32 sum, relative to the sum of the magnitudes of its terms: well above √K · 2⁻²⁴, the expected one.
const FP32_SUM: f64 = 1.0 / (1 << 19) as f64;

/// The matrix unit keeps 16 bits of each activation and each weight, and drops the product of the lower halves.
const SPLIT_SUM: f64 = 1.0 / (1 << 15) as f64;

fn tolerance(isa: Isa) -> f64 {
    if isa.name() == "amx" { SPLIT_SUM } else { FP32_SUM }
}

/// A quantised matrix with numbers of its own.
struct Quantized {
    format: QuantizedFormat,
    values: Vec<u8>,
    scales: Numbers,
    offsets: Option<Numbers>,
    rows: usize,
    columns: usize,
    group_size: usize,
}

impl Quantized {
    /// Random bytes, with every code of the format but the two that are no numbers, and random scales.
    fn random(
        random: &mut Random,
        format: QuantizedFormat,
        of: Type,
        [rows, columns, group_size]: [usize; 3],
        with_offsets: bool,
    ) -> Self {
        let byte = |random: &mut Random| loop {
            let byte = (random.bits() >> 32) as u8;
            if format != QuantizedFormat::E4m3 || byte & 0x7f != 0x7f {
                return byte;
            }
        };
        let values = (0..rows * columns * format.bits() / 8).map(|_| byte(random)).collect();
        let groups = rows * columns / group_size;
        let scales = Numbers::new(of, &random.numbers(groups, 0.01));
        let offsets = with_offsets.then(|| Numbers::new(of, &random.numbers(groups, 0.5)));
        Self { format, values, scales, offsets, rows, columns, group_size }
    }

    fn weight(&self) -> Weight<'_> {
        Weight::Quantized(QuantizedMatrix {
            format: self.format,
            values: &self.values,
            scales: self.scales.elements(),
            offsets: self.offsets.as_ref().map(Numbers::elements),
            rows: self.rows,
            columns: self.columns,
            group_size: self.group_size,
        })
    }

    /// The number that the format gives for a column, before its scale.
    fn q(&self, row: usize, column: usize) -> f64 {
        let index = row * self.columns + column;
        match self.format {
            QuantizedFormat::Int8 => f64::from(self.values[index].cast_signed()),
            QuantizedFormat::Int4 => {
                let byte = self.values[index / 2];
                f64::from(if index.is_multiple_of(2) { byte & 15 } else { byte >> 4 }) - 8.0
            }
            QuantizedFormat::E4m3 => {
                let byte = self.values[index];
                let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
                let magnitude = match exponent {
                    0 => mantissa * 2.0_f64.powi(-9),
                    _ => (1.0 + mantissa / 8.0) * 2.0_f64.powi(exponent - 7),
                };
                if byte < 0x80 { magnitude } else { -magnitude }
            }
        }
    }

    /// `x · w` of a row, and the sum of the magnitudes of its terms, of which a weight with an offset is two.
    fn dot(&self, x: &[f32], row: usize) -> (f64, f64) {
        let terms = x.iter().enumerate().map(|(column, &x)| {
            let group = (row * self.columns + column) / self.group_size;
            let product = self.q(row, column) * self.scales.at(group);
            let offset = self.offsets.as_ref().map_or(0.0, |offsets| offsets.at(group));
            (f64::from(x) * (product + offset), f64::from(x).abs() * (product.abs() + offset.abs()))
        });
        terms.fold((0.0, 0.0), |(sum, magnitude), (term, of_term)| (sum + term, magnitude + of_term))
    }
}

/// A job that replaces what is in `out`.
fn job<'a>(
    weight: &'a Quantized,
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
    out_stride: usize,
) -> LinearJob<'a> {
    LinearJob { weight: weight.weight(), bias, accumulate: false, out, out_stride }
}

#[test]
fn products_match_the_exact_ones() {
    // Rows, columns and group sizes: less than a vector, vectors and a rest, whole vectors, a group a row.
    let shapes = [
        [1, 2, 2],
        [5, 12, 4],
        [19, 96, 48],
        [37, 96, 32],
        [33, 130, 130],
        [9, 96, 16],
        [9, 48, 16],
        [66, 256, 64],
        [7, 700, 20],
        [40, 512, 128],
    ];
    each_isa(|isa| {
        let mut scratch = Scratch::new();
        for threads in [1, 3] {
            let pool = ThreadPool::with_isa(threads, isa);
            for (format, of) in FORMATS.into_iter().flat_map(|format| TYPES.map(|of| (format, of))) {
                for (shape, with_offsets) in
                    shapes.into_iter().flat_map(|shape| [(shape, false), (shape, true)])
                {
                    let [n, k, _] = shape;
                    let mut random = Random::new((n * 1000 + k) as u64);
                    let weight = Quantized::random(&mut random, format, of, shape, with_offsets);
                    for (m, reduction) in [1, 2, 3, 4, 5, 8, 9, 16, 17, 33]
                        .into_iter()
                        .flat_map(|m| [(m, Reduction::Fastest), (m, Reduction::BatchInvariant)])
                    {
                        let x_stride = k + 3;
                        let x = random.numbers(m * x_stride, 1.0);
                        let stride = n + 2;
                        let mut out = vec![7.0; m * stride];
                        linear(
                            &pool,
                            &mut scratch,
                            reduction,
                            &x,
                            m,
                            x_stride,
                            &mut [job(&weight, None, &mut out, stride)],
                        );
                        for t in 0..m {
                            for row in 0..n {
                                let (sum, magnitude) = weight.dot(&x[t * x_stride..t * x_stride + k], row);
                                let what = format!(
                                    "{format:?} {of:?} {shape:?} offsets {with_offsets} m {m} {reduction:?} threads {threads} ({t}, {row})"
                                );
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
fn every_code_of_a_byte_is_the_number_of_its_format() {
    // One column of activations is 1, the others 0, and the scale is 1: the product is the number itself.
    each_isa(|isa| {
        let pool = ThreadPool::with_isa(1, isa);
        for format in FORMATS {
            let columns = 256 * 8 / format.bits();
            let values = (0..=255)
                .map(|code| if format == QuantizedFormat::E4m3 && code & 0x7f == 0x7f { 0 } else { code });
            let weight = Quantized {
                format,
                values: values.collect(),
                scales: Numbers::new(Type::F32, &[1.0]),
                offsets: None,
                rows: 1,
                columns,
                group_size: columns,
            };
            for m in [1, 20] {
                for column in 0..columns {
                    let mut x = vec![0.0; m * columns];
                    x[column] = 1.0;
                    let mut out = vec![7.0; m];
                    linear(
                        &pool,
                        &mut Scratch::new(),
                        Reduction::Fastest,
                        &x,
                        m,
                        columns,
                        &mut [job(&weight, None, &mut out, 1)],
                    );
                    assert_eq!(f64::from(out[0]), weight.q(0, column), "{format:?} m {m} column {column}");
                    assert!(out[1..].iter().all(|&out| out == 0.0), "{format:?} m {m} column {column}");
                }
            }
        }
    });
}

#[test]
fn quantised_and_plain_weights_share_a_group() {
    each_isa(|isa| {
        let pool = ThreadPool::with_isa(2, isa);
        let mut scratch = Scratch::new();
        let k = 192;
        for m in [1, 4, 11, 40] {
            let mut random = Random::new(m as u64);
            let x = random.numbers(m * k, 1.0);
            // Orders of activations that differ, and two that do not.
            let weights = [
                Quantized::random(&mut random, QuantizedFormat::Int4, Type::F16, [150, k, 32], false),
                Quantized::random(&mut random, QuantizedFormat::Int8, Type::F32, [51, k, 64], true),
                Quantized::random(&mut random, QuantizedFormat::Int4, Type::F16, [3, k, k], true),
                Quantized::random(&mut random, QuantizedFormat::E4m3, Type::Bf16, [30, k, 64], false),
            ];
            let plain = Numbers::new(Type::F16, &random.numbers(70 * k, 1.0));
            let bias = random.numbers(150, 1.0);
            let before: Vec<Vec<f32>> =
                weights.iter().map(|weight| random.numbers(m * weight.rows, 1.0)).collect();
            let (mut outs, mut plain_out) = (before.clone(), vec![0.0; m * 70]);
            let mut jobs: Vec<LinearJob<'_>> = weights
                .iter()
                .zip(&mut outs)
                .enumerate()
                .map(|(i, (weight, out))| LinearJob {
                    weight: weight.weight(),
                    bias: (i == 0).then_some(&bias[..]),
                    accumulate: i != 0,
                    out,
                    out_stride: weight.rows,
                })
                .collect();
            let matrix = plain.matrix(70, k).into();
            let last = LinearJob {
                weight: matrix,
                bias: None,
                accumulate: false,
                out: &mut plain_out,
                out_stride: 70,
            };
            jobs.insert(1, last);
            linear(&pool, &mut scratch, Reduction::Fastest, &x, m, k, &mut jobs);
            for t in 0..m {
                let x = &x[t * k..(t + 1) * k];
                for (i, weight) in weights.iter().enumerate() {
                    for row in 0..weight.rows {
                        let (sum, magnitude) = weight.dot(x, row);
                        let added = if i == 0 { bias[row] } else { before[i][t * weight.rows + row] };
                        let expected = sum + f64::from(added);
                        let tolerance = (magnitude + 2.0) * tolerance(isa);
                        assert_close(
                            outs[i][t * weight.rows + row],
                            expected,
                            tolerance,
                            format!("{i} m {m} ({t}, {row})"),
                        );
                    }
                }
                for row in 0..70 {
                    let terms = x.iter().enumerate().map(|(i, &x)| f64::from(x) * plain.at(row * k + i));
                    let (sum, magnitude) =
                        terms.fold((0.0, 0.0), |(sum, magnitude), term| (sum + term, magnitude + term.abs()));
                    assert_close(
                        plain_out[t * 70 + row],
                        sum,
                        magnitude * tolerance(isa),
                        format!("plain m {m} ({t}, {row})"),
                    );
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
        for format in FORMATS {
            for (shape, m) in [([5, 8, 4], 1), ([150, 128, 32], 3), ([70, 64, 64], 16), ([150, 192, 64], 50)]
            {
                let [n, k, _] = shape;
                let mut random = Random::new((n + m) as u64);
                let x = random.numbers(m * k, 0.05);
                let gate = Quantized::random(&mut random, format, Type::F16, shape, false);
                // As another calibration may leave it: with offsets.
                let up = Quantized::random(&mut random, format, Type::F32, shape, true);
                let mut out = vec![0.0; m * n];
                linear_silu_mul(
                    &pool,
                    &mut scratch,
                    Reduction::Fastest,
                    &x,
                    m,
                    k,
                    gate.weight(),
                    up.weight(),
                    &mut out,
                    n,
                );
                for t in 0..m {
                    for row in 0..n {
                        let (gate, gate_magnitude) = gate.dot(&x[t * k..(t + 1) * k], row);
                        let (up, up_magnitude) = up.dot(&x[t * k..(t + 1) * k], row);
                        let expected = gate / (1.0 + (-gate).exp()) * up;
                        // The slope of silu is at most 1.1.
                        let magnitude = 1.1 * gate_magnitude * up.abs() + gate.abs() * up_magnitude;
                        let tolerance = (magnitude + expected.abs()) * tolerance(isa);
                        assert_close(
                            out[t * n + row],
                            expected,
                            tolerance,
                            format!("{format:?} m {m} ({t}, {row})"),
                        );
                    }
                }
            }
        }
    });
}

/// One product with every row of `x` alone, or all together.
fn product(isa: Isa, threads: usize, x: &[f32], m: usize, weight: &Quantized) -> Vec<f32> {
    let pool = ThreadPool::with_isa(threads, isa);
    let mut out = vec![0.0; m * weight.rows];
    let mut jobs = [job(weight, None, &mut out, weight.rows)];
    linear(&pool, &mut Scratch::new(), Reduction::Fastest, x, m, weight.columns, &mut jobs);
    out
}

#[test]
fn within_a_regime_a_row_does_not_depend_on_the_others_or_on_the_threads() {
    each_isa(|isa| {
        for (format, group_size) in
            FORMATS.into_iter().flat_map(|format| [(format, 32), (format, 40), (format, 320)])
        {
            let (n, k) = (203, 320);
            let mut random = Random::new(5);
            let weight =
                Quantized::random(&mut random, format, Type::F16, [n, k, group_size], group_size != 40);
            let x = random.numbers(80 * k, 1.0);
            let few = product(isa, 3, &x[..6 * k], 6, &weight);
            for m in 1..6 {
                assert!(
                    product(isa, 1, &x[..m * k], m, &weight) == few[..m * n],
                    "{format:?}, few rows: {m}"
                );
            }
            let many = product(isa, 3, &x, 80, &weight);
            for m in [17, 20, 30, 47] {
                assert!(
                    product(isa, 2, &x[..m * k], m, &weight) == many[..m * n],
                    "{format:?}, many rows: {m}"
                );
            }
        }
    });
}

#[test]
fn blocks_of_many_rows_are_put_together() {
    // Enough rows that the packed activations are cut into several blocks, and enough columns for several of those, where
    // groups begin and end within them.
    let m = 700;
    each_isa(|isa| {
        for (format, group_size) in
            FORMATS.into_iter().flat_map(|format| [(format, 128), (format, 96), (format, 1536)])
        {
            let shape @ [n, k, _] = [40, 1536, group_size];
            let mut random = Random::new(11);
            let weight = Quantized::random(&mut random, format, Type::F16, shape, true);
            let x = random.numbers(m * k, 1.0);
            let out = product(isa, 2, &x, m, &weight);
            for t in (0..m).step_by(53).chain([m - 1]) {
                for row in 0..n {
                    let (sum, magnitude) = weight.dot(&x[t * k..(t + 1) * k], row);
                    assert_close(
                        out[t * n + row],
                        sum,
                        magnitude * tolerance(isa),
                        format!("{format:?} ({t}, {row})"),
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
        let empty = |rows| Quantized {
            format: QuantizedFormat::Int4,
            values: Vec::new(),
            scales: Numbers::new(Type::F16, &[]),
            offsets: None,
            rows,
            columns: 0,
            group_size: 32,
        };
        for m in [1, 20] {
            // Without columns, the sums are of nothing.
            let (weight, mut out) = (empty(2), vec![1.0; m * 2]);
            linear(
                &pool,
                &mut Scratch::new(),
                Reduction::Fastest,
                &[],
                m,
                0,
                &mut [job(&weight, Some(&[3.0, 4.0]), &mut out, 2)],
            );
            assert_eq!(out, [3.0, 4.0].repeat(m));
            let none = empty(0);
            linear(
                &pool,
                &mut Scratch::new(),
                Reduction::Fastest,
                &[],
                m,
                0,
                &mut [job(&none, None, &mut [], 0)],
            );
        }
    });
}
