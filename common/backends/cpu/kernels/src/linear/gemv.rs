//! Products of few rows of activations: every weight is read once, and converted in a register.
//!
//! Element `(t, n)` is summed in one order whatever `m` is and however the rows are shared out: lane `i` of a vector
//! sums `x[t, k] · w[n, k]` over `k ≡ i` modulo its width, and the lanes are added at the end.

use std::ops::Range;

use crate::elementwise::silu_mul_assign;
use crate::isa::{Isa, Kernel};
use crate::shared::Queue;
use crate::simd::{Element, Simd};
use crate::{Elements, Matrix, ThreadPool};

use super::{GEMV_ROWS, Product};

/// The least weights that a worker takes at a time, in bytes.
const CHUNK_BYTES: usize = 16 * 1024;

/// So few bytes of weights are faster read than shared out.
const WORTH_SHARING_BYTES: usize = 24 * 1024;

/// Rows of a gated product that are done before their activation is applied.
const GATED_ROWS: usize = 64;

pub(super) fn multiply(pool: &ThreadPool, x: &[f32], m: usize, x_stride: usize, products: &[Product<'_>]) {
    debug_assert!(m <= GEMV_ROWS);
    let isa = pool.isa();
    let total: usize = products.iter().map(|product| product.weight.rows).sum();
    let Some(first) = products.first() else { return };
    let matrices = if first.up.is_some() { 2 } else { 1 };
    let row_bytes = (first.weight.columns * first.weight.elements.element_size() * matrices).max(1);
    let x = Rows { x, m, stride: x_stride };
    if pool.threads() == 1 || total * row_bytes <= WORTH_SHARING_BYTES {
        for product in products {
            // SAFETY: no other worker runs.
            unsafe { rows_of(isa, &x, product, 0..product.weight.rows) }
        }
        return;
    }
    let step = (CHUNK_BYTES / row_bytes).next_multiple_of(4).clamp(4, 256);
    let queue = Queue::new(total, step, pool.threads());
    pool.run(&|_| {
        while let Some(range) = queue.take() {
            let mut start = 0;
            for product in products {
                let end = start + product.weight.rows;
                let (from, to) = (range.start.max(start), range.end.min(end));
                if from < to {
                    // SAFETY: the queue hands out every row of every product once.
                    unsafe { rows_of(isa, &x, product, from - start..to - start) }
                }
                start = end;
            }
        }
    });
}

/// The activations.
struct Rows<'a> {
    x: &'a [f32],
    m: usize,
    stride: usize,
}

/// Computes columns `rows` of the result of a product.
///
/// # Safety
/// Nothing else uses these columns meanwhile.
unsafe fn rows_of(isa: Isa, x: &Rows<'_>, product: &Product<'_>, rows: Range<usize>) {
    let Some(up) = product.up else {
        for t in 0..x.m {
            let start = t * product.out_stride;
            // SAFETY: only these columns, which the caller leaves to this call.
            let out = unsafe { product.out.slice(start + rows.start..start + rows.end) };
            match product.bias {
                Some(bias) if product.accumulate => {
                    for (out, bias) in out.iter_mut().zip(&bias[rows.clone()]) {
                        *out += bias;
                    }
                }
                Some(bias) => out.copy_from_slice(&bias[rows.clone()]),
                None if product.accumulate => {}
                None => out.fill(0.0),
            }
        }
        // SAFETY: the columns are this call's, and within the result, as slicing them above has checked.
        let out = unsafe { product.out.slice(rows.start..(x.m - 1) * product.out_stride + rows.end) };
        let _ = out;
        todo_columns(isa, x, product.weight, rows, product, up_none());
        return;
    };
    let _ = up;
}
