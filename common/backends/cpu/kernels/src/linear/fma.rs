//! The blocked product on the fused multiply-add units.
//!
//! A few rows of a weight, converted to fp32, stay in the first-level cache while one tile of activations after the other
//! comes from the second-level one. Element `(t, n)` is summed in the order of [`gemv`](super::gemv): lane `i` of a vector sums
//! the products of columns `k ≡ i` modulo its width, and the lanes are added at the end. Sums of a block of columns wait as
//! vectors for those of the next one.

use crate::isa::{Isa, Kernel};
use crate::simd::{Element, Simd};
use crate::weight::{QuantizedRows, WeightRows};
use crate::{Elements, QuantizedFormat};

use super::decode::{E4m3, Format, Int4, Int8, decode_row};
use super::gemm::{Engine, Output};
use super::gemv::{most_activations, reduce};

/// Rows of a weight that are multiplied at a time.
const ROWS: usize = 4;

/// Rows of a panel: what a worker takes at a time.
const PANEL_ROWS: usize = 32;

/// Columns of a block: so many of the rows stay in the first-level cache.
const BLOCK_COLUMNS: usize = 768;

/// Distance of the converted rows: no power of two, or the same columns of all would fall into one set of the cache.
const ROW_STRIDE: usize = BLOCK_COLUMNS + 16;

/// Products on the fused multiply-add units.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fma {
    isa: Isa,
    lanes: usize,
    tile_rows: usize,
}

impl Fma {
    pub(super) fn new(isa: Isa) -> Self {
        let (lanes, tile_rows) = isa.dispatch(TileShape);
        Self { isa, lanes, tile_rows }
    }

    /// Length of the sums of a tile that wait for the next block.
    const fn sums_len(self) -> usize {
        self.tile_rows * ROWS * self.lanes
    }
}

/// Asks for the width of vectors and the rows of a tile of activations.
struct TileShape;

impl Kernel for TileShape {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (usize, usize) {
        (S::LANES, most_activations::<S>())
    }
}

impl Engine for Fma {
    fn panel_rows(self) -> usize {
        PANEL_ROWS
    }

    fn tile_rows(self) -> usize {
        self.tile_rows
    }

    fn packed_tile_len(self, k: usize) -> usize {
        k.next_multiple_of(self.lanes) * self.tile_rows
    }

    fn panel_len(self, _: usize, tiles: usize) -> usize {
        ROWS * ROW_STRIDE + tiles * self.sums_len()
    }

    fn enter(self) -> impl Sized {}

    fn pack_tile(self, x: &[f32], stride: usize, rows: usize, k: usize, packed: &mut [f32]) {
        assert!(rows == 0 || x.len() >= (rows - 1) * stride + k);
        for (row, first) in (0..self.tile_rows).zip((0..).step_by(self.lanes)) {
            let to = packed.chunks_exact_mut(self.tile_rows * self.lanes);
            let to = to.map(|step| &mut step[first..first + self.lanes]);
            if row >= rows {
                to.for_each(|to| to.fill(0.0));
                continue;
            }
            for (from, to) in x[row * stride..row * stride + k].chunks(self.lanes).zip(to) {
                let (there, missing) = to.split_at_mut(from.len());
                there.copy_from_slice(from);
                missing.fill(0.0);
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
                isa.dispatch(Panel { weight: Plain(weight), k, tiles, to, panel })
            }
            WeightRows::Plain(Elements::F16(weight)) => {
                isa.dispatch(Panel { weight: Plain(weight), k, tiles, to, panel })
            }
            WeightRows::Plain(Elements::Bf16(weight)) => {
                isa.dispatch(Panel { weight: Plain(weight), k, tiles, to, panel })
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

/// Rows of a weight that can be converted.
trait Convert {
    /// Whether these are so many rows of `k` columns.
    fn has(&self, rows: usize, k: usize) -> bool;

    /// Converts columns `start..start + columns` of a row to fp32; up to a whole vector, zeros follow.
    ///
    /// # Safety
    /// The weight has the row, of `k` columns, `start` is a multiple of 16, and `columns`, rounded up to whole vectors, numbers
    /// at `to` are writable.
    unsafe fn convert<S: Simd>(&self, s: S, row: usize, k: usize, start: usize, columns: usize, to: *mut f32);
}

/// Numbers as they are in memory.
struct Plain<'a, E>(&'a [E]);

impl<E: Element> Convert for Plain<'_, E> {
    fn has(&self, rows: usize, k: usize) -> bool {
        self.0.len() == rows * k
    }

    #[inline(always)]
    unsafe fn convert<S: Simd>(
        &self,
        s: S,
        row: usize,
        k: usize,
        start: usize,
        columns: usize,
        to: *mut f32,
    ) {
        let whole = columns - columns % S::LANES;
        // SAFETY: the columns follow `start` in the row, and a whole number of vectors fits the destination; prefetches need
        // nothing readable.
        unsafe {
            let from = self.0.as_ptr().add(row * k + start);
            for i in (0..whole).step_by(S::LANES) {
                s.prefetch(from.add(i).wrapping_byte_add(super::gemv::PREFETCH_BYTES));
                s.store(to.add(i), E::load(s, from.add(i)));
            }
            if whole < columns {
                s.store(to.add(whole), E::load_partial(s, from.add(whole), columns - whole));
            }
        }
    }
}

/// Quantised rows.
struct Decoded<'a, F> {
    rows: &'a QuantizedRows<'a>,
    #[expect(dead_code, reason = "only its type counts")]
    format: F,
}

impl<F: Format> Convert for Decoded<'_, F> {
    fn has(&self, rows: usize, k: usize) -> bool {
        self.rows.rows == rows && self.rows.columns == k
    }

