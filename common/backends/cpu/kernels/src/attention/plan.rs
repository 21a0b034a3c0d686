//! How the work of a batch is cut into units for the workers.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::isa::VectorShape;
use crate::shared::{Queue, SharedMut};
use crate::{Isa, KvView, Scratch, ThreadPool};

use super::online::Query;
use super::part::{self, PART_KEYS, Sums};
use super::{AttentionArgs, AttentionSequence, StridedRows};

/// Most rows, tokens times query heads of a group, of a sequence that is cut along its keys.
const FEW_ROWS: usize = 16;

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
    /// All queries with a part of the keys: number `index` of those of `split`.
    Keys { keys: Range<usize>, split: usize, index: usize },
}

/// A sequence's head that is cut along its keys.
#[derive(Debug)]
struct Split {
    /// How many parts are not yet done. Who does the last one adds them up.
    left: AtomicUsize,
    parts: usize,
    /// Where the sums of the parts are.
    start: usize,
}

/// Units of a batch.
struct Plan {
    units: Vec<Unit>,
    splits: Vec<Split>,
    /// Length of the sums of parts.
    partial_len: usize,
    /// The most queries of a unit.
    max_tokens: usize,
    cost: usize,
}

impl Plan {
    fn new(args: &AttentionArgs, sequences: &[Sequence<'_>], threads: usize, tile_rows: usize) -> Self {
        let group = args.group();
        let mut plan = Self { units: Vec::new(), splits: Vec::new(), partial_len: 0, max_tokens: 0, cost: 0 };
        let heads = sequences.iter().filter(|s| s.tokens > 0).count() * args.kv_heads;
        for (index, sequence) in sequences.iter().enumerate() {
            let (tokens, len) = (sequence.tokens, sequence.keys.len);
            if tokens == 0 {
                continue;
            }
            let keys = args.visible_to_any(0..tokens, tokens, len);
            let few = tokens * group <= FEW_ROWS;
            // Heads enough keep all workers busy; else the parts do.
            let by_keys = few && heads < 4 * threads && threads > 1 && parts(keys.clone()).count() > 1;
            // As many queries as share a block of keys well, fewer where that leaves workers without a unit.
            let well = (UNIT_TILES * tile_rows / group).max(1);
            let fair = (tokens * heads).div_ceil(4 * threads).max((2 * tile_rows).div_ceil(group));
            let step = if threads == 1 { well } else { well.min(fair) }.min(tokens);
            let cost =
                |queries: usize, keys: usize| queries * group * keys * (args.head_dim + args.value_dim);
            for kv_head in 0..args.kv_heads {
                let unit = |work, cost| Unit { sequence: index, kv_head, work, cost };
                if by_keys {
                    plan.max_tokens = plan.max_tokens.max(tokens);
                    let (split, parts) = (plan.splits.len(), parts(keys.clone()));
                    let count = parts.clone().count();
                    plan.splits.push(Split {
                        left: AtomicUsize::new(count),
                        parts: count,
                        start: plan.partial_len,
                    });
                    plan.partial_len += count * Sums::len(args, tokens, tile_rows);
                    plan.units.extend(parts.enumerate().map(|(index, keys)| {
                        let cost = cost(tokens, keys.len());
                        unit(Work::Keys { keys, split, index }, cost)
                    }));
                } else {
                    plan.max_tokens = plan.max_tokens.max(step);
                    for start in (0..tokens).step_by(step) {
                        let queries = start..(start + step).min(tokens);
                        let keys = args.visible_to_any(queries.clone(), tokens, len);
                        let cost = cost(queries.len(), keys.len());
                        plan.units.push(unit(Work::Queries(queries), cost));
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

/// The parts that some keys lie in, in order, each as far as it has some of them.
fn parts(keys: Range<usize>) -> impl Iterator<Item = Range<usize>> + Clone {
    let starts = (keys.start / PART_KEYS * PART_KEYS..keys.end).step_by(PART_KEYS);
    starts.map(move |start| start.max(keys.start)..(start + PART_KEYS).min(keys.end))
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
    let sums_len = Sums::len(args, plan.max_tokens, tile_rows);
    let each = part::scratch_len(args, plan.max_tokens, lanes, tile_rows) + 2 * sums_len;
    let (partials, workers) = scratch.split(plan.partial_len, pool.threads(), each);
    let partials = SharedMut::new(partials);
    let queue = Queue::single(plan.units.len());
    let body = |worker: usize| {
        // SAFETY: each worker asks once for its own part.
        let memory = unsafe { workers.of(worker) };
        while let Some(units) = queue.take() {
            for unit in &plan.units[units] {
                let context = Context { isa, args, sequence: &sequences[unit.sequence], tile_rows };
                // SAFETY: units have results, or sums of parts, of their own.
                unsafe { context.run(unit, &plan, partials, memory) }
            }
        }
    };
    if plan.cost < WORTH_SHARING { body(0) } else { pool.run(&body) }
}

/// What units of a sequence are run with.
struct Context<'a> {
    isa: Isa,
    args: &'a AttentionArgs,
    sequence: &'a Sequence<'a>,
    tile_rows: usize,
}

impl Context<'_> {
    /// # Safety
    /// Nothing else runs this unit.
    unsafe fn run(&self, unit: &Unit, plan: &Plan, partials: SharedMut<'_, f32>, memory: &mut [f32]) {
        let Self { isa, args, sequence, tile_rows } = *self;
        let kv_head = unit.kv_head;
        match &unit.work {
            Work::Queries(queries) => {
                let len = Sums::len(args, queries.len(), tile_rows);
                let (of_all, memory) = memory.split_at_mut(len);
                let (of_part, memory) = memory.split_at_mut(len);
                let mut all = Sums::in_memory(args, of_all);
                let mut part = Sums::in_memory(args, of_part);
                let seen = args.visible_to_any(queries.clone(), sequence.tokens, sequence.keys.len);
                let mut parts = parts(seen.clone());
                // Without any key, the sums of nothing.
                let first = parts.next().unwrap_or(seen.start..seen.start);
                let accumulate = |keys, memory: &mut [f32], sums: &mut Sums<'_>| {
                    part::accumulate(isa, args, sequence, kv_head, queries.clone(), keys, memory, sums);
                };
                accumulate(first, memory, &mut all);
                for keys in parts {
                    accumulate(keys, memory, &mut part);
                    all.add(isa, args.value_dim, &part);
                }
                // SAFETY: no other unit has these queries of this head.
                unsafe { all.store(args, sequence, kv_head, queries.clone()) }
            }
            Work::Keys { keys, split, index } => {
                let split = &plan.splits[*split];
                let queries = 0..sequence.tokens;
                let len = Sums::len(args, sequence.tokens, tile_rows);
                let start = split.start + index * len;
                // SAFETY: the place belongs to this part until it is counted below.
                let mut sums = Sums::in_memory(args, unsafe { partials.slice(start..start + len) });
                let keys = keys.clone();
                part::accumulate(isa, args, sequence, kv_head, queries.clone(), keys, memory, &mut sums);
                if split.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    // SAFETY: all parts are counted, so they are written, and only this unit saw the last one counted.
                    let parts = unsafe { partials.slice(split.start..split.start + split.parts * len) };
                    let (first, others) = parts.split_at_mut(len);
                    let mut all = Sums::in_memory(args, first);
                    for part in others.chunks_exact_mut(len) {
                        all.add(isa, args.value_dim, &Sums::in_memory(args, part));
                    }
                    // SAFETY: no other unit has these queries of this head.
                    unsafe { all.store(args, sequence, kv_head, queries) }
                }
            }
        }
    }
}
