//! Products of few rows of activations with quantised weights: the packed bytes are read once and converted in a register.
//!
//! Lane `i` of a vector sums `x · q` over its columns of a group; the sums of a group are multiplied with its scale and added
//! up over the groups, and the lanes at the end. Offsets are multiplied with the sums of the activations of each group. As with
//! plain weights, the order of all this is the same for every number of rows.

use crate::QuantizedFormat;
use crate::isa::{Isa, Kernel};
use crate::simd::Simd;
use crate::weight::QuantizedRows;

use super::decode::{E4m3, Format, Int4, Int8, load_partial};
use super::gemv::{Destination, PREFETCH_BYTES, dots, reduce};
use super::stage::Stage;

/// All of some rows of a weight with all of `m` activations.
///
/// # Safety
/// Nothing else uses the columns of the destination meanwhile.
pub(super) unsafe fn columns(
    isa: Isa,
    x: Stage<'_>,
    m: usize,
    rows: &QuantizedRows<'_>,
    to: &Destination<'_>,
) {
    match rows.format {
        QuantizedFormat::Int8 => isa.dispatch(Columns { x, m, rows, to, format: Int8 }),
        QuantizedFormat::Int4 => isa.dispatch(Columns { x, m, rows, to, format: Int4 }),
        QuantizedFormat::E4m3 => isa.dispatch(Columns { x, m, rows, to, format: E4m3 }),
    }
}

/// Made only where nothing else uses the columns of the destination.
struct Columns<'a, F> {
    x: Stage<'a>,
    m: usize,
    rows: &'a QuantizedRows<'a>,
    to: &'a Destination<'a>,
    #[expect(dead_code, reason = "only its type counts")]
    format: F,
}

impl<F: Format> Kernel for Columns<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.rows;
        rows.check();
        let row_len = rows.groups() * rows.group_size.next_multiple_of(2 * S::LANES);
        assert!(self.x.x_stride == row_len && self.x.x.len() >= self.m * row_len);
        assert!(self.x.sums.len() >= self.m * rows.groups());
        let mut i = 0;
        while i < rows.rows {
            let left = rows.rows - i;
            // SAFETY: as many rows are left, and all slices are as long as was checked.
            unsafe {
                if left >= 4 {
                    self.tokens::<S, 4>(s, i);
                    i += 4;
                } else {
                    self.tokens::<S, 1>(s, i);
                    i += 1;
                }
            }
        }
    }
}