    #[inline(always)]
    unsafe fn convert<S: Simd>(
        &self,
        s: S,
        row: usize,
        _: usize,
        start: usize,
        columns: usize,
        to: *mut f32,
    ) {
        // SAFETY: the row has the columns, `start` begins a byte, and what is written fits.
        unsafe {
            decode_row::<S, F>(s, self.rows, row, start, columns, to);
            for i in columns..columns.next_multiple_of(S::LANES) {
                to.add(i).write(0.0);
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

impl<W: Convert> Kernel for Panel<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { weight, k, tiles, to, panel } = self;
        let tile_rows = most_activations::<S>();
        let tile_len = k.next_multiple_of(S::LANES) * tile_rows;
        let sums_len = tile_rows * ROWS * S::LANES;
        let tile_count = to.rows.div_ceil(tile_rows);
        assert!(weight.has(to.columns, k) && tiles.len() >= tile_count * tile_len);
        assert!(panel.len() >= ROWS * ROW_STRIDE + tile_count * sums_len);
        let (rows, sums) = panel.split_at_mut(ROWS * ROW_STRIDE);
        for first in (0..to.columns).step_by(ROWS) {
            let count = (to.columns - first).min(ROWS);
            rows[count * ROW_STRIDE..].fill(0.0);
            for start in (0..k.max(1)).step_by(BLOCK_COLUMNS) {
                let columns = BLOCK_COLUMNS.min(k - start);
                for (row, to) in rows.chunks_exact_mut(ROW_STRIDE).enumerate().take(count) {
                    // SAFETY: the weight has this row of k columns, and a block, rounded up, fits a converted row.
                    unsafe { weight.convert(s, first + row, k, start, columns, to.as_mut_ptr()) }
                }
                for index in 0..tile_count {
                    let row = index * tile_rows;
                    let part = Part {
                        steps: columns.div_ceil(S::LANES),
                        is_first: start == 0,
                        is_last: start + columns == k,
                        row,
                        rows: tile_rows.min(to.rows - row),
                        column: first,
                        columns: count,
                    };
                    // SAFETY: the tile has the activations of the block, the rows were converted above, the sums are those of
                    // the tile, and nothing else uses the elements of the output meanwhile.
                    unsafe {
                        let x = tiles.as_ptr().add(index * tile_len + start * tile_rows);
                        let (w, sums) = (rows.as_ptr(), sums.as_mut_ptr().add(index * sums_len));
                        // A short last tile is done with as few rows as cover it.
                        match (tile_rows, part.rows) {
                            (6, 5..) => part.multiply::<S, 6>(s, w, x, sums, to),
                            (6, 3..) => part.multiply::<S, 4>(s, w, x, sums, to),
                            (4, 3..) => part.multiply::<S, 4>(s, w, x, sums, to),
                            (3, 3) => part.multiply::<S, 3>(s, w, x, sums, to),
                            _ => part.multiply::<S, 2>(s, w, x, sums, to),
                        }
                    }
                }
            }
        }
    }
}

/// A tile of the result over one block of columns.
struct Part {
    /// Vectors of the block.
    steps: usize,
    is_first: bool,
    is_last: bool,
    /// The first row of activations, and how many.
    row: usize,
    rows: usize,
    /// The first column of the output, and how many.
    column: usize,
    columns: usize,
}

impl Part {
    /// # Safety
    /// `w` has `ROWS` rows of `steps` vectors, `x` as many steps of a tile of activations of at least `M` rows, `sums` the vectors of a
    /// tile, which hold the sums of the blocks before, and nothing else uses the elements of the output meanwhile.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const M: usize>(
        &self,
        s: S,
        w: *const f32,
        x: *const f32,
        kept: *mut f32,
        to: &Output<'_>,
    ) {
        let mut sums = [[s.splat(0.0); ROWS]; M];
        let place = |t: usize, r: usize| (t * ROWS + r) * S::LANES;
        let x_step = most_activations::<S>() * S::LANES;
        // SAFETY: the caller promises these vectors.
        unsafe {
            if !self.is_first {
                for (t, sums) in sums.iter_mut().enumerate() {
                    for (r, sum) in sums.iter_mut().enumerate() {
                        *sum = s.load(kept.add(place(t, r)));
                    }
                }
            }
            for step in 0..self.steps {
                let (w, x) = (w.add(step * S::LANES), x.add(step * x_step));
                let mut row = [s.splat(0.0); M];
                for (t, row) in row.iter_mut().enumerate() {
                    *row = s.load(x.add(t * S::LANES));
                }
                for r in 0..ROWS {
                    let weight = s.load(w.add(r * ROW_STRIDE));
                    for (sums, &row) in sums.iter_mut().zip(&row) {
                        sums[r] = s.mul_add(weight, row, sums[r]);
                    }
                }
            }
            if !self.is_last {
                for (t, sums) in sums.iter().enumerate() {
                    for (r, sum) in sums.iter().enumerate() {
                        s.store(kept.add(place(t, r)), *sum);
                    }
                }
                return;
            }
        }
        for (t, sums) in reduce(s, &sums).into_iter().enumerate().take(self.rows) {
            let start = to.start + (self.row + t) * to.stride + self.column;
            // SAFETY: nothing else uses the elements of the output meanwhile.
            let out = unsafe { to.out.slice(start..start + self.columns) };
            for (r, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                let bias = to.bias.map_or(0.0, |bias| bias[self.column + r]);
                *out = if to.accumulate { *out + (sum + bias) } else { sum + bias };
            }
        }
    }
}
