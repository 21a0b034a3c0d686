//! Products of many rows of activations, blocked for the caches.
//!
//! An item of work is a panel of a weight's rows with a block of activations. Its worker packs the panel, converted, into
//! memory of its own that stays in the cache, and multiplies it with one tile of activations after the other. The
//! activations were packed before, in a parallel region of their own.

use std::ops::Range;

use crate::elementwise::silu_mul_assign;
use crate::isa::Isa;
use crate::shared::{Queue, SharedMut};
use crate::weight::WeightRows;
use crate::{Elements, Scratch, ThreadPool, Weight};

use super::fma::Fma;
use super::{Product, Reduction, weights};

/// Packed activations that are multiplied with one panel after the other: they should stay in a core's second-level cache.
const BLOCK_BYTES: usize = 640 * 1024;

/// Packed activations at a time, to bound the memory.
const PACKED_BYTES: usize = 16 * 1024 * 1024;

/// A way to multiply packed panels.
pub(super) trait Engine: Copy + Sync {
    /// Rows of a panel of weights.
    fn panel_rows(self) -> usize;
    /// Rows of a tile of activations.
    fn tile_rows(self) -> usize;
    /// Length of a packed tile of activations with `k` columns.
    fn packed_tile_len(self, k: usize) -> usize;
    /// Length of a worker's memory for a panel with `k` columns and so many tiles of activations.
    fn panel_len(self, k: usize, tiles: usize) -> usize;
    /// Gets the thread ready for `multiply`; dropping the result undoes that.
    fn enter(self) -> impl Sized;
    /// Packs the rows of a tile of activations, at most [`tile_rows`](Self::tile_rows) of `k` elements.
    fn pack_tile(self, x: &[f32], stride: usize, rows: usize, k: usize, packed: &mut [f32]);
    /// Multiplies a panel of at most [`panel_rows`](Self::panel_rows) rows of a weight with packed tiles of activations, whose
    /// last one may have fewer rows. `panel` is the worker's memory.
    ///
    /// # Safety
    /// Nothing else uses the elements of `to` meanwhile, and the thread has [`enter`](Self::enter)ed.
    unsafe fn multiply(
        self,
        weight: &WeightRows<'_>,
        k: usize,
        tiles: &[f32],
        to: &Output<'_>,
        panel: &mut [f32],
    );
}

/// Where the product of a panel goes: element `(t, n)` to `start + t * stride + n`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output<'a> {
    pub(super) out: SharedMut<'a, f32>,
    pub(super) start: usize,
    pub(super) stride: usize,
    /// How many rows of activations.
    pub(super) rows: usize,
    /// How many rows of weights.
    pub(super) columns: usize,
    /// For each column.
    pub(super) bias: Option<&'a [f32]>,
    /// Whether the product is added to what is there.
    pub(super) accumulate: bool,
}

/// Whether these products run on the matrix unit, which takes no fp32 weights.
pub(super) fn on_matrix_unit(isa: Isa, reduction: Reduction, products: &[Product<'_>]) -> bool {
    let of_few_bits = |weight: &Weight<'_>| match weight {
        Weight::Plain(matrix) => !matches!(matrix.elements, Elements::F32(_)),
        Weight::Quantized(_) => true,
    };
    isa.has_amx() && reduction == Reduction::Fastest && weights(products).all(of_few_bits)
}

pub(super) fn multiply(
    pool: &ThreadPool,
    scratch: &mut Scratch,
    reduction: Reduction,
    x: &[f32],
    m: usize,
    x_stride: usize,
    products: &[Product<'_>],
) {
    let problem = Problem { x, m, x_stride, products, k: products.first().map_or(0, |p| p.weight.columns()) };
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if on_matrix_unit(pool.isa(), reduction, products) {
        problem.run(pool, scratch, super::amx::Amx::new(pool.isa()));
        return;
    }
    problem.run(pool, scratch, Fma::new(pool.isa()));
}

/// What a worker has for itself.
struct Memory<'a> {
    panel: &'a mut [f32],
    /// The second half of a gated product.
    up: &'a mut [f32],
    /// Scales and offsets of a panel of quantised weights.
    scales: &'a mut [f32],
}

struct Problem<'a> {
    x: &'a [f32],
    m: usize,
    x_stride: usize,
    products: &'a [Product<'a>],
    k: usize,
}

