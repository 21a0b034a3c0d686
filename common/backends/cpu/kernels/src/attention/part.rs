//! Some queries of a sequence with a part of its keys: blocks of keys, transposed, with tiles of rows, in the registers of
//! the blocked product.
//!
//! What comes out for a row depends on its query and the keys it sees alone. Parts and blocks begin at multiples of their
//! lengths, wherever a query's keys begin and whatever else is computed with it; a key that a row does not see counts as
//! nothing in the place that it has.

use std::ops::Range;

use crate::Elements;
use crate::isa::{Isa, Kernel};
use crate::simd::{Element, Simd};

use super::AttentionArgs;
use super::online::{RowState, exp_scalar};
use super::plan::{Sequence, Span};
use super::tile::{pack_transposed, tile};

/// Keys of a part: what is summed up by itself, so that parts can be shared out.
pub(super) const PART_KEYS: usize = 256;

/// Keys of a block: a whole number of pairs of vectors for every instruction set, and of blocks for a part.
const KEYS: usize = 64;

/// Values, weighted but not yet divided by the sum of the weights, of some rows: queries times the query heads of a group.
#[derive(Debug)]
pub(super) struct Sums<'a> {
    /// `[rows, value_dim]`.
    values: &'a mut [f32],
    /// For each row the largest score, and the sum of `exp(score - largest)`.
    states: &'a mut [f32],
}

impl<'a> Sums<'a> {
    /// Length of the memory of those of some queries.
    pub(super) fn len(args: &AttentionArgs, queries: usize, tile_rows: usize) -> usize {
        padded_rows(args, queries, tile_rows) * (args.value_dim + 2)
    }

    /// In `memory`, whatever it holds.
    pub(super) fn in_memory(args: &AttentionArgs, memory: &'a mut [f32]) -> Self {
        let rows = memory.len() / (args.value_dim + 2);
        let (values, states) = memory.split_at_mut(rows * args.value_dim);
        Self { values, states }
    }

    /// Of no keys.
    fn clear(&mut self) {
        self.values.fill(0.0);
        for state in self.states.chunks_exact_mut(2) {
            state.copy_from_slice(&[RowState::EMPTY.max, RowState::EMPTY.sum]);
        }
    }

    /// Adds those of the next part of the keys, row by row.
    pub(super) fn add(&mut self, isa: Isa, dim: usize, part: &Sums<'_>) {
        isa.dispatch(Add { to: self, dim, part });
    }

    /// Divides by the sums and stores the results of some queries.
    ///
    /// # Safety
    /// Nothing else uses these results meanwhile.
    pub(super) unsafe fn store(
        &self,
        args: &AttentionArgs,
        sequence: &Sequence<'_>,
        kv_head: usize,
        queries: Range<usize>,
    ) {
        let group = args.group();
        for row in 0..queries.len() * group {
            // SAFETY: the caller leaves these results to this call.
            let out =
                unsafe { sequence.out(args, queries.start + row / group, kv_head * group + row % group) };
            let sum = self.states[2 * row + 1];
            let factor = if sum > 0.0 || sum.is_nan() { 1.0 / sum } else { 0.0 };
            for (out, value) in out.iter_mut().zip(&self.values[row * args.value_dim..]) {
                *out = value * factor;
            }
        }
    }
}

/// The sums of the keys so far, and of the next part of them.
struct Add<'a, 'b> {
    to: &'a mut Sums<'b>,
    dim: usize,
    part: &'a Sums<'a>,
}

impl Kernel for Add<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { to, dim, part } = self;
        let states = to.states.chunks_exact_mut(2).zip(part.states.chunks_exact(2));
        for (row, (state, added)) in states.enumerate() {
            // A part that saw no key has nothing to add, and its largest score is no number to subtract from.
            if added[0] == f32::NEG_INFINITY {
                continue;
            }
            let values = &mut to.values[row * dim..(row + 1) * dim];
            let added_values = &part.values[row * dim..(row + 1) * dim];
            if state[0] == f32::NEG_INFINITY {
                state.copy_from_slice(added);
                values.copy_from_slice(added_values);
                continue;
            }
            let max = state[0].max(added[0]);
            let factors = [exp_scalar(s, state[0] - max), exp_scalar(s, added[0] - max)];
            for (value, added) in values.iter_mut().zip(added_values) {
                *value = *value * factors[0] + added * factors[1];
            }
            state[1] = state[1] * factors[0] + added[1] * factors[1];
            state[0] = max;
        }
    }
}

