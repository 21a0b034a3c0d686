//! How much runs at once.

use roundhouse_engine::{CacheKind, EngineOptions};
use roundhouse_graph::{Graph, Op};
use serde::{Deserialize, Serialize};

/// New tokens of one step at most, unless there are more sequences: longer prompts run in pieces, so that the workspace
/// does not grow with the prompt. Enough rows to keep the tensor cores busy.
const PREFILL_CHUNK_TOKENS: usize = 1024;

/// Rows of logits of one step at most, unless there are more sequences: a row is as long as the vocabulary.
const LOGITS_CHUNK_ROWS: usize = 64;

/// The largest step of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLimits {
    /// New tokens, of all sequences together.
    pub tokens: usize,
    /// New tokens of one sequence: what a ring has room for beside its window.
    pub chunk: usize,
    /// Rows of logits.
    pub rows: usize,
    /// Sequences.
    pub sequences: usize,
    /// Tokens of one sequence, past and new.
    pub sequence: usize,
}

impl StepLimits {
    /// The limits of a lowered graph.
    #[must_use]
    pub fn new(graph: &Graph, options: &EngineOptions) -> Self {
        let index = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let sequence = index(options.max_seq_len).max(1);
        // Without a cache sequences share one scratch cache, and run one after the other.
        let sequences =
            if options.cache == CacheKind::None { 1 } else { index(options.max_batch_size).max(1) };
        let selects_rows = graph.nodes().any(|(_, node)| matches!(node.op, Op::LastToken));
        // Where every token gets logits.
        let chunk = if selects_rows { PREFILL_CHUNK_TOKENS } else { LOGITS_CHUNK_ROWS };
        let tokens = chunk.min(sequences.saturating_mul(sequence)).max(sequences);
        let rows = LOGITS_CHUNK_ROWS.max(sequences).min(tokens);
        Self { tokens, chunk: tokens, rows, sequences, sequence }
    }
}
