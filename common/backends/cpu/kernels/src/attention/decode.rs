//! Few queries: keys and values stream past them once, straight from the cache.

use std::ops::Range;

use crate::Elements;
use crate::isa::{Isa, Kernel};
use crate::linear::dots;
use crate::simd::{Element, Simd};

use super::AttentionArgs;
use super::online::{RowState, exp_scalar};
use super::plan::Sequence;
use super::tile::tile;

/// Most rows, tokens times query heads of a group, that are done this way.
pub(super) const DECODE_ROWS: usize = 8;

/// Keys of a block.
const KEYS: usize = 64;

/// Length of a worker's memory: scaled queries, the scores of a block, accumulated values.
pub(super) fn scratch_len(args: &AttentionArgs) -> usize {
    DECODE_ROWS * (args.head_dim + KEYS + args.value_dim)
}

/// Length of a partial result: for each row the accumulated values, the largest score and the sum.
pub(super) fn partial_len(args: &AttentionArgs, tokens: usize) -> usize {
    tokens * args.group() * (args.value_dim + 2)
}

/// All queries of a sequence for one key head, with `keys`, of which the results are stored.
///
/// # Safety
/// Nothing else uses the results of these query heads meanwhile.
pub(super) unsafe fn run_whole(
    isa: Isa,
    args: &AttentionArgs,
    sequence: &Sequence<'_>,
    kv_head: usize,
    keys: Range<usize>,
    memory: &mut [f32],
) {
    let (states, sums) = accumulate(isa, args, sequence, kv_head, keys, memory);
    for row in 0..sequence.tokens * args.group() {
        let (t, head) = (row / args.group(), kv_head * args.group() + row % args.group());
        // SAFETY: the caller leaves the results of these heads to this call.
        let out = unsafe { sequence.out(args, t, head) };
        let sum = states[row].sum;
        let factor = if sum > 0.0 || sum.is_nan() { 1.0 / sum } else { 0.0 };
        for (out, value) in out.iter_mut().zip(&sums[row * args.value_dim..]) {
            *out = value * factor;
        }
    }
}

/// As [`run_whole`], but the result is only of a part of the keys.
pub(super) fn run_part(
    isa: Isa,
    args: &AttentionArgs,
    sequence: &Sequence<'_>,
    kv_head: usize,
    keys: Range<usize>,
    memory: &mut [f32],
    partial: &mut [f32],
) {
    let (states, sums) = accumulate(isa, args, sequence, kv_head, keys, memory);
    let rows = partial.chunks_exact_mut(args.value_dim + 2).zip(states);
    for (row, (partial, state)) in rows.enumerate() {
        partial[..args.value_dim].copy_from_slice(&sums[row * args.value_dim..(row + 1) * args.value_dim]);
        partial[args.value_dim] = state.max;
        partial[args.value_dim + 1] = state.sum;
    }
}

/// Stores the results of which `parts` are all the partial ones.
///
/// # Safety
/// Nothing else uses the results of these query heads meanwhile.
pub(super) unsafe fn merge(
    isa: Isa,
    args: &AttentionArgs,
    sequence: &Sequence<'_>,
    kv_head: usize,
    parts: &[f32],
) {
    let group = args.group();
    for row in 0..sequence.tokens * group {
        // SAFETY: the caller leaves the results of these heads to this call.
        let out = unsafe { sequence.out(args, row / group, kv_head * group + row % group) };
        let len = partial_len(args, sequence.tokens);
        isa.dispatch(Merge { parts, len, row, out });
    }
}

