//! The blocked product in registers: transposed blocks of keys, and tiles of scores and of weighted values.

use crate::simd::{Element, Simd};

/// Transposes `rows` rows (at most `width`) of `columns` elements into `[columns, width]`; the rest of `width` becomes zeros.
///
/// # Safety
/// The rows, `stride` apart, are readable; `columns`, rounded up to whole vectors, times `width` elements are writable, and
/// `width` is a whole number of vectors.
#[inline(always)]
pub(super) unsafe fn pack_transposed<S: Simd, E: Element>(
    s: S,
    from: *const E,
    stride: usize,
    rows: usize,
    columns: usize,
    to: *mut f32,
    width: usize,
) {
    for row in (0..width).step_by(S::LANES) {
        let left = rows.saturating_sub(row).min(S::LANES);
        for column in (0..columns).step_by(S::LANES) {
            let n = (columns - column).min(S::LANES);
            // SAFETY: n elements of `left` rows follow here, and there is room for a vector of every column. Without
            // rows left, nothing is read, and the address is not formed beyond the rows.
            unsafe {
                let from = if left == 0 { from } else { from.add(row * stride + column) };
                s.transpose(from, stride, left, n, to.add(column * width + row), width);
            }
        }
    }
}

/// A tile of a product in registers: `Σ a[r, i] · b[i, ..]` over `i < k`, for `R` rows of `a` and the first `n` columns of
/// `b`, at most two vectors of them; further columns become zeros.
///
/// # Safety
/// Elements `r * a_row + i * a_column` of `a`, and `n` elements at every `i * b_row` of `b`, are readable.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "two strided matrices and their shape, as in every BLAS")]
pub(super) unsafe fn tile<S: Simd, E: Element, const R: usize>(
    s: S,
    a: *const f32,
    a_row: usize,
    a_column: usize,
    b: *const E,
    b_row: usize,
    k: usize,
    n: usize,
) -> [[S::F32; 2]; R] {
    let mut sums = [[s.splat(0.0); 2]; R];
    // SAFETY: the caller promises these elements.
    unsafe {
        if n >= 2 * S::LANES {
            for i in 0..k {
                let b = b.add(i * b_row);
                let b = [E::load(s, b), E::load(s, b.add(S::LANES))];
                add_outer(s, &mut sums, a.add(i * a_column), a_row, b);
            }
        } else {
            let low = n.min(S::LANES);
            for i in 0..k {
                let b = b.add(i * b_row);
                let b = [E::load_partial(s, b, low), E::load_partial(s, b.add(low), n - low)];
                add_outer(s, &mut sums, a.add(i * a_column), a_row, b);
            }
        }
    }
    sums
}

/// Adds the products of `R` elements of `a`, `a_row` apart, with two vectors.
///
/// # Safety
/// The elements are readable.
#[inline(always)]
unsafe fn add_outer<S: Simd, const R: usize>(
    s: S,
    sums: &mut [[S::F32; 2]; R],
    a: *const f32,
    a_row: usize,
    [low, high]: [S::F32; 2],
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller promises the element.
        let factor = s.splat(unsafe { *a.add(r * a_row) });
        sums[0] = s.mul_add(factor, low, sums[0]);
        sums[1] = s.mul_add(factor, high, sums[1]);
    }
}
