//! How the work of a batch is cut into units for the workers.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::isa::VectorShape;
use crate::shared::{Queue, SharedMut};
use crate::{Isa, KvView, Scratch, ThreadPool};

use super::decode::{self, DECODE_ROWS};
use super::online::Query;
use super::{AttentionArgs, AttentionSequence, StridedRows, prefill};

/// Fewest keys of a part of a sequence.
const PART_KEYS: usize = 64;

/// Row tiles of a unit with many queries: so many share the conversion of a block of keys.
const UNIT_TILES: usize = 8;

/// Fewer multiplications than this are faster done than shared out.
const WORTH_SHARING: usize = 64 * 1024;

/// A sequence as units see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sequence<'a> {
    pub(super) queries: StridedRows<'a>,
    pub(super) tokens: usize,
    pub(super) keys: KvView<'a>,
    pub(super) values: KvView<'a>,
    pub(super) mask: Option<&'a [f32]>,
    out: SharedMut<'a, f32>,
    out_token_stride: usize,
    out_head_stride: usize,
}

impl<'a> Sequence<'a> {
    fn new(args: &AttentionArgs, sequence: &'a mut AttentionSequence<'_>) -> Self {
        let AttentionSequence { queries, tokens, keys, values, mask, out } = sequence;
        let (tokens, heads) = (*tokens, args.query_heads);
        assert_eq!(keys.len, values.len, "there is a value for every key");
        let same_type = std::mem::discriminant(&keys.elements) == std::mem::discriminant(&values.elements);
        assert!(same_type, "keys and values have one type");
        let end = |rows: usize, stride: usize, heads: usize, head_stride: usize, dim: usize| {
            if rows == 0 || heads == 0 { 0 } else { (rows - 1) * stride + (heads - 1) * head_stride + dim }
        };
        let query_end = end(tokens, queries.token_stride, heads, queries.head_stride, args.head_dim);
        assert!(queries.data.len() >= query_end, "the queries are as many as the shape says");
        let first_seen = args.visible_to_any(0..tokens, tokens, keys.len).start;
        for (view, dim) in [(&*keys, args.head_dim), (&*values, args.value_dim)] {
            let used = view.len.min(view.rows);
            let view_end = end(used, view.row_stride, args.kv_heads, view.head_stride, dim);
            assert!(view.elements.len() >= view_end, "keys and values are as many as the shape says");
            assert!(tokens == 0 || view.len - used <= first_seen, "a ring holds every position that is seen");
        }
        assert!(mask.is_none_or(|mask| mask.len() == tokens * keys.len), "the mask is [tokens, len]");
        let out_end = end(tokens, out.token_stride, heads, out.head_stride, args.value_dim);
        assert!(out.data.len() >= out_end, "the result has room for every query");
        assert!(out.head_stride >= args.value_dim, "rows of the result do not overlap");
        assert!(
            tokens <= 1
                || out.token_stride >= (heads.max(1) - 1) * out.head_stride + args.value_dim
                || out.head_stride >= (tokens - 1) * out.token_stride + args.value_dim
                    && out.token_stride >= args.value_dim,
            "rows of the result do not overlap"
        );
        Self {
            queries: *queries,
            tokens,
            keys: *keys,
            values: *values,
            mask: *mask,
            out: SharedMut::new(out.data),
            out_token_stride: out.token_stride,
            out_head_stride: out.head_stride,
        }
    }