impl<F: Format> Columns<'_, F> {
    /// Rows `i..i + R`, one or four, with all activations. Each row with each activation takes two registers, so more
    /// activations at a time are fewer rows.
    ///
    /// # Safety
    /// There are as many rows, and the slices are as long as the shapes say.
    #[inline(always)]
    unsafe fn tokens<S: Simd, const R: usize>(&self, s: S, i: usize) {
        let mut t = 0;
        while t < self.m {
            // SAFETY: as many activations are left; the rest is the caller's promise.
            unsafe {
                match self.m - t {
                    1 if R == 4 && S::REGISTERS >= 16 => self.block::<S, 4, 1>(s, i, t),
                    2 if R == 4 && S::REGISTERS >= 32 => self.block::<S, 4, 2>(s, i, t),
                    1 => self.blocks::<S, R, 2, 1>(s, i, t),
                    2 => self.blocks::<S, R, 2, 2>(s, i, t),
                    3 if S::REGISTERS >= 32 => self.blocks::<S, R, 2, 3>(s, i, t),
                    3 => self.blocks::<S, R, 1, 3>(s, i, t),
                    _ if S::REGISTERS >= 32 => self.blocks::<S, R, 2, 4>(s, i, t),
                    _ => self.blocks::<S, R, 1, 4>(s, i, t),
                }
            }
            t += 4;
        }
    }

    /// Rows `i..i + R`, `P` at a time if they are more than one.
    ///
    /// # Safety
    /// As [`block`](Self::block).
    #[inline(always)]
    unsafe fn blocks<S: Simd, const R: usize, const P: usize, const M: usize>(
        &self,
        s: S,
        i: usize,
        t: usize,
    ) {
        // SAFETY: four rows are whole pairs; the caller's promise is the same.
        unsafe {
            if R == 1 {
                self.block::<S, 1, M>(s, i, t);
            } else {
                (i..i + R).step_by(P).for_each(|i| self.block::<S, P, M>(s, i, t));
            }
        }
    }

    /// # Safety
    /// There are rows `i..i + R` and activations `t..t + M`, and the slices are as long as the shapes say.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const M: usize>(&self, s: S, i: usize, t: usize) {
        let rows = self.rows;
        let groups = rows.groups();
        // SAFETY: the pointers are those of rows that the caller promises; the destination's columns are not used elsewhere
        // while this exists.
        unsafe {
            let mut sums = self.sums::<S, R, M>(s, i, t);
            if let Some(offsets) = rows.offsets {
                let offsets = offsets.as_ptr().add(i * groups);
                let x = self.x.sums.as_ptr().add(t * groups);
                let added = dots::<S, f32, R, M>(s, offsets, groups, x, groups, groups);
                for (sums, added) in sums.iter_mut().zip(added) {
                    sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
                }
            }
            for (j, sums) in sums.into_iter().enumerate() {
                for (r, sum) in sums.into_iter().enumerate() {
                    self.to.put(t + j, i + r, sum);
                }
            }
        }
    }

    /// `Σ scale · Σ x · q`.
    ///
    /// # Safety
    /// As [`block`](Self::block).
    #[inline(always)]
    unsafe fn sums<S: Simd, const R: usize, const M: usize>(
        &self,
        s: S,
        i: usize,
        t: usize,
    ) -> [[f32; R]; M] {
        let rows = self.rows;
        let (block, row_bytes, groups) = (2 * S::LANES, rows.row_bytes(), rows.groups());
        let block_bytes = block * F::BITS / 8;
        let (whole, tail) = (rows.group_size / block, rows.group_size % block);
        let tail_bytes = tail * F::BITS / 8;
        let ahead = prefetch_distance(row_bytes, R);
        let mut totals = [[s.splat(0.0); R]; M];
        // SAFETY: the rows' bytes and scales and the activations follow in the order in which they are read; whole blocks of
        // bytes are read only where they are in the group; prefetches need nothing readable.
        unsafe {
            let mut values = rows.values.as_ptr().add(i * row_bytes);
            let mut x = self.x.x.as_ptr().add(t * self.x.x_stride);
            let scales = rows.scales.as_ptr().add(i * groups);
            for group in 0..groups {
                let mut sums = [[s.splat(0.0); R]; M];
                for _ in 0..whole {
                    for r in 0..R {
                        let from = values.add(r * row_bytes);
                        s.prefetch(from.wrapping_add(ahead));
                        let q = F::load(s, from);
                        add_block(s, &mut sums, r, q, x, self.x.x_stride);
                    }
                    values = values.add(block_bytes);
                    x = x.add(block);
                }
                if tail > 0 {
                    for r in 0..R {
                        let q = load_partial::<S, F>(s, values.add(r * row_bytes), tail_bytes);
                        add_block(s, &mut sums, r, q, x, self.x.x_stride);
                    }
                    values = values.add(tail_bytes);
                    x = x.add(block);
                }
                for r in 0..R {
                    let scale = s.splat(*scales.add(r * groups + group) * F::FACTOR);
                    for (totals, sums) in totals.iter_mut().zip(&sums) {
                        totals[r] = s.mul_add(sums[r], scale, totals[r]);
                    }
                }
            }
        }
        reduce(s, &totals)
    }
}

/// How many bytes ahead of the loads of `rows` rows at a time to ask for: further on in long rows, of short ones the same
/// columns of rows that come later, so that every line is asked for once.
#[inline(always)]
pub(super) const fn prefetch_distance(row_bytes: usize, rows: usize) -> usize {
    if row_bytes >= PREFETCH_BYTES || row_bytes == 0 {
        return PREFETCH_BYTES;
    }
    PREFETCH_BYTES.next_multiple_of(row_bytes * rows)
}

/// Adds the products of a block of row `r` with as many activations as there are sums.
///
/// # Safety
/// Two vectors at every `x_stride` of `x` are readable.
#[inline(always)]
unsafe fn add_block<S: Simd, const R: usize, const M: usize>(
    s: S,
    sums: &mut [[S::F32; R]; M],
    r: usize,
    [first, second]: [S::F32; 2],
    x: *const f32,
    x_stride: usize,
) {
    for (t, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller promises two vectors.
        let [low, high] = unsafe { [s.load(x.add(t * x_stride)), s.load(x.add(t * x_stride + S::LANES))] };
        sums[r] = s.mul_add(first, low, sums[r]);
        sums[r] = s.mul_add(second, high, sums[r]);
    }
}