/// Rows of some queries, rounded up to whole tiles.
fn padded_rows(args: &AttentionArgs, queries: usize, tile_rows: usize) -> usize {
    (queries * args.group()).next_multiple_of(tile_rows)
}

/// Length of a worker's memory, beside sums, for units of at most so many queries.
pub(super) fn scratch_len(args: &AttentionArgs, queries: usize, lanes: usize, tile_rows: usize) -> usize {
    let packed = args.head_dim.next_multiple_of(lanes) * KEYS;
    let gathered = KEYS * (args.head_dim + args.value_dim);
    packed + gathered + tile_rows * KEYS + padded_rows(args, queries, tile_rows) * args.head_dim
}

/// The sums of some queries for one key head over `keys`, which lie in one part.
#[expect(
    clippy::too_many_arguments,
    reason = "the queries, the keys, and where they are worked on and go to"
)]
pub(super) fn accumulate(
    isa: Isa,
    args: &AttentionArgs,
    sequence: &Sequence<'_>,
    kv_head: usize,
    queries: Range<usize>,
    keys: Range<usize>,
    memory: &mut [f32],
    sums: &mut Sums<'_>,
) {
    sums.clear();
    macro_rules! run {
        ($key_cache:expr, $value_cache:expr) => {
            isa.dispatch(Part {
                args,
                sequence,
                kv_head,
                key_cache: elements_from($key_cache, kv_head * sequence.keys.head_stride),
                value_cache: elements_from($value_cache, kv_head * sequence.values.head_stride),
                queries,
                keys,
                memory,
                sums,
            })
        };
    }
    match (sequence.keys.elements, sequence.values.elements) {
        (Elements::F32(keys_of), Elements::F32(values)) => run!(keys_of, values),
        (Elements::F16(keys_of), Elements::F16(values)) => run!(keys_of, values),
        (Elements::Bf16(keys_of), Elements::Bf16(values)) => run!(keys_of, values),
        // The types are the same, as was checked when the sequence came in.
        _ => {}
    }
}

/// The elements of a cache from the start of a head on: none if there are no positions, and so no elements.
fn elements_from<E>(cache: &[E], start: usize) -> &[E] {
    cache.get(start..).unwrap_or_default()
}

struct Part<'a, 'b, E> {
    args: &'a AttentionArgs,
    sequence: &'a Sequence<'a>,
    kv_head: usize,
    key_cache: &'a [E],
    value_cache: &'a [E],
    queries: Range<usize>,
    keys: Range<usize>,
    memory: &'a mut [f32],
    sums: &'a mut Sums<'b>,
}

/// The worker's memory, cut up.
struct Memory<'a> {
    /// A block of keys, `[head_dim, KEYS]`.
    keys: &'a mut [f32],
    /// Keys and values of a block whose rows do not follow each other, `[KEYS, head_dim]` and `[KEYS, value_dim]`.
    gathered: [&'a mut [f32]; 2],
    /// A tile of scores, `[TILE_ROWS, KEYS]`.
    scores: &'a mut [f32],
    /// Scaled queries, tile after tile `[head_dim, TILE_ROWS]`.
    queries: &'a mut [f32],
}

/// A block of keys.
struct Block {
    /// The position of its first place, a multiple of [`KEYS`].
    start: usize,
    /// The positions of those that are there.
    keys: Range<usize>,
}

