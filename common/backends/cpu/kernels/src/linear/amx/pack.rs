//! Packs activations and weights into tiles of bfloat16 terms.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::{bf16, f16};

use super::{ROWS, STEP, TILE};
use crate::linear::decode::{Format, decode_row};
use crate::simd::{Avx512, Simd};
use crate::weight::QuantizedRows;

/// How many columns ahead of the conversion a row of a weight is asked for from the second-level cache.
const PREFETCH_COLUMNS: usize = 2 * STEP;

/// Asks for weights that come later, while a row of a step is packed: of its own row the columns that are next, which are in the
/// second-level cache, and of the next panel as much, to be there by then. That one is read in the order of its addresses, at
/// the memory's speed; in the order of the steps, 32 rows at once, it would be a third slower.
#[inline(always)]
fn prefetch(panel: *const u8, row_bytes: usize, step_bytes: usize, step: usize, row: usize) {
    let ahead = row * row_bytes + step * step_bytes + PREFETCH_COLUMNS / STEP * step_bytes;
    let next_panel = 2 * ROWS * (row_bytes + step * step_bytes) + row * step_bytes;
    // SAFETY: a prefetch never faults, and every machine of this architecture has it.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(panel.wrapping_add(ahead).cast());
        _mm_prefetch::<_MM_HINT_T1>(panel.wrapping_add(next_panel).cast());
    }
}

/// `value` as two bfloat16 terms, for two vectors whose elements become consecutive.
///
/// # Safety
/// The machine has AVX-512 F, BW and BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn split(first: __m512, second: __m512) -> (__m512i, __m512i) {
    // SAFETY: both are 64 bytes of plain numbers.
    let high: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(second, first)) };
    let widen = |half: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
    let first = _mm512_sub_ps(first, widen(_mm512_castsi512_si256(high)));
    let second = _mm512_sub_ps(second, widen(_mm512_extracti64x4_epi64::<1>(high)));
    // SAFETY: as above.
    (high, unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) })
}

/// Packs a tile of activations: for every 32 columns a tile of high terms and one of low terms, each `[16 pairs of columns,
/// 16 rows, 2]`.
///
/// # Safety
/// The rows are readable, the packed tile is writable, and the machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_tile(x: *const f32, stride: usize, rows: usize, k: usize, packed: *mut f32) {
    // SAFETY: the caller vouches for the features.
    let s = unsafe { Avx512::assume_available() };
    for column in (0..k).step_by(STEP) {
        let n = (k - column).min(STEP);
        let zero = _mm512_setzero_ps();
        let (mut high, mut low) = ([zero; ROWS], [zero; ROWS]);
        for row in 0..rows {
            // SAFETY: n elements of the row follow the column.
            let (first, second) = unsafe {
                let from = x.add(row * stride + column);
                if n == STEP {
                    (s.load(from), s.load(from.add(16)))
                } else {
                    let low = n.min(16);
                    (s.load_partial(from, low), s.load_partial(from.add(low), n - low))
                }
            };
            // SAFETY: the caller vouches for the features.
            let terms = unsafe { split(first, second) };
            (high[row], low[row]) = (_mm512_castsi512_ps(terms.0), _mm512_castsi512_ps(terms.1));
        }
        // SAFETY: two tiles are writable for every 32 columns; the caller vouches for the features.
        unsafe {
            let to = packed.add(column / STEP * 2 * TILE);
            let pairs = crate::simd::transpose_16(high).into_iter().chain(crate::simd::transpose_16(low));
            for (i, pair) in pairs.enumerate() {
                _mm512_storeu_ps(to.add(i * 16), pair);
            }
        }
    }
}

/// Rows of a weight that go into tiles a step at a time. A packed step is 32 columns of 32 rows: the terms of the first 16
/// rows, each a tile, then those of the others. Rows and columns that are not there become zeros.
pub(super) trait Panel {
    /// How many terms a weight is the sum of, the high one first.
    const TERMS: usize;

    /// Packs a step.
    ///
    /// # Safety
    /// The rows have such columns, `to` has room for the tiles, and the machine has AVX-512 F, BW, DQ, VL and BF16.
    unsafe fn pack(&self, step: usize, to: *mut f32);
}

/// The high halves of the numbers of two vectors, which become consecutive.
///
/// # Safety
/// The machine has AVX-512 F and BW.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn high_halves(first: __m512, second: __m512) -> __m512i {
    const ODD: [u16; 32] = {
        let mut odd = [0; 32];
        let mut i = 0;
        while i < 32 {
            odd[i] = 2 * i as u16 + 1;
            i += 1;
        }
        odd
    };
    // SAFETY: both are 64 bytes of plain numbers.
    let odd: __m512i = unsafe { std::mem::transmute(ODD) };
    _mm512_permutex2var_epi16(_mm512_castps_si512(first), odd, _mm512_castps_si512(second))
}

/// Rows of fp16: the significand's eleven bits, rounded to eight, are one term, what is left of them the second.
pub(super) struct F16Panel<'a> {
    /// `[rows, k]`.
    pub(super) weight: &'a [f16],
    pub(super) rows: usize,
    pub(super) k: usize,
}

