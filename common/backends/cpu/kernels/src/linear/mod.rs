//! Products of activations with weight matrices.
//!
//! Few rows of activations run through [`gemv`], which reads every weight once, from memory, and is bound by that; quantised
//! weights are few bytes, and stay so until they are in a register. More
//! run through [`gemm`], blocked for the caches, on the fused multiply-add units or, where the machine has one, the
//! matrix unit.
//!
//! A row of the result is the same, bit for bit, for every number of rows: both ways add in one order. With
//! [`Reduction::Fastest`] quantised weights and the matrix unit are the exceptions: there it is the same up to the limit
//! ([`GEMV_ROWS_QUANTIZED`] or [`GEMV_ROWS_AMX`]), and the same above it, but above it quantised weights are rounded to fp32,
//! and the unit's products differ in their last bits.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod decode;
mod decoded;
mod fma;
mod gemm;
mod gemv;
mod quantized;
mod stage;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use amx::is_available as amx_is_available;

use crate::shared::SharedMut;
use crate::{Isa, Scratch, ThreadPool, Weight};

/// Up to how many rows of activations are multiplied row by row: converting the weights apart does not pay for fewer.
const GEMV_ROWS: usize = 64;

/// As [`GEMV_ROWS`], where a weight is quantised: decoding it for each few rows again costs more.
const GEMV_ROWS_QUANTIZED: usize = 16;

/// As [`GEMV_ROWS_QUANTIZED`], where the order is that of plain weights.
const GEMV_ROWS_DECODED: usize = 8;

/// As [`GEMV_ROWS`], where the alternative is the matrix unit.
const GEMV_ROWS_AMX: usize = 6;

/// In which order products are summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduction {
    /// In the one that is fastest for so many rows of activations and such weights.
    #[default]
    Fastest,
    /// In one order, whatever the number of rows: a row of the result is the same, bit for bit, in any batch. The matrix unit
    /// has no part in it.
    BatchInvariant,
}

/// One product of a group that shares its activations `x [m, K]`: `out[m, n] = x · weightᵀ + bias`, or `out` plus that.
#[derive(Debug)]
pub struct LinearJob<'a> {
    /// `[N, K]`.
    pub weight: Weight<'a>,
    /// `[N]`.
    pub bias: Option<&'a [f32]>,
    /// Whether the product is added to what `out` holds (a residual connection) or replaces it.
    pub accumulate: bool,
    /// `[m, N]`: element `(t, n)` is at `t * out_stride + n`.
    pub out: &'a mut [f32],
    /// Distance of the rows of `out`, at least `N`.
    pub out_stride: usize,
}

/// A product as the two ways to compute it see it.
#[derive(Debug, Clone, Copy)]
struct Product<'a> {
    weight: Weight<'a>,
    /// For `silu(x · weightᵀ) · (x · upᵀ)`: the second matrix, shaped like the first.
    up: Option<Weight<'a>>,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    out: SharedMut<'a, f32>,
    out_stride: usize,
}

impl Product<'_> {
    fn check(&self, m: usize, out_len: usize) {
        self.weight.check();
        let rows = self.weight.rows();
        assert!(
            self.bias.is_none_or(|bias| bias.len() == rows),
            "the bias has an element a row of the weight"
        );
        assert!(self.out_stride >= rows, "rows of the result do not overlap");
        assert!(m == 0 || out_len >= (m - 1) * self.out_stride + rows, "the result has room for m rows");
        if let Some(up) = self.up {
            up.check();
            let same = up.rows() == rows && up.columns() == self.weight.columns();
            assert!(same, "gate and up have one shape");
        }
    }
}

