//! The blocked product on the fused multiply-add units.
//!
//! Weights are packed as fp32 `[k, 2 vectors]`, activations as `[k, tile]`; a tile of the result stays in registers while
//! `k` runs over a block of columns whose packed panel fits the first-level cache.

use crate::isa::{Isa, Kernel};
use crate::simd::{Element, MAX_LANES, Simd};
use crate::weight::{QuantizedRows, WeightRows};
use crate::{Elements, QuantizedFormat};

use super::decode::{E4m3, Format, Int4, Int8, decode_row};
use super::gemm::{Engine, Output, VectorShape};

/// Most columns of a block.
const BLOCK_COLUMNS: usize = 320;

/// Products on the fused multiply-add units.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fma {
    isa: Isa,
    lanes: usize,
    tile_rows: usize,
}

impl Fma {
    pub(super) fn new(isa: Isa) -> Self {
        let (lanes, tile_rows) = isa.dispatch(VectorShape);
        Self { isa, lanes, tile_rows }
    }
}

impl Engine for Fma {
    fn panel_rows(self) -> usize {
        2 * self.lanes
    }

    fn tile_rows(self) -> usize {
        self.tile_rows
    }

    fn packed_tile_len(self, k: usize) -> usize {
        k * self.tile_rows
    }

    fn panel_len(self, k: usize) -> usize {
        // The transpose writes whole vectors of columns.
        block_columns(k).next_multiple_of(self.lanes) * 2 * self.lanes
    }

    fn enter(self) -> impl Sized {}

    fn pack_tile(self, x: &[f32], stride: usize, rows: usize, k: usize, packed: &mut [f32]) {
        assert!(rows == 0 || x.len() >= (rows - 1) * stride + k);
        for (column, packed) in packed.chunks_exact_mut(self.tile_rows).enumerate().take(k) {
            for (row, packed) in packed.iter_mut().enumerate() {
                *packed = if row < rows { x[row * stride + column] } else { 0.0 };
            }
        }
    }

    unsafe fn multiply(
        self,
        weight: &WeightRows<'_>,
        k: usize,
        tiles: &[f32],
        to: &Output<'_>,
        panel: &mut [f32],
    ) {
        let isa = self.isa;
        match weight {
            WeightRows::Plain(Elements::F32(weight)) => {
                isa.dispatch(Panel { weight: *weight, k, tiles, to, panel })
            }
            WeightRows::Plain(Elements::F16(weight)) => {
                isa.dispatch(Panel { weight: *weight, k, tiles, to, panel })
            }
            WeightRows::Plain(Elements::Bf16(weight)) => {
                isa.dispatch(Panel { weight: *weight, k, tiles, to, panel })
            }
            WeightRows::Quantized(rows) => {
                rows.check();
                assert!(rows.columns == k);
                match rows.format {
                    QuantizedFormat::Int8 => {
                        isa.dispatch(Panel { weight: Decoded { rows, format: Int8 }, k, tiles, to, panel });
                    }
                    QuantizedFormat::Int4 => {
                        isa.dispatch(Panel { weight: Decoded { rows, format: Int4 }, k, tiles, to, panel });
                    }
                    QuantizedFormat::E4m3 => {
                        isa.dispatch(Panel { weight: Decoded { rows, format: E4m3 }, k, tiles, to, panel });
                    }
                }
            }
        }
    }
}

/// Columns of all blocks of `k` but the last: nearly equal, and few enough.
fn block_columns(k: usize) -> usize {
    k.div_ceil(k.div_ceil(BLOCK_COLUMNS).max(1)).next_multiple_of(16)
}

/// Rows of a weight that can be packed.
trait Packed {
    /// Whether these are so many rows of `k` columns.
    fn has(&self, rows: usize, k: usize) -> bool;

    /// Packs columns `start..start + columns` of all `rows` rows as [`pack_transposed`] does.
    ///
    /// # Safety
    /// The weight has as many rows of `k` columns, `start` is a multiple of 16, and the panel has room as there.
    unsafe fn pack<S: Simd>(
        &self,
        s: S,
        rows: usize,
        k: usize,
        start: usize,
        columns: usize,
        panel: *mut f32,
    );
}

impl<E: Element> Packed for &[E] {
    fn has(&self, rows: usize, k: usize) -> bool {
        self.len() == rows * k
    }

    #[inline(always)]
    unsafe fn pack<S: Simd>(
        &self,
        s: S,
        rows: usize,
        k: usize,
        start: usize,
        columns: usize,
        panel: *mut f32,
    ) {
        // SAFETY: the columns follow `start` in every row; the rest is the caller's promise.
        unsafe { pack_transposed(s, self.as_ptr().add(start), k, rows, columns, panel, 2 * S::LANES) }
    }
}

/// Quantised rows, decoded while they are packed.
struct Decoded<'a, F> {
    rows: &'a QuantizedRows<'a>,
    #[expect(dead_code, reason = "only its type counts")]
    format: F,
}

/// Columns that are decoded before they are transposed.
const DECODED_COLUMNS: usize = 64;

