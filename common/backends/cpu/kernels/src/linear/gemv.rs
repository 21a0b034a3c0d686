//! Products of few rows of activations: every weight is read once, and converted in a register.
//!
//! Element `(t, n)` is summed in one order whatever `m` is and however the rows are shared out: lane `i` of a vector
//! sums `x[t, k] · w[n, k]` over `k ≡ i` modulo its width, and the lanes are added at the end.

use std::ops::Range;

use crate::elementwise::silu_mul_assign;
use crate::isa::{Isa, Kernel};
use crate::shared::{Queue, SharedMut};
use crate::simd::{Element, Simd};
use crate::{Elements, Scratch, ThreadPool, Weight};

use super::stage::{Stages, stage};
use super::{GEMV_ROWS, Product, Reduction, decoded, quantized, weights};

/// How far ahead of the loads the weights are asked for. The processor's own prefetchers stop at every page, and there is
/// little else to do while memory answers.
pub(super) const PREFETCH_BYTES: usize = 4096;

/// The least weights that a worker takes at a time, in bytes.
const CHUNK_BYTES: usize = 16 * 1024;

/// So few bytes of weights are faster read than shared out.
const WORTH_SHARING_BYTES: usize = 24 * 1024;

/// Rows of a gated product that are done before their activation is applied.
const GATED_ROWS: usize = 64;

/// Rows of a quantised weight whose scales are converted at a time.
const SCALED_ROWS: usize = 16;

pub(super) fn multiply(
    pool: &ThreadPool,
    scratch: &mut Scratch,
    reduction: Reduction,
    x: &[f32],
    m: usize,
    x_stride: usize,
    products: &[Product<'_>],
) {
    debug_assert!(m <= GEMV_ROWS);
    let x = Rows { x, m, stride: x_stride };
    let memory = weights(products).map(|weight| weight.memory_len(SCALED_ROWS)).max().unwrap_or(0);
    let (stages, workers) = stage(pool, scratch, reduction, &x, products, memory);
    let inputs = Inputs { isa: pool.isa(), x, reduction, stages };
    let total: usize = products.iter().map(|product| product.weight.rows()).sum();
    let bytes: usize = weights(products).map(|weight| weight.rows() * weight.row_bytes()).sum();
    if pool.threads() == 1 || bytes <= WORTH_SHARING_BYTES {
        // SAFETY: no other worker runs.
        let memory = unsafe { workers.of(0) };
        for product in products {
            // SAFETY: as above.
            unsafe { inputs.rows_of(product, 0..product.weight.rows(), memory) }
        }
        return;
    }
    let row_bytes = (bytes / total.max(1)).max(1);
    let step = (CHUNK_BYTES / row_bytes).next_multiple_of(4).clamp(4, 256);
    let queue = Queue::new(total, step, pool.threads());
    pool.run(&|worker| {
        // SAFETY: each worker asks once for its own part.
        let memory = unsafe { workers.of(worker) };
        while let Some(range) = queue.take() {
            let mut start = 0;
            for product in products {
                let end = start + product.weight.rows();
                let (from, to) = (range.start.max(start), range.end.min(end));
                if from < to {
                    // SAFETY: the queue hands out every row of every product once.
                    unsafe { inputs.rows_of(product, from - start..to - start, memory) }
                }
                start = end;
            }
        }
    });
}

/// The activations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) x: &'a [f32],
    pub(super) m: usize,
    pub(super) stride: usize,
}

/// What all workers read.
struct Inputs<'a> {
    isa: Isa,
    x: Rows<'a>,
    reduction: Reduction,
    stages: Stages<'a>,
}

