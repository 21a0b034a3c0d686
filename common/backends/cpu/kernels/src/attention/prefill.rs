//! Many queries: blocks of keys, transposed, with tiles of rows, in the registers of the blocked product.

use std::ops::Range;

use crate::Elements;
use crate::isa::{Isa, Kernel};
use crate::simd::{Element, Simd};

use super::AttentionArgs;
use super::decode::{add_scaled, elements_from};
use super::online::RowState;
use super::plan::Sequence;
use super::tile::{pack_transposed, tile};

/// Keys of a block: a whole number of pairs of vectors for every instruction set.
const KEYS: usize = 64;

/// Length of a worker's memory for units of `tokens` queries.
pub(super) fn scratch_len(args: &AttentionArgs, tokens: usize, lanes: usize, tile_rows: usize) -> usize {
    if tokens == 0 {
        return 0;
    }
    let rows = (tokens * args.group()).next_multiple_of(tile_rows);
    let keys = args.head_dim.next_multiple_of(lanes) * KEYS;
    keys + tile_rows * KEYS + rows * (args.head_dim + args.value_dim + 2)
}

/// Some queries of a sequence for one key head, with all keys they see.
///
/// # Safety
/// Nothing else uses the results of these queries and their heads meanwhile.
pub(super) unsafe fn run(
    isa: Isa,
    args: &AttentionArgs,
    sequence: &Sequence<'_>,
    kv_head: usize,
    queries: Range<usize>,
    memory: &mut [f32],
) {
    macro_rules! run {
        ($key_cache:expr, $value_cache:expr) => {
            isa.dispatch(Queries {
                args,
                sequence,
                kv_head,
                key_cache: elements_from($key_cache, kv_head * sequence.keys.head_stride),
                value_cache: elements_from($value_cache, kv_head * sequence.values.head_stride),
                queries,
                memory,
            })
        };
    }
    match (sequence.keys.elements, sequence.values.elements) {
        (Elements::F32(keys), Elements::F32(values)) => run!(keys, values),
        (Elements::F16(keys), Elements::F16(values)) => run!(keys, values),
        (Elements::Bf16(keys), Elements::Bf16(values)) => run!(keys, values),
        // The types are the same, as was checked when the sequence came in.
        _ => {}
    }
}

/// Made only where nothing else uses the results of the queries.
struct Queries<'a, E> {
    args: &'a AttentionArgs,
    sequence: &'a Sequence<'a>,
    kv_head: usize,
    key_cache: &'a [E],
    value_cache: &'a [E],
    queries: Range<usize>,
    memory: &'a mut [f32],
}

/// The worker's memory, cut up.
struct Memory<'a> {
    /// A block of keys, `[head_dim, KEYS]`.
    keys: &'a mut [f32],
    /// A tile of scores, `[TILE_ROWS, KEYS]`.
    scores: &'a mut [f32],
    /// Scaled queries, tile after tile `[head_dim, TILE_ROWS]`.
    queries: &'a mut [f32],
    /// Weighted values, `[rows, value_dim]`.
    sums: &'a mut [f32],
    /// For each row the largest score and the sum.
    states: &'a mut [f32],
}

impl<E: Element> Kernel for Queries<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (args, sequence) = (self.args, self.sequence);
        let group = args.group();
        let rows = self.queries.len() * group;
        let all_rows = rows.next_multiple_of(S::TILE_ROWS);
        let memory = std::mem::take(&mut self.memory);
        let (keys, memory) = memory.split_at_mut(args.head_dim.next_multiple_of(S::LANES) * KEYS);
        let (scores, memory) = memory.split_at_mut(S::TILE_ROWS * KEYS);
        let (queries, memory) = memory.split_at_mut(all_rows * args.head_dim);
        let (sums, memory) = memory.split_at_mut(all_rows * args.value_dim);
        let mut memory = Memory { keys, scores, queries, sums, states: &mut memory[..2 * all_rows] };
        self.prepare::<S>(&mut memory, rows);

        let len = sequence.keys.len;
        let seen = args.visible_to_any(self.queries.clone(), sequence.tokens, len);
        let (key_stride, value_stride) = (sequence.keys.row_stride, sequence.values.row_stride);
        for span in sequence.spans(seen) {
            let key_cache = elements_from(self.key_cache, span.key_row * key_stride);
            let value_cache = elements_from(self.value_cache, span.value_row * value_stride);
            for first in span.keys.clone().step_by(KEYS) {
                let (block, start) = (first..(first + KEYS).min(span.keys.end), first - span.keys.start);
                let last = start + block.len() - 1;
                let from = &key_cache[start * key_stride..last * key_stride + args.head_dim];
                let values = &value_cache[start * value_stride..last * value_stride + args.value_dim];
                // SAFETY: the slice holds the keys of the block, and the memory a vector of KEYS for every dimension.
                unsafe {
                    let to = memory.keys.as_mut_ptr();
                    pack_transposed(s, from.as_ptr(), key_stride, block.len(), args.head_dim, to, KEYS);
                }
                for row in (0..rows).step_by(S::TILE_ROWS) {
                    let last = (row + S::TILE_ROWS).min(rows) - 1;
                    let tokens = self.token(row)..self.token(last) + 1;
                    let tile_sees = args.visible_to_any(tokens, sequence.tokens, len);
                    if tile_sees.start < block.end && block.start < tile_sees.end {
                        match S::TILE_ROWS {
                            14 => self.tile::<S, 14>(s, &mut memory, row, rows, block.clone(), values),
                            6 => self.tile::<S, 6>(s, &mut memory, row, rows, block.clone(), values),
                            _ => self.tile::<S, 2>(s, &mut memory, row, rows, block.clone(), values),
                        }
                    }
                }
            }
        }
        self.finish(&memory, rows);
    }
}