impl<E: Element> Kernel for Part<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (args, sequence) = (self.args, self.sequence);
        let rows = self.queries.len() * args.group();
        let memory = std::mem::take(&mut self.memory);
        let (keys, memory) = memory.split_at_mut(args.head_dim.next_multiple_of(S::LANES) * KEYS);
        let (gathered_keys, memory) = memory.split_at_mut(KEYS * args.head_dim);
        let (gathered_values, memory) = memory.split_at_mut(KEYS * args.value_dim);
        let (scores, queries) = memory.split_at_mut(S::TILE_ROWS * KEYS);
        let queries = &mut queries[..rows.next_multiple_of(S::TILE_ROWS) * args.head_dim];
        let mut memory = Memory { keys, gathered: [gathered_keys, gathered_values], scores, queries };
        self.prepare::<S>(&mut memory, rows);

        let (dim, key_stride) = (args.head_dim, sequence.keys.row_stride);
        for start in (self.keys.start / KEYS * KEYS..self.keys.end).step_by(KEYS) {
            let keys = start.max(self.keys.start)..(start + KEYS).min(self.keys.end);
            let block = Block { start, keys: keys.clone() };
            let mut spans = sequence.spans(keys.clone());
            match (spans.next(), spans.next()) {
                (Some(span), None) if keys.start == start => {
                    let n = keys.len();
                    let (first, last) =
                        (span.key_row * key_stride, (span.key_row + n - 1) * key_stride + dim);
                    let from = &self.key_cache[first..last];
                    // SAFETY: the slice holds the keys, and the memory a vector of KEYS for every dimension.
                    unsafe {
                        let to = memory.keys.as_mut_ptr();
                        pack_transposed(s, from.as_ptr(), key_stride, n, dim, to, KEYS);
                    }
                    let value_stride = sequence.values.row_stride;
                    let first = span.value_row * value_stride;
                    let values = &self.value_cache[first..first + (n - 1) * value_stride + args.value_dim];
                    self.tiles(s, &mut memory, rows, &block, values, value_stride);
                }
                _ => {
                    self.gather(s, &mut memory, &block);
                    let [keys_in_rows, values] = &mut memory.gathered;
                    let (keys_in_rows, values) = (keys_in_rows.as_ptr(), std::mem::take(values));
                    // SAFETY: KEYS rows of keys are gathered, and the memory has a vector of KEYS for every dimension.
                    unsafe {
                        let to = memory.keys.as_mut_ptr();
                        pack_transposed(s, keys_in_rows, dim, KEYS, dim, to, KEYS);
                    }
                    self.tiles(s, &mut memory, rows, &block, &*values, args.value_dim);
                    memory.gathered[1] = values;
                }
            }
        }
    }
}

impl<E: Element> Part<'_, '_, E> {
    /// The token of a row.
    #[inline(always)]
    fn token(&self, row: usize) -> usize {
        self.queries.start + row / self.args.group()
    }

    /// Packs the queries.
    #[inline(always)]
    fn prepare<S: Simd>(&self, memory: &mut Memory<'_>, rows: usize) {
        let (dim, group) = (self.args.head_dim, self.args.group());
        memory.queries.fill(0.0);
        for row in 0..rows {
            let head = self.kv_head * group + row % group;
            let query = self.sequence.query(self.args, self.token(row), head);
            let start = row / S::TILE_ROWS * S::TILE_ROWS * dim + row % S::TILE_ROWS;
            let to = memory.queries[start..].iter_mut().step_by(S::TILE_ROWS);
            for (to, value) in to.zip(query) {
                *to = value * self.args.scale;
            }
        }
    }

    /// Puts the keys and values of a block in rows that follow each other, each in its place; the other places get zeros.
    #[inline(always)]
    fn gather<S: Simd>(&self, s: S, memory: &mut Memory<'_>, block: &Block) {
        let dims = [self.args.head_dim, self.args.value_dim];
        let [keys, values] = &mut memory.gathered;
        keys.fill(0.0);
        values.fill(0.0);
        for Span { keys: positions, key_row, value_row } in self.sequence.spans(block.keys.clone()) {
            for (i, position) in positions.enumerate() {
                let place = position - block.start;
                let key = &self.key_cache[(key_row + i) * self.sequence.keys.row_stride..][..dims[0]];
                let value = &self.value_cache[(value_row + i) * self.sequence.values.row_stride..][..dims[1]];
                widen(s, key, &mut keys[place * dims[0]..(place + 1) * dims[0]]);
                widen(s, value, &mut values[place * dims[1]..(place + 1) * dims[1]]);
            }
        }
    }