impl Inputs<'_> {
    /// Computes columns `rows` of the result of a product, with memory for the scales of some rows.
    ///
    /// # Safety
    /// Nothing else uses these columns meanwhile.
    unsafe fn rows_of(&self, product: &Product<'_>, rows: Range<usize>, memory: &mut [f32]) {
        let Some(up) = product.up else {
            let to = Destination {
                out: product.out,
                stride: product.out_stride,
                start: rows.start,
                bias: product.bias.map(|bias| &bias[rows.clone()]),
                accumulate: product.accumulate,
            };
            // SAFETY: the caller leaves the columns to this call.
            unsafe { self.columns(&product.weight, rows, &to, memory) };
            return;
        };
        for start in rows.clone().step_by(GATED_ROWS) {
            let block = start..(start + GATED_ROWS).min(rows.end);
            let mut up_values = [0.0; GATED_ROWS * GEMV_ROWS];
            let to_out = Destination {
                out: product.out,
                stride: product.out_stride,
                start,
                bias: None,
                accumulate: false,
            };
            let to_values = Destination {
                out: SharedMut::new(&mut up_values),
                stride: GATED_ROWS,
                start: 0,
                bias: None,
                accumulate: false,
            };
            // SAFETY: the caller leaves the columns to this call, and the values are its own.
            unsafe {
                self.columns(&product.weight, block.clone(), &to_out, memory);
                self.columns(&up, block.clone(), &to_values, memory);
            }
            for (t, up) in up_values.chunks_exact(GATED_ROWS).enumerate().take(self.x.m) {
                let row = t * product.out_stride;
                // SAFETY: as above.
                let gate = unsafe { product.out.slice(row + block.start..row + block.end) };
                silu_mul_assign(self.isa, gate, &up[..block.len()]);
            }
        }
    }

    /// # Safety
    /// Nothing else uses the columns of the destination meanwhile.
    unsafe fn columns(
        &self,
        weight: &Weight<'_>,
        rows: Range<usize>,
        to: &Destination<'_>,
        memory: &mut [f32],
    ) {
        let (isa, x, k) = (self.isa, &self.x, weight.columns());
        let matrix = match weight {
            Weight::Plain(matrix) => {
                let n = rows.len();
                match matrix.part(rows) {
                    Elements::F32(weight) => isa.dispatch(Columns { x, weight, n, k, to }),
                    Elements::F16(weight) => isa.dispatch(Columns { x, weight, n, k, to }),
                    Elements::Bf16(weight) => isa.dispatch(Columns { x, weight, n, k, to }),
                }
                return;
            }
            Weight::Quantized(matrix) => matrix,
        };
        let stage = self.stages.of(matrix);
        let is_decoded = decoded::is_wanted(isa, self.reduction, matrix);
        for start in rows.clone().step_by(SCALED_ROWS) {
            let block = start..(start + SCALED_ROWS).min(rows.end);
            let first = start - rows.start;
            let to = Destination {
                start: to.start + first,
                bias: to.bias.map(|bias| &bias[first..first + block.len()]),
                ..*to
            };
            let part = matrix.rows_in(isa, block, memory);
            // SAFETY: the caller's promise is the same.
            unsafe {
                if is_decoded {
                    decoded::columns(isa, x, &part, &to);
                } else {
                    quantized::columns(isa, stage, x.m, &part, &to);
                }
            }
        }
    }
}

/// Where the columns that rows of a weight give go: that of row `i` of them, for activations `t`, to element
/// `t * stride + start + i`.
pub(super) struct Destination<'a> {
    out: SharedMut<'a, f32>,
    stride: usize,
    start: usize,
    /// An element for each of the rows.
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

impl Destination<'_> {
    /// # Safety
    /// Nothing else uses the element meanwhile.
    #[inline(always)]
    pub(super) unsafe fn put(&self, t: usize, i: usize, sum: f32) {
        // SAFETY: the caller's promise is the same.
        let element = unsafe { self.out.element(t * self.stride + self.start + i) };
        let bias = self.bias.map_or(0.0, |bias| bias[i]);
        *element = if self.accumulate { *element + (sum + bias) } else { sum + bias };
    }
}

/// All of `n` rows of a weight with all activations. Made only where nothing else uses the columns of the destination.
struct Columns<'a, E> {
    x: &'a Rows<'a>,
    weight: &'a [E],
    n: usize,
    k: usize,
    to: &'a Destination<'a>,
}

impl<E: Element> Kernel for Columns<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rows { m, stride, .. } = *self.x;
        assert!(self.weight.len() == self.n * self.k && self.x.x.len() >= (m - 1) * stride + self.k);
        // As many accumulators as keep the multipliers busy and the registers full.
        let rows = if S::REGISTERS >= 16 || m <= 2 { 4 } else { 2 };
        let mut i = 0;
        while i < self.n {
            let left = self.n - i;
            // SAFETY: as many rows are left, and the weight and the activations are as long as was checked.
            unsafe {
                if left >= 4 && rows == 4 {
                    self.tokens::<S, 4>(s, i);
                    i += 4;
                } else if left >= 2 && rows == 2 {
                    self.tokens::<S, 2>(s, i);
                    i += 2;
                } else {
                    self.tokens::<S, 1>(s, i);
                    i += 1;
                }
            }
        }
    }
}