/// The result of a row from its partial ones.
struct Merge<'a> {
    parts: &'a [f32],
    len: usize,
    row: usize,
    out: &'a mut [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { parts, len, row, out } = self;
        let dim = out.len();
        let rows = || parts.chunks_exact(len).map(|part| &part[row * (dim + 2)..(row + 1) * (dim + 2)]);
        let max = rows().map(|part| part[dim]).fold(f32::NEG_INFINITY, f32::max);
        out.fill(0.0);
        let mut sum = 0.0;
        for part in rows() {
            // A part that saw no key has nothing to add, and its largest score is no number to subtract from.
            if part[dim] == f32::NEG_INFINITY {
                continue;
            }
            let factor = exp_scalar(s, part[dim] - max);
            sum += part[dim + 1] * factor;
            for (out, value) in out.iter_mut().zip(part) {
                *out += value * factor;
            }
        }
        if sum > 0.0 || sum.is_nan() {
            out.iter_mut().for_each(|out| *out /= sum);
        }
    }
}

/// The state and the values, weighted but not yet divided by the sum, of every row.
fn accumulate<'m>(
    isa: Isa,
    args: &AttentionArgs,
    sequence: &Sequence<'_>,
    kv_head: usize,
    keys: Range<usize>,
    memory: &'m mut [f32],
) -> ([RowState; DECODE_ROWS], &'m [f32]) {
    let (queries, memory) = memory.split_at_mut(DECODE_ROWS * args.head_dim);
    let (scores, sums) = memory.split_at_mut(DECODE_ROWS * KEYS);
    let group = args.group();
    let rows = sequence.tokens * group;
    assert!(rows <= DECODE_ROWS);
    for (row, scaled) in queries.chunks_exact_mut(args.head_dim.max(1)).enumerate().take(rows) {
        let query = sequence.query(args, row / group, kv_head * group + row % group);
        for (scaled, value) in scaled.iter_mut().zip(query) {
            *scaled = value * args.scale;
        }
    }
    sums[..rows * args.value_dim].fill(0.0);
    let mut states = [RowState::EMPTY; DECODE_ROWS];
    for span in sequence.spans(keys) {
        let key_start = kv_head * sequence.keys.head_stride + span.key_row * sequence.keys.row_stride;
        let value_start = kv_head * sequence.values.head_stride + span.value_row * sequence.values.row_stride;
        macro_rules! run {
            ($key_cache:expr, $value_cache:expr) => {
                isa.dispatch(Accumulate {
                    args,
                    sequence,
                    key_cache: elements_from($key_cache, key_start),
                    value_cache: elements_from($value_cache, value_start),
                    keys: span.keys,
                    states,
                    queries: &*queries,
                    scores: &mut *scores,
                    sums: &mut *sums,
                })
            };
        }
        states = match (sequence.keys.elements, sequence.values.elements) {
            (Elements::F32(key_cache), Elements::F32(values)) => run!(key_cache, values),
            (Elements::F16(key_cache), Elements::F16(values)) => run!(key_cache, values),
            (Elements::Bf16(key_cache), Elements::Bf16(values)) => run!(key_cache, values),
            // The types are the same, as was checked when the sequence came in.
            _ => states,
        };
    }
    (states, sums)
}

/// The elements of a cache from the start of a head or row on: none if there are no positions, and so no elements.
pub(super) fn elements_from<E>(cache: &[E], start: usize) -> &[E] {
    cache.get(start..).unwrap_or_default()
}

struct Accumulate<'a, E> {
    args: &'a AttentionArgs,
    sequence: &'a Sequence<'a>,
    /// From the first of the keys on.
    key_cache: &'a [E],
    /// From the first one's value on.
    value_cache: &'a [E],
    /// Positions whose rows follow each other.
    keys: Range<usize>,
    /// Of the keys before these.
    states: [RowState; DECODE_ROWS],
    /// Scaled, `[rows, head_dim]`.
    queries: &'a [f32],
    /// `[rows, KEYS]`.
    scores: &'a mut [f32],
    /// `[rows, value_dim]`.
    sums: &'a mut [f32],
}

