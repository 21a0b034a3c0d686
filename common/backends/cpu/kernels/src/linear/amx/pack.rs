//! Packs activations and weights into tiles of bfloat16 terms.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{ROWS, STEP, TILE};
use crate::linear::decode::{Format, decode_row};
use crate::simd::{Avx512, Simd};
use crate::weight::QuantizedRows;

/// How many columns ahead of the conversion the weights are asked for.
const PREFETCH_COLUMNS: usize = 4 * STEP;

/// How many elements of a weight ahead of `column`, of a tile of rows of `k`, to ask for: columns further on in the same row,
/// and at its end the first ones of the row that is so many rows further on, in the next tile.
fn prefetch_distance(column: usize, k: usize) -> usize {
    if column + PREFETCH_COLUMNS < k {
        PREFETCH_COLUMNS
    } else {
        ROWS * k + PREFETCH_COLUMNS - k.min(PREFETCH_COLUMNS)
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

/// Packs rows of a weight: for every 32 columns a tile of high terms and one of low terms of 16 rows; all columns of the
/// first 16 rows, then of the others. Rows and columns that are not there become zeros.
///
/// # Safety
/// The panel has room for two terms of 32 rows, and the machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_f16(weight: &[f16], rows: usize, k: usize, panel: *mut f32) {
    // SAFETY: the caller vouches for the features.
    let s = unsafe { Avx512::assume_available() };
    let steps = k.div_ceil(STEP);
    for step in 0..2 * steps {
        let (first_row, column) = (step / steps * ROWS, step % steps * STEP);
        let (n, ahead) = ((k - column).min(STEP), prefetch_distance(column, k));
        for row in 0..ROWS {
            // SAFETY: n elements of a row of the weight follow the column; the panel has room for every step.
            unsafe {
                let (mut first, mut second) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                if first_row + row < rows {
                    let from = weight.as_ptr().add((first_row + row) * k + column);
                    s.prefetch(from.wrapping_add(ahead));
                    if n == STEP {
                        (first, second) = (s.load_f16(from), s.load_f16(from.add(16)));
                    } else {
                        let low = n.min(16);
                        first = s.load_f16_partial(from, low);
                        second = s.load_f16_partial(from.add(low), n - low);
                    }
                }
                let (high, low) = split(first, second);
                let to = panel.add(step * 2 * TILE + row * 16);
                _mm512_storeu_si512(to.cast(), high);
                _mm512_storeu_si512(to.add(TILE).cast(), low);
            }
        }
    }
}

/// As [`pack_f16`], with a single term, which is the weight as it is.
///
/// # Safety
/// The panel has room for one term of 32 rows, and the machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn pack_bf16(weight: &[bf16], rows: usize, k: usize, panel: *mut f32) {
    // SAFETY: the caller vouches for the features.
    let s = unsafe { Avx512::assume_available() };
    let steps = k.div_ceil(STEP);
    for step in 0..2 * steps {
        let (first_row, column) = (step / steps * ROWS, step % steps * STEP);
        let mask = ((1u64 << (k - column).min(STEP)) - 1) as u32;
        let ahead = prefetch_distance(column, k);
        for row in 0..ROWS {
            // SAFETY: the elements that the mask selects follow the column in a row of the weight; the panel has room for
            // every step.
            unsafe {
                let mut values = _mm512_setzero_si512();
                if first_row + row < rows {
                    let from = weight.as_ptr().add((first_row + row) * k + column);
                    s.prefetch(from.wrapping_add(ahead));
                    values = _mm512_maskz_loadu_epi16(mask, from.cast());
                }
                _mm512_storeu_si512(panel.add(step * TILE + row * 16).cast(), values);
            }
        }
    }
}

/// As [`pack_f16`], decoding.
///
/// # Safety
/// The slices of the rows are as long as [`QuantizedRows::check`] says, the panel has room for two terms of 32 rows, and the
/// machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_quantized<F: Format>(weight: &QuantizedRows<'_>, panel: *mut f32) {
    // SAFETY: the caller vouches for the features.
    let s = unsafe { Avx512::assume_available() };
    let (k, row_bytes, groups) = (weight.columns, weight.row_bytes(), weight.groups());
    let steps = k.div_ceil(STEP);
    // A step is one block of one group.
    let one_group = weight.group_size.is_multiple_of(STEP);
    let mut decoded = [0.0; STEP];
    for step in 0..2 * steps {
        let (first_row, column) = (step / steps * ROWS, step % steps * STEP);
        let (n, ahead) = ((k - column).min(STEP), prefetch_distance(column, k) * F::BITS / 8);
        for row in 0..ROWS {
            let index = first_row + row;
            // SAFETY: the row and n columns of it exist, and a block of bytes is read only where it is in the row's group;
            // the panel has room for every step.
            unsafe {
                let (mut first, mut second) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                if index < weight.rows {
                    let from = weight.values.as_ptr().add(index * row_bytes + column * F::BITS / 8);
                    s.prefetch(from.wrapping_add(ahead));
                    if one_group {
                        let group = index * groups + column / weight.group_size;
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
                        decode_row::<Avx512, F>(s, weight, index, column, n, decoded.as_mut_ptr());
                        let low = n.min(16);
                        first = s.load_partial(decoded.as_ptr(), low);
                        second = s.load_partial(decoded.as_ptr().add(low), n - low);
                    }
                }
                let (high, low) = split(first, second);
                let to = panel.add(step * 2 * TILE + row * 16);
                _mm512_storeu_si512(to.cast(), high);
                _mm512_storeu_si512(to.add(TILE).cast(), low);
            }
        }
    }
}
