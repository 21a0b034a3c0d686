//! Guesses of a generation's next tokens, and what came of them.

use std::time::Instant;

use super::{Generation, Progress};
use crate::scheduler::request::Delta;

impl Generation {
    /// Guesses what follows the pending token, where it is the only one.
    pub(super) fn draft(&mut self, tokens: usize, limit: usize) {
        self.drafted.clear();
        let Some(speculative) = self.request.speculative else { return };
        let Some(state) = self.request.lease.state() else { return };
        let [.., last] = state.tokens[..] else { return };
        if tokens != 1 || state.cache.len() + 1 != state.tokens.len() {
            return;
        }
        // Each guess that is right is followed by one token more, and both need places.
        let allowed = self.request.limits.max_tokens.saturating_sub(self.output_tokens + 1);
        let room = state.cache.capacity().saturating_sub(state.tokens.len() + 1);
        self.drafted.push(last);
        speculative.draft(&state.tokens, limit.min(allowed).min(room), &mut self.drafted);
        // The memory of guesses is not planned: without any that is free there are none.
        let has_memory = state.cache.reserve(state.cache.len() + self.drafted.len()).is_ok();
        if self.drafted.len() == 1 || !has_memory {
            self.drafted.clear();
        }
    }

    /// Takes the logits that follow each token of a step with guesses: chooses a token from each as long as the one before
    /// was guessed right, and takes the others out of the cache.
    pub(super) fn verify(&mut self, logits: &mut [f32], now: Instant) -> Progress {
        let step = std::mem::take(&mut self.drafted);
        let (mut delta, mut outcome) = (Delta::default(), Ok(None));
        self.draft_tokens += step.len() - 1;
        for (place, row) in logits.chunks_exact_mut(logits.len() / step.len()).enumerate() {
            outcome = self.choose(&mut delta, row, now);
            if !matches!(outcome, Ok(None)) || step.get(place + 1) != delta.tokens.last() {
                break;
            }
            self.accepted_draft_tokens += 1;
        }
        if let Some(state) = self.request.lease.state() {
            // The last token is chosen and not computed.
            state.cache.truncate(state.tokens.len() - 1);
        }
        self.drafted = step;
        self.drafted.clear();
        self.tell(delta, outcome)
    }
}