impl<E: Element> Kernel for Accumulate<'_, E> {
    type Output = [RowState; DECODE_ROWS];

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let Self { args, sequence, .. } = self;
        let rows = sequence.tokens * args.group();
        let mut states = self.states;
        let mut factors = [1.0; DECODE_ROWS];
        for first in (0..self.keys.len()).step_by(KEYS) {
            let n = KEYS.min(self.keys.len() - first);
            for row in (0..rows).step_by(4) {
                match rows - row {
                    1 => self.score::<S, 1>(s, row, first, n),
                    2 => self.score::<S, 2>(s, row, first, n),
                    3 => self.score::<S, 3>(s, row, first, n),
                    _ => self.score::<S, 4>(s, row, first, n),
                }
            }
            for row in 0..rows {
                let (position, scores) =
                    (self.keys.start + first, &mut self.scores[row * KEYS..row * KEYS + n]);
                sequence.scores_of(args, row / args.group()).finish_scores(s, position, scores);
                factors[row] = states[row].take(s, scores);
            }
            for row in (0..rows).step_by(4) {
                match rows - row {
                    1 => self.weigh::<S, 1>(s, row, first, n, &factors),
                    2 => self.weigh::<S, 2>(s, row, first, n, &factors),
                    3 => self.weigh::<S, 3>(s, row, first, n, &factors),
                    _ => self.weigh::<S, 4>(s, row, first, n, &factors),
                }
            }
        }
        states
    }
}

impl<E: Element> Accumulate<'_, E> {
    /// Inner products of `M` queries with `n` of the keys from number `first` on.
    #[inline(always)]
    fn score<S: Simd, const M: usize>(&mut self, s: S, row: usize, first: usize, n: usize) {
        let (dim, stride) = (self.args.head_dim, self.sequence.keys.row_stride);
        let queries = &self.queries[row * dim..(row + M) * dim];
        let keys = &self.key_cache[first * stride..(first + n - 1) * stride + dim];
        let scores = &mut self.scores[row * KEYS..(row + M) * KEYS];
        let mut j = 0;
        while j < n {
            // SAFETY: the slices hold M queries, and n keys, of `dim` elements each.
            unsafe {
                let key = keys.as_ptr().add(j * stride);
                if n - j >= 4 {
                    let products = dots::<S, E, 4, M>(s, key, stride, queries.as_ptr(), dim, dim);
                    for (m, products) in products.iter().enumerate() {
                        scores[m * KEYS + j..m * KEYS + j + 4].copy_from_slice(products);
                    }
                    j += 4;
                } else {
                    let products = dots::<S, E, 1, M>(s, key, stride, queries.as_ptr(), dim, dim);
                    for (m, [product]) in products.into_iter().enumerate() {
                        scores[m * KEYS + j] = product;
                    }
                    j += 1;
                }
            }
        }
    }

    /// Adds the values of `n` of the keys from number `first` on, weighted by their scores, to the sums of `R` rows, which
    /// are multiplied by their factors before.
    #[inline(always)]
    fn weigh<S: Simd, const R: usize>(
        &mut self,
        s: S,
        row: usize,
        first: usize,
        n: usize,
        factors: &[f32; DECODE_ROWS],
    ) {
        let (dim, stride) = (self.args.value_dim, self.sequence.values.row_stride);
        let values = &self.value_cache[first * stride..(first + n - 1) * stride + dim];
        let scores = &self.scores[row * KEYS..(row + R) * KEYS];
        let sums = &mut self.sums[row * dim..(row + R) * dim];
        for column in (0..dim).step_by(2 * S::LANES) {
            let width = (dim - column).min(2 * S::LANES);
            // SAFETY: the slices hold the scores and sums of R rows, and n values of `dim` elements.
            unsafe {
                let from = values.as_ptr().add(column);
                let added = tile::<S, E, R>(s, scores.as_ptr(), KEYS, 1, from, stride, n, width);
                for (r, added) in added.into_iter().enumerate() {
                    let to = sums.as_mut_ptr().add(r * dim + column);
                    add_scaled(s, to, width, factors[row + r], added);
                }
            }
        }
    }
}

/// `to = to * factor + added` for `n` elements, at most two vectors.
///
/// # Safety
/// The elements are writable.
#[inline(always)]
pub(super) unsafe fn add_scaled<S: Simd>(s: S, to: *mut f32, n: usize, factor: f32, added: [S::F32; 2]) {
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
