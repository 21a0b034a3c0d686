//! Which sequences of a step run together.
//!
//! TensorRT runs rows of equally many new tokens, whose caches are neighbouring rows of one buffer. A step's sequences
//! are cut into pieces no longer than the engine takes, pieces of equal length are put together, and each run of
//! neighbours becomes one group. Idle rows between them may be filled in, where that is cheap and harmless: what is
//! written into an idle row lies behind its own tokens, and its next ones overwrite it.

use std::collections::BTreeMap;
use std::ops::Range;

use roundhouse_backend::LogitsRequest;

use crate::slots::Slot;

/// Tokens that may be computed in idle rows to spare another run: so few that a run's time is that of reading the
/// weights once, which the other run would do again.
const IDLE_TOKENS: usize = 64;

/// What an engine takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Rows.
    pub(crate) rows: usize,
    /// New tokens of a row.
    pub(crate) seq: usize,
    /// Tokens that a row of the cache holds.
    pub(crate) length: usize,
    /// Whether every new token has logits; else only the last one of each row.
    pub(crate) all_logits: bool,
    /// Rows of logits, at least as many as `rows`.
    pub(crate) logits: usize,
}

/// A sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) slot: Slot,
    /// Tokens in its cache.
    pub(crate) past: usize,
    /// New tokens.
    pub(crate) tokens: usize,
    pub(crate) request: LogitsRequest,
}

/// One run: neighbouring rows of one slab, of `seq` new tokens each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) slab: usize,
    pub(crate) first_row: usize,
    pub(crate) seq: usize,
    pub(crate) rows: Vec<Row>,
}

/// A row of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Row {
    /// New tokens of a sequence.
    Active {
        /// Which sequence of the step.
        sequence: usize,
        /// Its first token among the sequence's new ones.
        first: usize,
        /// Tokens before it.
        past: usize,
        /// Which of its tokens' logits are wanted.
        wanted: Range<usize>,
    },
    /// Filled in; nothing of it is used.
    Idle {
        /// Tokens in it.
        past: usize,
    },
}

/// Groups a step's sequences, whose slots differ. `idle` gives the tokens in a slot that none of them has. The groups
/// run in order.
pub(crate) fn group(pending: &[Pending], idle: impl Fn(Slot) -> usize, limits: &Limits) -> Vec<Group> {
    let owners: BTreeMap<Slot, usize> =
        pending.iter().enumerate().map(|(index, pending)| (pending.slot, index)).collect();
    let mut done = vec![0; pending.len()];
    let mut groups = Vec::new();
    loop {
        // Pieces of this round, by length and slab, in the order of their rows.
        let mut pieces: BTreeMap<(usize, usize), BTreeMap<usize, usize>> = BTreeMap::new();
        for (index, one) in pending.iter().enumerate() {
            let seq = (one.tokens - done[index]).min(longest_piece(one.request, limits));
            if seq > 0 {
                pieces.entry((seq, one.slot.slab)).or_default().insert(one.slot.row, index);
            }
        }
        if pieces.is_empty() {
            return groups;
        }
        for ((seq, slab), rows) in pieces {
            let mut rows = rows.into_iter().peekable();
            while let Some((first_row, index)) = rows.next() {
                let mut group = Group { slab, first_row, seq, rows: Vec::new() };
                group.rows.push(active(index, &pending[index], &mut done[index], seq, limits));
                let mut idle_rows = 0;
                while let Some(&(row, index)) = rows.peek() {
                    let next = first_row + group.rows.len();
                    let lengths: Vec<usize> = (next..row)
                        .map(|row| {
                            let slot = Slot { slab, row };
                            let owner = owners.get(&slot);
                            owner.map_or_else(|| idle(slot), |&owner| pending[owner].past + done[owner])
                        })
                        .collect();
                    let total = group.rows.len() + lengths.len() + 1;
                    let fits = total <= limits.rows
                        && (!limits.all_logits || total * seq <= limits.logits)
                        && (idle_rows + lengths.len()) * seq <= IDLE_TOKENS
                        && lengths.iter().all(|length| length + seq <= limits.length);
                    if !fits {
                        break;
                    }
                    idle_rows += lengths.len();
                    group.rows.extend(lengths.into_iter().map(|past| Row::Idle { past }));
                    group.rows.push(active(index, &pending[index], &mut done[index], seq, limits));
                    rows.next();
                }
                groups.push(group);
            }
        }
    }
}

/// New tokens of a sequence that run at once.
fn longest_piece(request: LogitsRequest, limits: &Limits) -> usize {
    match (limits.all_logits, request) {
        (true, _) => limits.seq.min(limits.logits),
        // The last token's logits are the only ones, so each token has to be the last one of a run.
        (false, LogitsRequest::All) => 1,
        (false, _) => limits.seq,
    }
    .max(1)
}

/// The next `seq` tokens of a sequence.
fn active(sequence: usize, pending: &Pending, done: &mut usize, seq: usize, limits: &Limits) -> Row {
    let first = *done;
    *done += seq;
    let wanted = match pending.request {
        LogitsRequest::All if limits.all_logits => 0..seq,
        LogitsRequest::All => seq - 1..seq,
        LogitsRequest::Last if *done == pending.tokens => seq - 1..seq,
        LogitsRequest::Last | LogitsRequest::None => 0..0,
    };
    Row::Active { sequence, first, past: pending.past + first, wanted }
}

#[cfg(test)]
mod tests;
