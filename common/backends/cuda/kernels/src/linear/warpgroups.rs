//! The shapes of [`Method::Warpgroups`](super::Method::Warpgroups).

use super::{MAX_TILE_SPLIT, MIN_TILE_STEPS, TILE_COLUMNS};

/// Rows of a tile.
pub(super) const ROWS: u32 = 128;
/// Outputs of a tile.
const OUTPUTS: [u32; 2] = [256, 128];
/// Bytes of parts of a tile's sums that a multiprocessor writes and reads in the time of a stage's products with one output.
const PART_BYTES: u64 = 180;

/// Multiply-adds for which such tiles pay.
const FEWEST_PRODUCTS: u64 = 3 << 30;

/// Stages in shared memory: of small tiles so many that two blocks have room in a multiprocessor.
pub(super) const fn stages(outputs: u32) -> u32 {
    if outputs > 128 { 4 } else { 3 }
}

/// What a product takes with so many blocks for each of `tiles` tiles, in products of a stage with one output.
fn cost(tiles: u32, outputs: u32, steps: u32, split: u32, multiprocessors: u32) -> u64 {
    let blocks = (tiles * split).div_ceil(multiprocessors);
    let products = u64::from(blocks) * u64::from(outputs) * u64::from(steps.div_ceil(split));
    // Two small tiles at a time hide each other's waits; one by itself waits, as a large one does at its end.
    let products = match (outputs > 128, blocks) {
        (true, 0..=1) | (false, 2..) => products,
        (true, 2..) => products * 6 / 5,
        (false, 0..=1) => products * 7 / 4,
    };
    let parts = 2 * u64::from(tiles * split) * u64::from(ROWS * outputs) * 4;
    let joined = parts / u64::from(multiprocessors) / PART_BYTES;
    if split > 1 { products + joined } else { products }
}

/// How many blocks share a tile.
pub(super) fn split(tiles: u32, outputs: u32, columns: u32, multiprocessors: u32) -> u32 {
    let steps = columns.div_ceil(TILE_COLUMNS);
    let slots = multiprocessors * if outputs > 128 { 1 } else { 2 };
    let most = (slots / tiles.max(1)).min(steps / MIN_TILE_STEPS).clamp(1, MAX_TILE_SPLIT);
    (1..=most).min_by_key(|&split| cost(tiles, outputs, steps, split, multiprocessors)).unwrap_or(1)
}

/// Whether a product is large enough for tiles of so many rows. What is chosen changes with whole tiles of rows only.
pub(super) fn pays(rows: u32, weight_rows: u32, columns: u32) -> bool {
    let rows = rows.next_multiple_of(ROWS);
    u64::from(rows) * u64::from(weight_rows) * u64::from(columns) > FEWEST_PRODUCTS
}

/// The outputs of the tiles that take the least time.
pub(super) fn outputs(rows: u32, weight_rows: u32, columns: u32, multiprocessors: u32) -> u32 {
    let time = |outputs: u32| {
        let tiles = rows.div_ceil(ROWS) * weight_rows.div_ceil(outputs);
        let split = split(tiles, outputs, columns, multiprocessors);
        cost(tiles, outputs, columns.div_ceil(TILE_COLUMNS), split, multiprocessors)
    };
    OUTPUTS.into_iter().min_by_key(|&outputs| time(outputs)).unwrap_or(OUTPUTS[0])
}
