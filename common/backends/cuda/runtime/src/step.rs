//! What kernels need to know of a step: one block of memory, copied to the device at once.

use roundhouse_cuda_kernels::QUERY_TILE;
use roundhouse_cuda_kernels::step::{QueryTile, Sequence};
use roundhouse_cuda_plan::{Attended, StepShape};

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    /// Where its memory is.
    pub(crate) kv: u64,
    /// Positions that its memory has room for.
    pub(crate) capacity: usize,
    /// Tokens before the new ones.
    pub(crate) past: usize,
    /// New tokens.
    pub(crate) tokens: &'a [u32],
    /// How many of the last new tokens' logits are wanted.
    pub(crate) rows: usize,
}

/// Where each array of a block begins, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockLayout {
    pub(crate) sequences: usize,
    pub(crate) ids: usize,
    pub(crate) positions: usize,
    pub(crate) row_sequence: usize,
    pub(crate) selected: usize,
    pub(crate) tiles: usize,
    pub(crate) turns: usize,
    pub(crate) bytes: usize,
}

const SEQUENCE_BYTES: usize = size_of::<Sequence>();
const INT_BYTES: usize = size_of::<i32>();
const TILE_BYTES: usize = size_of::<QueryTile>();
const ALIGNMENT: usize = 16;

impl BlockLayout {
    /// The block of a step of this shape. There are no more sequences than tokens.
    pub(crate) fn new(shape: StepShape) -> Self {
        let mut end = 0;
        let mut place = |bytes: usize| {
            let start = end;
            end = (start + bytes).next_multiple_of(ALIGNMENT);
            start
        };
        let sequences = place(shape.tokens * SEQUENCE_BYTES);
        let [ids, positions, row_sequence] = [(); 3].map(|()| place(shape.tokens * INT_BYTES));
        let selected = place(shape.selected * INT_BYTES);
        let tiles = place(shape.attended.tiles * TILE_BYTES);
        let turns = place(shape.tokens * INT_BYTES);
        Self { sequences, ids, positions, row_sequence, selected, tiles, turns, bytes: end }
    }
}

/// The tiles of queries of a sequence of so many new tokens.
fn tiles(tokens: usize) -> usize {
    if tokens > 1 { tokens.div_ceil(QUERY_TILE as usize) } else { 0 }
}

/// The shape of a step, without padding. `logits_of_all` is whether the logits of every row are computed whatever is
/// wanted.
pub(crate) fn shape(parts: &[Part<'_>], logits_of_all: bool) -> StepShape {
    let tokens = parts.iter().map(|part| part.tokens.len()).sum();
    let wanted = parts.iter().map(|part| part.rows).sum();
    let attended = Attended {
        single: parts.iter().any(|part| part.tokens.len() == 1),
        tiles: parts.iter().map(|part| tiles(part.tokens.len())).sum(),
    };
    let selected = if logits_of_all { tokens } else { wanted };
    StepShape { tokens, selected, selects_all: selected == tokens, attended }
}

/// Writes a block for parts whose shape, without padding, is no larger than `shape`.
pub(crate) fn write_block(parts: &[Part<'_>], shape: StepShape, block: &mut [u8]) {
    let layout = BlockLayout::new(shape);
    block[..layout.bytes].fill(0);
    let put = |block: &mut [u8], array: usize, index: usize, value: usize| {
        let at = array + index * INT_BYTES;
        block[at..at + INT_BYTES].copy_from_slice(&number(value).to_le_bytes());
    };
    // Padding belongs to no sequence, and nothing is selected there.
    block[layout.row_sequence..layout.row_sequence + shape.tokens * INT_BYTES].fill(0xff);
    block[layout.selected..layout.selected + shape.selected * INT_BYTES].fill(0xff);
    let (mut row, mut selected, mut tile) = (0, 0, 0);
    for (index, part) in parts.iter().enumerate() {
        let count = part.tokens.len();
        let sequence = Sequence {
            kv: part.kv,
            capacity: number(part.capacity),
            first_row: number(row),
            rows: number(count),
            past: number(part.past),
            padding: [0; 2],
        };
        let at = layout.sequences + index * SEQUENCE_BYTES;
        block[at..at + SEQUENCE_BYTES].copy_from_slice(&sequence.to_bytes());
        for (place, &token) in part.tokens.iter().enumerate() {
            put(block, layout.ids, row + place, token as usize);
            put(block, layout.positions, row + place, part.past + place);
            put(block, layout.row_sequence, row + place, index);
        }
        for wanted in row + count - part.rows..row + count {
            if selected < shape.selected {
                put(block, layout.selected, selected, wanted);
                selected += 1;
            }
        }
        for first in (0..tiles(count)).map(|tile| tile * QUERY_TILE as usize) {
            let at = layout.tiles + tile * TILE_BYTES;
            block[at..at + INT_BYTES].copy_from_slice(&number(index).to_le_bytes());
            block[at + INT_BYTES..at + TILE_BYTES].copy_from_slice(&number(first).to_le_bytes());
            tile += 1;
        }
        row += count;
    }
}

/// A count as kernels have it; engines are checked for larger ones when they are built.
fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(block: &[u8], at: usize, count: usize) -> Vec<i32> {
        let ints = block[at..].chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap()));
        ints.take(count).collect()
    }

    #[test]
    fn a_block_says_which_row_is_whose() {
        let long: Vec<u32> = (100..170).collect();
        let part = |tokens, past, rows| Part { kv: 1 << 40, capacity: 512, past, tokens, rows };
        let parts = [part(&[7], 9, 1), part(&long, 3, 2)];
        let shape = shape(&parts, false);
        let attended = Attended { single: true, tiles: 2 };
        assert_eq!(shape, StepShape { tokens: 71, selected: 3, selects_all: false, attended });
        let layout = BlockLayout::new(shape);
        let mut block = vec![0xab; layout.bytes];
        write_block(&parts, shape, &mut block);
        assert_eq!(ints(&block, layout.ids, 3), [7, 100, 101]);
        assert_eq!(ints(&block, layout.positions, 3), [9, 3, 4]);
        assert_eq!(ints(&block, layout.row_sequence, 3), [0, 1, 1]);
        assert_eq!(ints(&block, layout.selected, 3), [0, 69, 70]);
        assert_eq!(ints(&block, layout.tiles, 4), [1, 0, 1, 64]);
        assert_eq!(ints(&block, layout.sequences + 32, 6), [0, 256, 512, 1, 70, 3]);
    }

    #[test]
    fn padding_belongs_to_no_sequence() {
        let parts = [Part { kv: 1, capacity: 2, past: 0, tokens: &[5], rows: 1 }];
        let attended = Attended { single: true, tiles: 0 };
        let shape = StepShape { tokens: 4, selected: 4, selects_all: true, attended };
        let layout = BlockLayout::new(shape);
        let mut block = vec![0xab; layout.bytes];
        write_block(&parts, shape, &mut block);
        assert_eq!(ints(&block, layout.ids, 4), [5, 0, 0, 0]);
        assert_eq!(ints(&block, layout.row_sequence, 4), [0, -1, -1, -1]);
        assert_eq!(ints(&block, layout.sequences + 32, 8), [0; 8]);
    }
}