impl<F: Format> Packed for Decoded<'_, F> {
    fn has(&self, rows: usize, k: usize) -> bool {
        self.rows.rows == rows && self.rows.columns == k
    }

    #[inline(always)]
    unsafe fn pack<S: Simd>(
        &self,
        s: S,
        rows: usize,
        _: usize,
        start: usize,
        columns: usize,
        panel: *mut f32,
    ) {
        let mut decoded = [0.0; MAX_LANES * DECODED_COLUMNS];
        let (width, to) = (2 * S::LANES, decoded.as_mut_ptr());
        for first in (0..width).step_by(S::LANES) {
            let left = rows.saturating_sub(first).min(S::LANES);
            for column in (0..columns).step_by(DECODED_COLUMNS) {
                let n = (columns - column).min(DECODED_COLUMNS);
                // SAFETY: `left` rows follow, n columns of each, which fit the decoded ones; `start` and the columns
                // before are whole bytes; the panel has room for a vector of every column, rounded up to whole vectors.
                unsafe {
                    for row in 0..left {
                        let to = to.add(row * DECODED_COLUMNS);
                        decode_row::<S, F>(s, self.rows, first + row, start + column, n, to);
                    }
                    for i in (0..n).step_by(S::LANES) {
                        let to_panel = panel.add((column + i) * width + first);
                        let n = (n - i).min(S::LANES);
                        s.transpose(to.add(i).cast_const(), DECODED_COLUMNS, left, n, to_panel, width);
                    }
                }
            }
        }
    }
}

/// A panel of a weight with tiles of activations. Made only where nothing else uses the elements of the output.
struct Panel<'a, W> {
    weight: W,
    k: usize,
    tiles: &'a [f32],
    to: &'a Output<'a>,
    panel: &'a mut [f32],
}

impl<W: Packed> Kernel for Panel<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { weight, k, tiles, to, panel } = self;
        let (width, tile_rows) = (2 * S::LANES, S::TILE_ROWS);
        let block = block_columns(k);
        let tile_count = to.rows.div_ceil(tile_rows);
        assert!(to.columns <= width && weight.has(to.columns, k));
        assert!(tiles.len() >= tile_count * tile_rows * k);
        assert!(panel.len() >= block.next_multiple_of(S::LANES) * width);
        for start in (0..k.max(1)).step_by(block.max(1)) {
            let columns = block.min(k - start);
            // SAFETY: the weight has `to.columns` rows of k elements, the panel room for two vectors a column, and blocks
            // are multiples of 16.
            unsafe { weight.pack(s, to.columns, k, start, columns, panel.as_mut_ptr()) }
            for index in 0..tile_count {
                let row = index * tile_rows;
                let part = Part { k: columns, first: start == 0, row, rows: tile_rows.min(to.rows - row) };
                // SAFETY: the packed tile has k columns of `tile_rows`, the panel was packed above, and nothing else
                // uses the elements of the output meanwhile.
                unsafe {
                    let x = tiles.as_ptr().add((index * k + start) * tile_rows);
                    // A short last tile is done with as few rows as cover it.
                    match (S::TILE_ROWS, part.rows) {
                        (14, 8..) => part.multiply::<S, 14>(s, x, panel.as_ptr(), to),
                        (14, 4..) => part.multiply::<S, 7>(s, x, panel.as_ptr(), to),
                        (14, _) => part.multiply::<S, 3>(s, x, panel.as_ptr(), to),
                        (6, 4..) => part.multiply::<S, 6>(s, x, panel.as_ptr(), to),
                        (6, _) => part.multiply::<S, 3>(s, x, panel.as_ptr(), to),
                        _ => part.multiply::<S, 2>(s, x, panel.as_ptr(), to),
                    }
                }
            }
        }
    }
}

/// One tile of the result over one block of columns.
struct Part {
    k: usize,
    /// Whether the block is the first.
    first: bool,
    /// The first row of activations, and how many.
    row: usize,
    rows: usize,
}

impl Part {
    /// # Safety
    /// `x` has `k` columns of `S::TILE_ROWS >= R` elements, `panel` as many of two vectors, and nothing else uses the
    /// elements of the output meanwhile.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const R: usize>(
        &self,
        s: S,
        x: *const f32,
        panel: *const f32,
        to: &Output<'_>,
    ) {
        // SAFETY: the caller's promise is the same.
        let sums =
            unsafe { tile::<S, f32, R>(s, x, 1, S::TILE_ROWS, panel, 2 * S::LANES, self.k, 2 * S::LANES) };
        let bias = if self.first { to.bias } else { None };
        for (r, sums) in sums.into_iter().enumerate().take(self.rows) {
            let start = to.start + (self.row + r) * to.stride;
            // SAFETY: nothing else uses the elements of the output meanwhile.
            let out = unsafe { to.out.slice(start..start + to.columns) };
            for (half, sum) in sums.into_iter().enumerate() {
                let from = half * S::LANES;
                let n = to.columns.saturating_sub(from).min(S::LANES);
                if n == 0 {
                    continue;
                }
                // SAFETY: n elements of the row, and of the bias, follow `from`.
                unsafe {
                    let out = out.as_mut_ptr().add(from);
                    let sum = match bias {
                        Some(bias) => s.add(sum, s.load_partial(bias[from..from + n].as_ptr(), n)),
                        None => sum,
                    };
                    let sum =
                        if to.accumulate || !self.first { s.add(s.load_partial(out, n), sum) } else { sum };
                    s.store_partial(out, n, sum);
                }
            }
        }
    }
}

/// Transposes `rows` rows (at most `width`) of `columns` elements into `[columns, width]`; the rest of `width` becomes zeros.
///
/// # Safety
/// The rows, `stride` apart, are readable; `columns`, rounded up to whole vectors, times `width` elements are writable, and
/// `width` is a whole number of vectors.
#[inline(always)]
pub(crate) unsafe fn pack_transposed<S: Simd, E: Element>(
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
pub(crate) unsafe fn tile<S: Simd, E: Element, const R: usize>(
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
