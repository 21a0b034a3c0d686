//! Scaled dot-product attention over the caches of a ragged batch, in one parallel region.
//!
//! Scores exist only for a block of keys at a time: the softmax is computed online (Milakov and Gimpelshein 2018), as
//! in flash attention (Dao et al. 2022). Parts of the keys are summed up by themselves and then added, always the same
//! ones. Where heads are few, a sequence with few queries is cut along those parts (flash decoding), else along its queries,
//! for each key-value head; all query heads of a group share what is read.

mod online;
mod part;
mod plan;
mod tile;

use std::ops::Range;

use crate::{KvElements, Scratch, ThreadPool};

/// What is the same for all sequences of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionArgs {
    /// Number of query heads, a multiple of `kv_heads`: query head `h` reads key head `h / (query_heads / kv_heads)`.
    pub query_heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Length of a query or key.
    pub head_dim: usize,
    /// Length of a value.
    pub value_dim: usize,
    /// Factor on the inner products of queries and keys.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
    /// Sliding window `W`: query `t` of `tokens` sees only keys with `t + (len - tokens) - j < W`.
    pub window: Option<usize>,
    /// Whether query `t` of `tokens` sees only keys `j <= t + (len - tokens)`: aligned bottom-right.
    pub causal: bool,
}

/// The keys or values of one sequence: dimension `d` of position `j` of head `h` is element
/// `h * head_stride + (j % rows) * row_stride + d`. With fewer rows than positions they are a ring, which holds the
/// last `rows` of them.
#[derive(Debug, Clone, Copy)]
pub struct KvView<'a> {
    /// The cache, from the sequence's first element on.
    pub elements: KvElements<'a>,
    /// Distance of heads, in elements.
    pub head_stride: usize,
    /// Distance of rows, in elements.
    pub row_stride: usize,
    /// How many rows there are: at least as many positions as any query sees up to `len`.
    pub rows: usize,
    /// How many positions there are, those of the queries included.
    pub len: usize,
}

/// Rows for every token and head: dimension `d` of head `h` of token `t` is element
/// `t * token_stride + h * head_stride + d`.
#[derive(Debug, Clone, Copy)]
pub struct StridedRows<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance of tokens, in elements.
    pub token_stride: usize,
    /// Distance of heads, in elements.
    pub head_stride: usize,
}

/// As [`StridedRows`], to write to.
#[derive(Debug)]
pub struct StridedRowsMut<'a> {
    /// The elements.
    pub data: &'a mut [f32],
    /// Distance of tokens, in elements.
    pub token_stride: usize,
    /// Distance of heads, in elements, at least `value_dim`.
    pub head_stride: usize,
}

/// One sequence of a batch.
#[derive(Debug)]
pub struct AttentionSequence<'a> {
    /// `[tokens, query_heads, head_dim]`.
    pub queries: StridedRows<'a>,
    /// How many queries there are.
    pub tokens: usize,
    /// Keys, `[kv_heads, rows, head_dim]`.
    pub keys: KvView<'a>,
    /// Values, `[kv_heads, rows, value_dim]`.
    pub values: KvView<'a>,
    /// `[tokens, len]`, added to the scores of every head; negative infinity hides a key.
    pub mask: Option<&'a [f32]>,
    /// `[tokens, query_heads, value_dim]`. Zeros for a query that sees no key.
    pub out: StridedRowsMut<'a>,
}

/// `out = softmax(cap(scale · q kᵀ) + mask) v` for every sequence. Accumulates in fp32.
///
/// The result of a query depends on nothing but itself and the keys and values that it sees: not on the other queries or
/// sequences, nor on the threads.
///
/// # Panics
/// If `query_heads` is not a multiple of `kv_heads`, the keys and values of a sequence differ in length or type, a slice is
/// shorter than its shape says, a query sees a position that a ring no longer holds, or rows of an output overlap.
pub fn attention(
    pool: &ThreadPool,
    scratch: &mut Scratch,
    args: &AttentionArgs,
    sequences: &mut [AttentionSequence<'_>],
) {
    plan::run(pool, scratch, args, sequences);
}

impl AttentionArgs {
    /// How many query heads share a key head.
    fn group(&self) -> usize {
        self.query_heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// The keys that query `t` of `tokens` sees, of `len`.
    fn visible(&self, t: usize, tokens: usize, len: usize) -> Range<usize> {
        // One past the query's own position, which is negative for queries before the first key.
        let end = (t + 1 + len).saturating_sub(tokens);
        let start = self.window.map_or(0, |window| end.saturating_sub(window));
        let end = if self.causal { end } else { len };
        start.min(end)..end
    }

    /// The keys that any of several queries sees.
    fn visible_to_any(&self, queries: Range<usize>, tokens: usize, len: usize) -> Range<usize> {
        let (first, last) = (queries.start, queries.end.max(1) - 1);
        self.visible(first, tokens, len).start..self.visible(last, tokens, len).end
    }
}
