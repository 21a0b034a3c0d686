//! Products of few rows of activations with quantised weights, in the order of plain ones: each weight is decoded in a
//! register, rounded to fp32, and lane `i` of a vector sums `x[t, k] · w[n, k]` over `k ≡ i` modulo its width. As
//! [`fma`](super::fma) does it for many rows, bit for bit.

use crate::QuantizedFormat;
use crate::isa::{Isa, Kernel, VectorShape};
use crate::simd::Simd;
use crate::weight::{QuantizedMatrix, QuantizedRows};

use super::Reduction;
use super::decode::{E4m3, Format, Int4, Int8};
use super::gemv::{Destination, Rows, most_activations, reduce};
use super::quantized::prefetch_distance;

/// Whether a matrix's groups are whole blocks of two vectors, or [vectors](groups_are_vectors).
pub(super) fn fits(isa: Isa, matrix: &QuantizedMatrix<'_>) -> bool {
    let (lanes, _) = isa.dispatch(VectorShape);
    matrix.group_size > 0 && matrix.group_size.is_multiple_of(2 * lanes) || groups_are_vectors(isa, matrix)
}

/// Whether few rows of activations are multiplied in this way with a matrix: where the order of plain weights is wanted, and
/// where groups are so short that their own sums cost more than decoding.
pub(super) fn is_wanted(isa: Isa, reduction: Reduction, matrix: &QuantizedMatrix<'_>) -> bool {
    reduction == Reduction::BatchInvariant || groups_are_vectors(isa, matrix)
}

/// Whether each of a matrix's groups is a vector, and its rows are pairs of them.
fn groups_are_vectors(isa: Isa, matrix: &QuantizedMatrix<'_>) -> bool {
    let (lanes, _) = isa.dispatch(VectorShape);
    matrix.group_size == lanes && matrix.columns.is_multiple_of(2 * lanes)
}

/// All of some rows of a weight that [`fits`] with all activations.
///
/// # Safety
/// Nothing else uses the columns of the destination meanwhile.
pub(super) unsafe fn columns(isa: Isa, x: &Rows<'_>, rows: &QuantizedRows<'_>, to: &Destination<'_>) {
    match rows.format {
        QuantizedFormat::Int8 => isa.dispatch(Columns { x, rows, to, format: Int8 }),
        QuantizedFormat::Int4 => isa.dispatch(Columns { x, rows, to, format: Int4 }),
        QuantizedFormat::E4m3 => isa.dispatch(Columns { x, rows, to, format: E4m3 }),
    }
}

/// Made only where nothing else uses the columns of the destination.
struct Columns<'a, F> {
    x: &'a Rows<'a>,
    rows: &'a QuantizedRows<'a>,
    to: &'a Destination<'a>,
    #[expect(dead_code, reason = "only its type counts")]
    format: F,
}

impl<F: Format> Kernel for Columns<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rows { x, m, stride } = *self.x;
        let rows = self.rows;
        rows.check();
        assert!(m > 0 && x.len() >= (m - 1) * stride + rows.columns);
        let is_whole = rows.group_size.is_multiple_of(2 * S::LANES);
        assert!(is_whole || rows.group_size == S::LANES && rows.columns.is_multiple_of(2 * S::LANES));
        // As many accumulators as keep the multipliers busy and the registers full.
        let at_once = if S::REGISTERS >= 16 || m <= 2 { 4 } else { 2 };
        let mut i = 0;
        while i < rows.rows {
            let left = rows.rows - i;
            // SAFETY: as many rows are left, and all slices are as long as was checked.
            unsafe {
                if left >= 4 && at_once == 4 {
                    self.tokens::<S, 4>(s, i);
                    i += 4;
                } else if left >= 2 && at_once == 2 {
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

impl<F: Format> Columns<'_, F> {
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
        // SAFETY: the caller's promise is the same; the destination's columns are not used elsewhere while this exists.
        unsafe {
            let sums = match self.rows.offsets {
                None => self.sums::<S, R, M, false>(s, i, t),
                Some(_) => self.sums::<S, R, M, true>(s, i, t),
            };
            for (j, sums) in sums.into_iter().enumerate() {
                for (r, sum) in sums.into_iter().enumerate() {
                    self.to.put(t + j, i + r, sum);
                }
            }
        }
    }

    /// `Σ x · w`.
    ///
    /// # Safety
    /// As [`block`](Self::block).
    #[inline(always)]
    unsafe fn sums<S: Simd, const R: usize, const M: usize, const OFFSETS: bool>(
        &self,
        s: S,
        i: usize,
        t: usize,
    ) -> [[f32; R]; M] {
        let rows = self.rows;
        let (lanes, row_bytes, groups) = (S::LANES, rows.row_bytes(), rows.groups());
        let (block, ahead) = (2 * lanes, prefetch_distance(row_bytes, R));
        // Of a block's two vectors: either both are of one group, or each is one.
        let (blocks_a_group, groups_a_block) =
            if rows.group_size >= block { (rows.group_size / block, 1) } else { (1, 2) };
        let mut sums = [[s.splat(0.0); R]; M];
        // SAFETY: the rows' bytes and scales and the activations follow in the order in which they are read; prefetches need
        // nothing readable.
        unsafe {
            let mut values = rows.values.as_ptr().add(i * row_bytes);
            let mut x = self.x.x.as_ptr().add(t * self.x.stride);
            let scales = rows.scales.as_ptr().add(i * groups);
            let offsets = rows.offsets.unwrap_or(rows.scales).as_ptr().add(i * groups);
            for first in (0..groups).step_by(groups_a_block) {
                let second = first + groups_a_block - 1;
                for _ in 0..blocks_a_group {
                    for r in 0..R {
                        let from = values.add(r * row_bytes);
                        s.prefetch(from.wrapping_add(ahead));
                        let mut q = F::load(s, from);
                        if F::PAIRED {
                            q = s.interleave(q);
                        }
                        for (half, (q, group)) in q.into_iter().zip([first, second]).enumerate() {
                            let scale = s.splat(*scales.add(r * groups + group) * F::FACTOR);
                            let weight = if OFFSETS {
                                s.mul_add(q, scale, s.splat(*offsets.add(r * groups + group)))
                            } else {
                                s.mul(q, scale)
                            };
                            for (t, sums) in sums.iter_mut().enumerate() {
                                let x = s.load(x.add(t * self.x.stride + half * lanes));
                                sums[r] = s.mul_add(weight, x, sums[r]);
                            }
                        }
                    }
                    values = values.add(block * F::BITS / 8);
                    x = x.add(block);
                }
            }
        }
        reduce(s, &sums)
    }
}