impl Problem<'_> {
    fn run<E: Engine>(&self, pool: &ThreadPool, scratch: &mut Scratch, engine: E) {
        let tile_rows = engine.tile_rows();
        let tile_len = engine.packed_tile_len(self.k).max(1);
        let whole = |bytes: usize| (bytes / (tile_len * 4)).max(1);
        // Blocks of one size: a short last one would leave workers idle.
        let tiles = self.m.div_ceil(tile_rows);
        let blocks = tiles.div_ceil(whole(BLOCK_BYTES));
        let block_rows = tiles.div_ceil(blocks) * tile_rows;
        let at_once = (whole(PACKED_BYTES) * tile_rows / block_rows).max(1) * block_rows;

        let panel_len = engine.panel_len(self.k, block_rows / tile_rows);
        // Of a gated product, the second half is kept until the first is there.
        let up_len = block_rows * engine.panel_rows();
        let scales_len = weights(self.products).map(|weight| weight.memory_len(engine.panel_rows()));
        let scales_len = scales_len.max().unwrap_or(0);
        let packed_len = self.m.min(at_once).div_ceil(tile_rows) * tile_len;
        let (packed, workers) = scratch.split(packed_len, pool.threads(), panel_len + up_len + scales_len);
        for start in (0..self.m).step_by(at_once) {
            let rows = start..(start + at_once).min(self.m);
            self.pack(pool, engine, rows.clone(), tile_len, packed);
            let packed = &*packed;
            let panels: usize =
                self.products.iter().map(|p| p.weight.rows().div_ceil(engine.panel_rows())).sum();
            let queue = Queue::new(panels * rows.len().div_ceil(block_rows), 1, pool.threads());
            pool.run(&|worker| {
                let entered = engine.enter();
                // SAFETY: each worker asks once for its own part.
                let (panel, rest) = unsafe { workers.of(worker) }.split_at_mut(panel_len);
                let (up, scales) = rest.split_at_mut(up_len);
                let mut memory = Memory { panel, up, scales };
                while let Some(items) = queue.take() {
                    for item in items {
                        let first = rows.start + item / panels * block_rows;
                        let tokens = first..(first + block_rows).min(rows.end);
                        let tiles = &packed[(first - rows.start) / tile_rows * tile_len..];
                        // SAFETY: the queue hands out every panel of every block once.
                        unsafe { self.item(pool.isa(), engine, item % panels, tokens, tiles, &mut memory) }
                    }
                }
                drop(entered);
            });
        }
    }

    /// Packs rows of the activations, shared out over the pool.
    fn pack<E: Engine>(
        &self,
        pool: &ThreadPool,
        engine: E,
        rows: Range<usize>,
        tile_len: usize,
        packed: &mut [f32],
    ) {
        let tile_rows = engine.tile_rows();
        let tiles = rows.len().div_ceil(tile_rows);
        let packed = SharedMut::new(packed);
        let queue = Queue::new(tiles, 1, pool.threads());
        let body = |_: usize| {
            while let Some(tiles) = queue.take() {
                for tile in tiles {
                    let first = rows.start + tile * tile_rows;
                    let count = tile_rows.min(rows.end - first);
                    // SAFETY: the queue hands out every tile once.
                    let packed = unsafe { packed.slice(tile * tile_len..(tile + 1) * tile_len) };
                    engine.pack_tile(&self.x[first * self.x_stride..], self.x_stride, count, self.k, packed);
                }
            }
        };
        if tiles == 1 { body(0) } else { pool.run(&body) }
    }

    /// One panel, counted over all products, with one block of activations.
    ///
    /// # Safety
    /// Nothing else uses the panel's columns of these rows meanwhile, and the thread has entered the engine.
    unsafe fn item<E: Engine>(
        &self,
        isa: Isa,
        engine: E,
        mut panel_index: usize,
        tokens: Range<usize>,
        tiles: &[f32],
        memory: &mut Memory<'_>,
    ) {
        let panel_rows = engine.panel_rows();
        for product in self.products {
            let panels = product.weight.rows().div_ceil(panel_rows);
            if panel_index >= panels {
                panel_index -= panels;
                continue;
            }
            let first = panel_index * panel_rows;
            let rows = first..(first + panel_rows).min(product.weight.rows());
            let to = Output {
                out: product.out,
                start: tokens.start * product.out_stride + first,
                stride: product.out_stride,
                rows: tokens.len(),
                columns: rows.len(),
                bias: product.bias.map(|bias| &bias[rows.clone()]),
                accumulate: product.accumulate,
            };
            // SAFETY: the caller leaves the columns to this call; the values are its own.
            unsafe {
                let weight = product.weight.rows_in(isa, rows.clone(), memory.scales);
                engine.multiply(&weight, self.k, tiles, &to, memory.panel);
            }
            if let Some(up) = product.up {
                let (out, stride) = (SharedMut::new(&mut *memory.up), panel_rows);
                let to_values = Output { out, start: 0, stride, bias: None, accumulate: false, ..to };
                // SAFETY: as above.
                unsafe {
                    let weight = up.rows_in(isa, rows, memory.scales);
                    engine.multiply(&weight, self.k, tiles, &to_values, memory.panel);
                }
                for t in 0..to.rows {
                    let start = to.start + t * to.stride;
                    // SAFETY: as above.
                    let gate = unsafe { to.out.slice(start..start + to.columns) };
                    // SAFETY: as above.
                    let up = unsafe { out.slice(t * stride..t * stride + to.columns) };
                    silu_mul_assign(isa, gate, up);
                }
            }
            return;
        }
    }
}