impl Panel for F16Panel<'_> {
    const TERMS: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack(&self, step: usize, to: *mut f32) {
        // SAFETY: the caller vouches for the features.
        let s = unsafe { Avx512::assume_available() };
        let column = step * STEP;
        let n = (self.k - column).min(STEP);
        let (half, high_bits) = (_mm512_set1_epi32(0x8000), _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
        let terms = |value: __m512| {
            let rounded = _mm512_add_epi32(_mm512_castps_si512(value), half);
            let high = _mm512_castsi512_ps(_mm512_and_si512(rounded, high_bits));
            (high, _mm512_sub_ps(value, high))
        };
        for row in 0..2 * ROWS {
            // SAFETY: n elements of a row of the weight follow the column; there is room for a step.
            unsafe {
                let (mut first, mut second) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                if row < self.rows {
                    let from = self.weight.as_ptr().add(row * self.k + column);
                    prefetch(self.weight.as_ptr().cast(), 2 * self.k, 2 * STEP, step, row);
                    if n == STEP {
                        (first, second) = (s.load_f16(from), s.load_f16(from.add(16)));
                    } else {
                        let low = n.min(16);
                        first = s.load_f16_partial(from, low);
                        second = s.load_f16_partial(from.add(low), n - low);
                    }
                }
                let to = to.add(row / ROWS * 2 * TILE + row % ROWS * 16);
                let (first, second) = (terms(first), terms(second));
                _mm512_storeu_si512(to.cast(), high_halves(first.0, second.0));
                _mm512_storeu_si512(to.add(TILE).cast(), high_halves(first.1, second.1));
            }
        }
    }
}

/// Rows of bfloat16, a term as they are.
pub(super) struct Bf16Panel<'a> {
    /// `[rows, k]`.
    pub(super) weight: &'a [bf16],
    pub(super) rows: usize,
    pub(super) k: usize,
}

impl Panel for Bf16Panel<'_> {
    const TERMS: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack(&self, step: usize, to: *mut f32) {
        let column = step * STEP;
        let mask = ((1u64 << (self.k - column).min(STEP)) - 1) as u32;
        for row in 0..2 * ROWS {
            // SAFETY: the elements that the mask selects follow the column in a row of the weight; there is room for a step.
            unsafe {
                let mut values = _mm512_setzero_si512();
                if row < self.rows {
                    let from = self.weight.as_ptr().add(row * self.k + column);
                    prefetch(self.weight.as_ptr().cast(), 2 * self.k, 2 * STEP, step, row);
                    values = _mm512_maskz_loadu_epi16(mask, from.cast());
                }
                _mm512_storeu_si512(to.add(row * 16).cast(), values);
            }
        }
    }
}

/// Rows of few bits, decoded.
pub(super) struct QuantizedPanel<'a, F> {
    /// Their slices are as long as [`QuantizedRows::check`] says.
    pub(super) rows: &'a QuantizedRows<'a>,
    pub(super) format: PhantomData<F>,
}

impl<F: Format> Panel for QuantizedPanel<'_, F> {
    const TERMS: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack(&self, step: usize, to: *mut f32) {
        // SAFETY: the caller vouches for the features.
        let s = unsafe { Avx512::assume_available() };
        let weight = self.rows;
        let (k, row_bytes, groups) = (weight.columns, weight.row_bytes(), weight.groups());
        // A step is one block of one group.
        let one_group = weight.group_size.is_multiple_of(STEP);
        let mut decoded = [0.0; STEP];
        let column = step * STEP;
        let n = (k - column).min(STEP);
        for row in 0..2 * ROWS {
            // SAFETY: the row and n columns of it exist, and a block of bytes is read only where it is in the row's group;
            // there is room for a step.
            unsafe {
                let (mut first, mut second) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                if row < weight.rows {
                    let from = weight.values.as_ptr().add(row * row_bytes + column * F::BITS / 8);
                    prefetch(weight.values.as_ptr(), row_bytes, STEP * F::BITS / 8, step, row);
                    if one_group {
                        let group = row * groups + column / weight.group_size;
                        let scale = s.splat(*weight.scales.as_ptr().add(group) * F::FACTOR);
                        let mut q = F::load(s, from);
                        if F::PAIRED {
                            q = s.interleave(q);
                        }
                        (first, second) = (s.mul(q[0], scale), s.mul(q[1], scale));
                        if let Some(offsets) = weight.offsets {
                            let offset = s.splat(*offsets.as_ptr().add(group));
                            (first, second) = (s.add(first, offset), s.add(second, offset));
                        }
                    } else {
                        decode_row::<Avx512, F>(s, weight, row, column, n, decoded.as_mut_ptr());
                        let low = n.min(16);
                        first = s.load_partial(decoded.as_ptr(), low);
                        second = s.load_partial(decoded.as_ptr().add(low), n - low);
                    }
                }
                let (high, low) = split(first, second);
                let to = to.add(row / ROWS * 2 * TILE + row % ROWS * 16);
                _mm512_storeu_si512(to.cast(), high);
                _mm512_storeu_si512(to.add(TILE).cast(), low);
            }
        }
    }
}