    /// A query.
    pub(super) fn query(&self, args: &AttentionArgs, t: usize, head: usize) -> &'a [f32] {
        let start = t * self.queries.token_stride + head * self.queries.head_stride;
        &self.queries.data[start..start + args.head_dim]
    }

    /// What scores of a query depend on.
    #[inline(always)]
    pub(super) fn scores_of(&self, args: &'a AttentionArgs, t: usize) -> Query<'a> {
        Query { args, t, tokens: self.tokens, len: self.keys.len, mask: self.mask }
    }

    /// Cuts `keys` where the keys or the values come to the end of their rows.
    pub(super) fn spans(&self, keys: Range<usize>) -> impl Iterator<Item = Span> {
        let (key_rows, value_rows) = (self.keys.rows, self.values.rows);
        let mut first = keys.start;
        std::iter::from_fn(move || {
            if first >= keys.end {
                return None;
            }
            // There are rows, or no position could be seen.
            let (key_row, value_row) = (first % key_rows, first % value_rows);
            let n = (keys.end - first).min(key_rows - key_row).min(value_rows - value_row);
            first += n;
            Some(Span { keys: first - n..first, key_row, value_row })
        })
    }

    /// The place of a result.
    ///
    /// # Safety
    /// While it is in use, no other of this token and head is.
    pub(super) unsafe fn out(&self, args: &AttentionArgs, t: usize, head: usize) -> &'a mut [f32] {
        let start = t * self.out_token_stride + head * self.out_head_stride;
        // SAFETY: rows of different tokens and heads do not overlap, as `new` checked.
        unsafe { self.out.slice(start..start + args.value_dim) }
    }
}

/// Some of a sequence's keys, whose rows follow each other in memory, as do those of their values.
pub(super) struct Span {
    /// Their positions.
    pub(super) keys: Range<usize>,
    /// The row of the first key.
    pub(super) key_row: usize,
    /// The row of the first value.
    pub(super) value_row: usize,
}

/// What one worker does without the others.
#[derive(Debug)]
struct Unit {
    sequence: usize,
    kv_head: usize,
    work: Work,
    /// Multiplications, roughly.
    cost: usize,
}

#[derive(Debug)]
enum Work {
    /// Some queries with all keys they see.
    Queries(Range<usize>),
    /// All queries with some keys: part `index` of those of `split`.
    Keys { keys: Range<usize>, split: usize, index: usize },
}

/// A sequence's head that is cut along its keys.
#[derive(Debug)]
struct Split {
    /// How many parts are not yet done. Who does the last one merges them.
    left: AtomicUsize,
    parts: usize,
    /// Where the partial results are, if there are several.
    start: usize,
}

/// Units of a batch.
struct Plan {
    units: Vec<Unit>,
    splits: Vec<Split>,
    /// Length of the partial results.
    partial_len: usize,
    /// The most queries of a unit that is cut along the queries.
    max_tokens: usize,
    cost: usize,
}

