//! How much runs at once.

use roundhouse_engine::{CacheKind, EngineOptions};
use roundhouse_graph::{Graph, Op};

/// New tokens of one step at most, unless there are more sequences: longer inputs run in pieces, so that the workspace
/// does not grow with the prompt. Enough rows that reading the weights costs little beside computing with them.
pub(crate) const PREFILL_CHUNK_TOKENS: usize = 512;

/// Rows of logits of one step at most, unless there are more sequences: a row is as long as the vocabulary.
pub(crate) const LOGITS_CHUNK_ROWS: usize = 64;

/// The largest step of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepLimits {
    /// New tokens, of all sequences together where the batch is packed.
    pub(crate) tokens: usize,
    /// New tokens of one sequence: what a ring has room for beside its window.
    pub(crate) chunk: usize,
    /// Rows of logits. Without a cache, asking for all logits goes beyond: the sequence cannot be cut.
    pub(crate) rows: usize,
    /// Tokens of one sequence, past and new.
    pub(crate) sequence: usize,
}

impl StepLimits {
    /// The limits of a lowered graph.
    pub(crate) fn new(graph: &Graph, options: &EngineOptions) -> Self {
        let index = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let sequence = index(options.max_seq_len).max(1);
        let batch =
            if options.cache == CacheKind::InPlace { index(options.max_batch_size).max(1) } else { 1 };
        let selects_rows = graph.nodes().any(|(_, node)| matches!(node.op, Op::LastToken));
        let chunk = match options.cache {
            CacheKind::None => sequence,
            // Every token gets logits.
            _ if !selects_rows => LOGITS_CHUNK_ROWS,
            _ => PREFILL_CHUNK_TOKENS,
        };
        let tokens = chunk.min(batch.saturating_mul(sequence)).max(batch);
        Self { tokens, chunk: tokens, rows: LOGITS_CHUNK_ROWS.max(batch).min(tokens), sequence }
    }
}