    /// All tiles of rows that see some of a block's keys, which are packed, with its values: rows `value_stride` apart.
    #[inline(always)]
    fn tiles<S: Simd, V: Element>(
        &mut self,
        s: S,
        memory: &mut Memory<'_>,
        rows: usize,
        block: &Block,
        values: &[V],
        value_stride: usize,
    ) {
        for row in (0..rows).step_by(S::TILE_ROWS) {
            let count = S::TILE_ROWS.min(rows - row);
            let tokens = self.token(row)..self.token(row + count - 1) + 1;
            let seen = self.args.visible_to_any(tokens, self.sequence.tokens, self.sequence.keys.len);
            if seen.start >= block.keys.end || block.keys.start >= seen.end {
                continue;
            }
            let tile = Tile { row, count, block, values, value_stride };
            // A short last tile is done with as few rows as cover it.
            match (S::TILE_ROWS, count) {
                (14, 8..) => self.tile::<S, V, 14>(s, memory, &tile),
                (14, 4..) => self.tile::<S, V, 7>(s, memory, &tile),
                (14, _) => self.tile::<S, V, 3>(s, memory, &tile),
                (6, 4..) => self.tile::<S, V, 6>(s, memory, &tile),
                (6, _) => self.tile::<S, V, 3>(s, memory, &tile),
                _ => self.tile::<S, V, 2>(s, memory, &tile),
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, V: Element, const R: usize>(
        &mut self,
        s: S,
        memory: &mut Memory<'_>,
        tile_of: &Tile<'_, V>,
    ) {
        let Tile { row, count, block, values, value_stride } = *tile_of;
        let (args, sequence) = (self.args, self.sequence);
        let (dim, value_dim) = (args.head_dim, args.value_dim);
        let (from, end) = (block.keys.start - block.start, block.keys.end - block.start);
        let queries = &memory.queries[row * dim..(row + S::TILE_ROWS) * dim];
        for column in (0..end).step_by(2 * S::LANES) {
            // SAFETY: the memory holds a packed tile of queries, KEYS packed keys and a tile of scores; KEYS is a whole
            // number of pairs of vectors, so that a pair follows the column.
            unsafe {
                let (q, k) = (queries.as_ptr(), memory.keys.as_ptr().add(column));
                let products = tile::<S, f32, R>(s, q, 1, S::TILE_ROWS, k, KEYS, dim, 2 * S::LANES);
                for (r, [low, high]) in products.into_iter().enumerate() {
                    let to = memory.scores.as_mut_ptr().add(r * KEYS + column);
                    s.store(to, low);
                    s.store(to.add(S::LANES), high);
                }
            }
        }
        let mut factors = [1.0; R];
        for (r, factor) in factors.iter_mut().enumerate() {
            let scores = &mut memory.scores[r * KEYS..(r + 1) * KEYS];
            if r >= count {
                scores.fill(0.0);
                continue;
            }
            scores[..from].fill(f32::NEG_INFINITY);
            scores[end..].fill(f32::NEG_INFINITY);
            let query = sequence.scores_of(args, self.token(row + r));
            query.finish_scores(s, block.keys.start, &mut scores[from..end]);
            let kept = &mut self.sums.states[2 * (row + r)..2 * (row + r) + 2];
            let mut state = RowState { max: kept[0], sum: kept[1] };
            *factor = state.take(s, scores);
            kept.copy_from_slice(&[state.max, state.sum]);
        }
        let sums = &mut self.sums.values[row * value_dim..(row + R) * value_dim];
        for column in (0..value_dim).step_by(2 * S::LANES) {
            let width = (value_dim - column).min(2 * S::LANES);
            // SAFETY: the slices hold the scores and sums of R rows, and values for `end` places of `value_dim` elements.
            unsafe {
                let (p, v) = (memory.scores.as_ptr(), values.as_ptr().add(column));
                let added = tile::<S, V, R>(s, p, KEYS, 1, v, value_stride, end, width);
                for (r, added) in added.into_iter().enumerate() {
                    add_scaled(s, sums.as_mut_ptr().add(r * value_dim + column), width, factors[r], added);
                }
            }
        }
    }
}

/// Rows of a tile, and what they are multiplied with.
struct Tile<'a, V> {
    /// The first row, and how many.
    row: usize,
    count: usize,
    block: &'a Block,
    /// The values of the block's places, as far as keys are there.
    values: &'a [V],
    value_stride: usize,
}

/// Numbers of a row as fp32.
#[inline(always)]
fn widen<S: Simd, E: Element>(s: S, from: &[E], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    for i in (0..from.len()).step_by(S::LANES) {
        let n = (from.len() - i).min(S::LANES);
        // SAFETY: n elements follow i in both.
        unsafe { s.store_partial(to.as_mut_ptr().add(i), n, E::load_partial(s, from.as_ptr().add(i), n)) }
    }
}

/// `to = to * factor + added` for `n` elements, at most two vectors.
///
/// # Safety
/// The elements are writable.
#[inline(always)]
unsafe fn add_scaled<S: Simd>(s: S, to: *mut f32, n: usize, factor: f32, added: [S::F32; 2]) {
    let factor = s.splat(factor);
    let low = n.min(S::LANES);
    // SAFETY: the caller promises n elements.
    unsafe {
        s.store_partial(to, low, s.mul_add(s.load_partial(to, low), factor, added[0]));
        if n > low {
            let to = to.add(low);
            s.store_partial(to, n - low, s.mul_add(s.load_partial(to, n - low), factor, added[1]));
        }
    }
}