/// Every product of the group, in one parallel region: `jobs[i].out[t, n] = Σ x[t, k] · weight[n, k] + bias[n]`, or added
/// to `out` with `accumulate`. `x` is `[m, K]` with rows `x_stride` apart.
///
/// Sums are in fp32. With [`Reduction::Fastest`], the instruction set `amx`, more than 6 rows and no fp32 weights in the group,
/// each product also loses at most about 2⁻¹⁶ of itself, and 2⁻¹⁵ with quantised weights of more than 16 bits, which are those
/// of eight bits and those with offsets. A row of the result does not depend on how many others there are; with
/// [`Reduction::Fastest`] and `amx` (but for fp32 weights) or quantised weights only as long as they are at most 6 (16 without
/// `amx`), or more than that.
///
/// # Panics
/// If the weights do not all have `K = columns` of the first, or a slice is shorter than its shape says.
pub fn linear(
    pool: &ThreadPool,
    scratch: &mut Scratch,
    reduction: Reduction,
    x: &[f32],
    m: usize,
    x_stride: usize,
    jobs: &mut [LinearJob<'_>],
) {
    let products: Vec<Product<'_>> = jobs
        .iter_mut()
        .map(|job| {
            let out_len = job.out.len();
            let product = Product {
                weight: job.weight,
                up: None,
                bias: job.bias,
                accumulate: job.accumulate,
                out: SharedMut::new(job.out),
                out_stride: job.out_stride,
            };
            product.check(m, out_len);
            product
        })
        .collect();
    multiply(pool, scratch, reduction, x, m, x_stride, &products);
}

/// The first half of a gated feed-forward layer, in one parallel region:
/// `out[t, n] = silu(Σ x[t, k] · gate[n, k]) · (Σ x[t, k] · up[n, k])`. `x` is `[m, K]` with rows `x_stride` apart, `out`
/// `[m, N]` with rows `out_stride` apart.
///
/// # Panics
/// If the matrices differ in shape, or a slice is shorter than its shape says.
#[expect(clippy::too_many_arguments, reason = "two strided matrices and two weights, as in every BLAS")]
pub fn linear_silu_mul(
    pool: &ThreadPool,
    scratch: &mut Scratch,
    reduction: Reduction,
    x: &[f32],
    m: usize,
    x_stride: usize,
    gate: Weight<'_>,
    up: Weight<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    let out_len = out.len();
    let product = Product {
        weight: gate,
        up: Some(up),
        bias: None,
        accumulate: false,
        out: SharedMut::new(out),
        out_stride,
    };
    product.check(m, out_len);
    multiply(pool, scratch, reduction, x, m, x_stride, &[product]);
}

fn multiply(
    pool: &ThreadPool,
    scratch: &mut Scratch,
    reduction: Reduction,
    x: &[f32],
    m: usize,
    x_stride: usize,
    products: &[Product<'_>],
) {
    let Some(first) = products.first() else { return };
    let k = first.weight.columns();
    assert!(
        products.iter().all(|product| product.weight.columns() == k),
        "the weights of a group share their inputs"
    );
    if m == 0 {
        return;
    }
    assert!(x_stride >= k || m == 1, "rows of the activations do not overlap");
    assert!(x.len() >= (m - 1) * x_stride + k, "the activations have m rows");
    if m <= gemv_rows(pool.isa(), reduction, products) {
        gemv::multiply(pool, scratch, reduction, x, m, x_stride, products);
    } else {
        gemm::multiply(pool, scratch, reduction, x, m, x_stride, products);
    }
}

/// Up to how many rows of activations a group of products runs through [`gemv`].
fn gemv_rows(isa: Isa, reduction: Reduction, products: &[Product<'_>]) -> usize {
    if gemm::on_matrix_unit(isa, reduction, products) {
        return GEMV_ROWS_AMX;
    }
    let mut quantized = weights(products).filter_map(|weight| match weight {
        Weight::Quantized(matrix) => Some(matrix),
        Weight::Plain(_) => None,
    });
    match (reduction, quantized.next()) {
        (_, None) => GEMV_ROWS,
        (Reduction::Fastest, Some(_)) => GEMV_ROWS_QUANTIZED,
        (Reduction::BatchInvariant, Some(first)) => {
            let fit = std::iter::once(first).chain(quantized).all(|matrix| decoded::fits(isa, matrix));
            if fit { GEMV_ROWS_DECODED } else { 0 }
        }
    }
}

/// The weights of some products.
fn weights<'a>(products: &'a [Product<'a>]) -> impl Iterator<Item = &'a Weight<'a>> {
    products.iter().flat_map(|product| [Some(&product.weight), product.up.as_ref()]).flatten()
}