impl<E: Element> Queries<'_, E> {
    /// The token of a row.
    #[inline(always)]
    fn token(&self, row: usize) -> usize {
        self.queries.start + row / self.args.group()
    }

    /// The query head of a row.
    #[inline(always)]
    fn head(&self, row: usize) -> usize {
        self.kv_head * self.args.group() + row % self.args.group()
    }

    /// Packs the queries and empties the states.
    #[inline(always)]
    fn prepare<S: Simd>(&self, memory: &mut Memory<'_>, rows: usize) {
        let dim = self.args.head_dim;
        memory.queries.fill(0.0);
        for row in 0..rows {
            let query = self.sequence.query(self.args, self.token(row), self.head(row));
            let start = row / S::TILE_ROWS * S::TILE_ROWS * dim + row % S::TILE_ROWS;
            let to = memory.queries[start..].iter_mut().step_by(S::TILE_ROWS);
            for (to, value) in to.zip(query) {
                *to = value * self.args.scale;
            }
        }
        memory.sums.fill(0.0);
        for state in memory.states.chunks_exact_mut(2) {
            state.copy_from_slice(&[RowState::EMPTY.max, RowState::EMPTY.sum]);
        }
    }

    /// A tile of rows from `row` on with a block of keys, which is packed, and its values.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(
        &self,
        s: S,
        memory: &mut Memory<'_>,
        row: usize,
        rows: usize,
        block: Range<usize>,
        values: &[E],
    ) {
        let (args, sequence, n) = (self.args, self.sequence, block.len());
        let (dim, value_dim) = (args.head_dim, args.value_dim);
        let queries = &memory.queries[row * dim..(row + R) * dim];
        for column in (0..n).step_by(2 * S::LANES) {
            // SAFETY: the memory holds a packed tile of queries, KEYS packed keys and a tile of scores; KEYS is a whole
            // number of pairs of vectors, so that a pair follows the column.
            unsafe {
                let (q, k) = (queries.as_ptr(), memory.keys.as_ptr().add(column));
                let products = tile::<S, f32, R>(s, q, 1, R, k, KEYS, dim, 2 * S::LANES);
                for (r, [low, high]) in products.into_iter().enumerate() {
                    let to = memory.scores.as_mut_ptr().add(r * KEYS + column);
                    s.store(to, low);
                    s.store(to.add(S::LANES), high);
                }
            }
        }
        let mut factors = [1.0; R];
        for (r, factor) in factors.iter_mut().enumerate() {
            let scores = &mut memory.scores[r * KEYS..r * KEYS + n];
            if row + r >= rows {
                scores.fill(0.0);
                continue;
            }
            sequence.scores_of(args, self.token(row + r)).finish_scores(s, block.start, scores);
            let kept = &mut memory.states[2 * (row + r)..2 * (row + r) + 2];
            let mut state = RowState { max: kept[0], sum: kept[1] };
            *factor = state.take(s, scores);
            kept.copy_from_slice(&[state.max, state.sum]);
        }
        let stride = sequence.values.row_stride;
        let sums = &mut memory.sums[row * value_dim..(row + R) * value_dim];
        for column in (0..value_dim).step_by(2 * S::LANES) {
            let width = (value_dim - column).min(2 * S::LANES);
            // SAFETY: the slices hold the scores and sums of R rows, and n values of `value_dim` elements.
            unsafe {
                let (p, v) = (memory.scores.as_ptr(), values.as_ptr().add(column));
                let added = tile::<S, E, R>(s, p, KEYS, 1, v, stride, n, width);
                for (r, added) in added.into_iter().enumerate() {
                    add_scaled(s, sums.as_mut_ptr().add(r * value_dim + column), width, factors[r], added);
                }
            }
        }
    }

    /// Divides by the sums and stores the results.
    #[inline(always)]
    fn finish(&self, memory: &Memory<'_>, rows: usize) {
        for row in 0..rows {
            // SAFETY: nothing else uses the results of these queries while this exists.
            let out = unsafe { self.sequence.out(self.args, self.token(row), self.head(row)) };
            let sum = memory.states[2 * row + 1];
            let factor = if sum > 0.0 || sum.is_nan() { 1.0 / sum } else { 0.0 };
            for (out, value) in out.iter_mut().zip(&memory.sums[row * self.args.value_dim..]) {
                *out = value * factor;
            }
        }
    }
}