impl<E: Element> Columns<'_, E> {
    /// Rows `i..i + R` with all activations, as many at a time as the registers hold, in parts of nearly one size.
    ///
    /// # Safety
    /// There are as many rows, and the slices are as long as the shapes say.
    #[inline(always)]
    unsafe fn tokens<S: Simd, const R: usize>(&self, s: S, i: usize) {
        let mut t = 0;
        for parts in (1..=self.x.m.div_ceil(most_activations::<S>())).rev() {
            let n = (self.x.m - t).div_ceil(parts);
            // SAFETY: as many activations are left; the rest is the caller's promise.
            unsafe {
                match n {
                    1 => self.block::<S, R, 1>(s, i, t),
                    2 => self.block::<S, R, 2>(s, i, t),
                    3 => self.block::<S, R, 3>(s, i, t),
                    4 => self.block::<S, R, 4>(s, i, t),
                    5 => self.block::<S, R, 5>(s, i, t),
                    _ => self.block::<S, R, 6>(s, i, t),
                }
            }
            t += n;
        }
    }

    /// # Safety
    /// There are rows `i..i + R` and activations `t..t + M`, and the slices are as long as the shapes say.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const M: usize>(&self, s: S, i: usize, t: usize) {
        // SAFETY: the pointers and lengths are those of rows that the caller promises; the destination's columns are
        // not used elsewhere while this exists.
        unsafe {
            let weight = self.weight.as_ptr().add(i * self.k);
            let x = self.x.x.as_ptr().add(t * self.x.stride);
            let sums = dots::<S, E, R, M>(s, weight, self.k, x, self.x.stride, self.k);
            for (j, sums) in sums.into_iter().enumerate() {
                for (r, sum) in sums.into_iter().enumerate() {
                    self.to.put(t + j, i + r, sum);
                }
            }
        }
    }
}

/// How many activations are multiplied with four rows at a time: their sums, themselves and a row of weights fill the
/// registers. With few registers there are fewer rows instead.
pub(super) const fn most_activations<S: Simd>() -> usize {
    match S::REGISTERS {
        32.. => 6,
        16.. => 3,
        _ => 4,
    }
}

/// The inner products, over `k` elements, of `M` rows of `x` with `R` rows of `w`.
///
/// # Safety
/// The rows, `x_stride` and `w_stride` apart, have `k` readable elements each.
#[inline(always)]
pub(super) unsafe fn dots<S: Simd, E: Element, const R: usize, const M: usize>(
    s: S,
    w: *const E,
    w_stride: usize,
    x: *const f32,
    x_stride: usize,
    k: usize,
) -> [[f32; R]; M] {
    let mut sums = [[s.splat(0.0); R]; M];
    let whole = k - k % S::LANES;
    // SAFETY: whole vectors are loaded only where as many elements follow; prefetches need nothing readable.
    unsafe {
        let mut row = [s.splat(0.0); M];
        for i in (0..whole).step_by(S::LANES) {
            for (t, row) in row.iter_mut().enumerate() {
                *row = s.load(x.add(t * x_stride + i));
            }
            for r in 0..R {
                let from = w.add(r * w_stride + i);
                s.prefetch(from.wrapping_byte_add(PREFETCH_BYTES));
                let weight = E::load(s, from);
                for (sums, &row) in sums.iter_mut().zip(&row) {
                    sums[r] = s.mul_add(weight, row, sums[r]);
                }
            }
        }
        if whole < k {
            let n = k - whole;
            for (t, row) in row.iter_mut().enumerate() {
                *row = s.load_partial(x.add(t * x_stride + whole), n);
            }
            for r in 0..R {
                let weight = E::load_partial(s, w.add(r * w_stride + whole), n);
                for (sums, &row) in sums.iter_mut().zip(&row) {
                    sums[r] = s.mul_add(weight, row, sums[r]);
                }
            }
        }
    }
    reduce(s, &sums)
}

/// The sums of the lanes of all vectors.
#[inline(always)]
pub(super) fn reduce<S: Simd, const R: usize, const M: usize>(
    s: S,
    sums: &[[S::F32; R]; M],
) -> [[f32; R]; M] {
    let mut totals = [[0.0; R]; M];
    for (totals, sums) in totals.iter_mut().zip(sums) {
        let mut r = 0;
        while r < R {
            let last = R - 1;
            let four = [sums[r], sums[(r + 1).min(last)], sums[(r + 2).min(last)], sums[(r + 3).min(last)]];
            let four = s.reduce_add_4(four);
            let count = (R - r).min(4);
            totals[r..r + count].copy_from_slice(&four[..count]);
            r += 4;
        }
    }
    totals
}