impl Plan {
    fn new(args: &AttentionArgs, sequences: &[Sequence<'_>], threads: usize, tile_rows: usize) -> Self {
        let group = args.group();
        let mut plan = Self { units: Vec::new(), splits: Vec::new(), partial_len: 0, max_tokens: 0, cost: 0 };
        let heads = sequences.iter().filter(|s| s.tokens > 0).count() * args.kv_heads;
        let all_keys: usize = sequences
            .iter()
            .map(|s| args.visible_to_any(0..s.tokens, s.tokens, s.keys.len).len() * args.kv_heads)
            .sum();
        for (index, sequence) in sequences.iter().enumerate() {
            let (tokens, len) = (sequence.tokens, sequence.keys.len);
            let cost =
                |queries: usize, keys: usize| queries * group * keys * (args.head_dim + args.value_dim);
            if tokens == 0 {
                continue;
            }
            for kv_head in 0..args.kv_heads {
                if tokens * group <= DECODE_ROWS {
                    let keys = args.visible_to_any(0..tokens, tokens, len);
                    let part = PART_KEYS.max(all_keys / (4 * threads));
                    let parts = if threads == 1 { 1 } else { keys.len().div_ceil(part).max(1) };
                    let split = plan.splits.len();
                    plan.splits.push(Split { left: AtomicUsize::new(parts), parts, start: plan.partial_len });
                    if parts > 1 {
                        plan.partial_len += parts * decode::partial_len(args, tokens);
                    }
                    for part in 0..parts {
                        let cut = |part: usize| keys.start + keys.len() * part / parts;
                        let keys = cut(part)..cut(part + 1);
                        let cost = cost(tokens, keys.len());
                        let work = Work::Keys { keys, split, index: part };
                        plan.units.push(Unit { sequence: index, kv_head, work, cost });
                    }
                } else {
                    // As many as share a block of keys well, fewer where that leaves workers without a unit.
                    let well = (UNIT_TILES * tile_rows / group).max(1);
                    let fair = (tokens * heads).div_ceil(4 * threads).max((2 * tile_rows).div_ceil(group));
                    let step = if threads == 1 { well } else { well.min(fair) };
                    plan.max_tokens = plan.max_tokens.max(step.min(tokens));
                    for start in (0..tokens).step_by(step) {
                        let queries = start..(start + step).min(tokens);
                        let keys = args.visible_to_any(queries.clone(), tokens, len);
                        let cost = cost(queries.len(), keys.len());
                        plan.units.push(Unit {
                            sequence: index,
                            kv_head,
                            work: Work::Queries(queries),
                            cost,
                        });
                    }
                }
            }
        }
        // The large ones first, so that the workers finish together.
        plan.units.sort_by_key(|unit| std::cmp::Reverse(unit.cost));
        plan.cost = plan.units.iter().map(|unit| unit.cost).sum();
        plan
    }
}

pub(super) fn run(
    pool: &ThreadPool,
    scratch: &mut Scratch,
    args: &AttentionArgs,
    sequences: &mut [AttentionSequence<'_>],
) {
    assert!(
        args.kv_heads == 0 || args.query_heads.is_multiple_of(args.kv_heads),
        "query heads come in whole groups"
    );
    let isa = pool.isa();
    let (lanes, tile_rows) = isa.dispatch(VectorShape);
    let sequences: Vec<Sequence<'_>> =
        sequences.iter_mut().map(|sequence| Sequence::new(args, sequence)).collect();
    if args.group() == 0 {
        return;
    }
    let plan = Plan::new(args, &sequences, pool.threads(), tile_rows);
    let each = decode::scratch_len(args).max(prefill::scratch_len(args, plan.max_tokens, lanes, tile_rows));
    let (partials, workers) = scratch.split(plan.partial_len, pool.threads(), each);
    let partials = SharedMut::new(partials);
    let queue = Queue::single(plan.units.len());
    let body = |worker: usize| {
        // SAFETY: each worker asks once for its own part.
        let memory = unsafe { workers.of(worker) };
        while let Some(units) = queue.take() {
            for unit in &plan.units[units] {
                let sequence = &sequences[unit.sequence];
                // SAFETY: units have results, or partial results, of their own.
                unsafe { run_unit(isa, args, sequence, unit, &plan, partials, memory) }
            }
        }
    };
    if plan.cost < WORTH_SHARING { body(0) } else { pool.run(&body) }
}

/// # Safety
/// Nothing else runs this unit.
unsafe fn run_unit(
    isa: Isa,
    args: &AttentionArgs,
    sequence: &Sequence<'_>,
    unit: &Unit,
    plan: &Plan,
    partials: SharedMut<'_, f32>,
    memory: &mut [f32],
) {
    let kv_head = unit.kv_head;
    match &unit.work {
        Work::Queries(queries) => {
            // SAFETY: no other unit has these queries of this head.
            unsafe { prefill::run(isa, args, sequence, kv_head, queries.clone(), memory) }
        }
        Work::Keys { keys, split, index } => {
            let split = &plan.splits[*split];
            if split.parts == 1 {
                // SAFETY: no other unit has these queries of this head.
                unsafe { decode::run_whole(isa, args, sequence, kv_head, keys.clone(), memory) }
                return;
            }
            let len = decode::partial_len(args, sequence.tokens);
            let start = split.start + index * len;
            // SAFETY: the place belongs to this part until it is counted below.
            let partial = unsafe { partials.slice(start..start + len) };
            decode::run_part(isa, args, sequence, kv_head, keys.clone(), memory, partial);
            if split.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                // SAFETY: all parts are counted, so they are written, and only this unit saw the last one counted.
                unsafe {
                    let parts = partials.slice(split.start..split.start + split.parts * len);
                    decode::merge(isa, args, sequence, kv_head, parts);
                }
            }
        }
    }
}
