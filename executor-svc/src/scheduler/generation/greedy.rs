//! Steps that find a generation's tokens where the logits are.

use std::sync::Arc;
use std::time::Instant;

use roundhouse_backend::{Cache, NOT_FINITE};
use roundhouse_sampling::{Sampled, SamplingError};

use super::{Generation, Progress};
use crate::scheduler::request::{Delta, GenerateError, Request};

impl Generation {
    /// How many steps it can take part in, at most `limit`, that find its tokens where the logits are: there is
    /// memory for each, and its client has room for each message. 0 where its next token needs more than the largest logit.
    pub(in super::super) fn greedy_steps(&mut self, limit: usize) -> usize {
        if self.makes_no_tokens() || self.is_scored() {
            return 0;
        }
        let pending = self.pending();
        let Request { sampler, limits, guide, logprobs, speculative, deltas, .. } = &self.request;
        let is_plain = sampler.takes_the_largest() && guide.is_none() && logprobs.is_none();
        if !is_plain || speculative.is_some() || self.output_tokens < limits.min_tokens || pending != 1 {
            return 0;
        }
        // The client's last place is for the end.
        let room = deltas.capacity().saturating_sub(1);
        let left = limits.max_tokens.saturating_sub(self.output_tokens);
        let Some(state) = self.request.lease.state() else { return 0 };
        let places = state.cache.capacity().saturating_sub(state.tokens.len());
        let memory = state.cache.reserved_tokens().saturating_sub(state.cache.len());
        limit.min(room).min(left).min(places).min(memory).max(1)
    }

    /// Its cache and its pending token, for steps that find its tokens: [`Generation::end_run`] takes the cache back.
    pub(in super::super) fn begin_run(&mut self) -> Option<(Box<dyn Cache>, u32)> {
        let state = self.request.lease.state()?;
        let token = *state.tokens.last()?;
        Some((state.cache.lend()?, token))
    }

    /// Takes its cache back, and what it holds beyond the history out of it.
    pub(in super::super) fn end_run(&mut self, cache: Box<dyn Cache>) {
        if let Some(state) = self.request.lease.state() {
            state.cache.give_back(cache);
            // The last token is chosen and not computed.
            state.cache.truncate(state.tokens.len().saturating_sub(1));
        }
    }

    /// Takes a token that was found where the logits are, and tells the client of it.
    pub(in super::super) fn take(&mut self, token: u32, now: Instant) -> Progress {
        let mut delta = Delta::default();
        let outcome = match token {
            NOT_FINITE => Err(GenerateError::Sampling(Arc::new(SamplingError::LogitsNotFinite))),
            token => self.accept(&mut delta, Sampled { token, logprob: None, top_logprobs: Vec::new() }, now),
        };
        self.tell(delta, outcome)
    }
}
