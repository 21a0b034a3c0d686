//! What the metrics are told of one generation.

use std::time::Instant;

use crate::metrics::EngineMetrics;

/// The times of a generation. However it ends, the metrics are told when this is dropped.
pub(super) struct Measured {
    metrics: EngineMetrics,
    submitted: Instant,
    has_begun: bool,
    last_token: Option<Instant>,
    end: &'static str,
}

impl Measured {
    /// Of a generation that was submitted then.
    pub(super) fn new(metrics: EngineMetrics, submitted: Instant) -> Self {
        // Who goes away without a word ends it so.
        Self { metrics, submitted, has_begun: false, last_token: None, end: "abandoned" }
    }

    /// Notes that a step with it begins.
    pub(super) fn begin_step(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.metrics.queue_time.note(now.saturating_duration_since(self.submitted));
        }
    }

    /// Notes that the prompt is done, of which so many tokens were in a cache.
    pub(super) fn prompt(&self, tokens: usize, cached: usize) {
        self.metrics.prompt_tokens.inc_by(tokens as u64);
        self.metrics.cached_prompt_tokens.inc_by(cached as u64);
    }

    /// Notes a token.
    pub(super) fn token(&mut self, now: Instant) {
        self.metrics.generation_tokens.inc();
        match self.last_token.replace(now) {
            None => self.metrics.time_to_first_token.note(now.saturating_duration_since(self.submitted)),
            Some(last) => self.metrics.inter_token_latency.note(now.saturating_duration_since(last)),
        }
    }

    /// Notes why it ends.
    pub(super) fn ends(&mut self, reason: &'static str) {
        self.end = reason;
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.metrics.e2e_latency.note(self.submitted.elapsed());
        self.metrics.note_end(self.end);
    }
}
