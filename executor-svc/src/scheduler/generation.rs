//! One generation: how far it is, and what it tells its client.

mod greedy;
mod speculative;

use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse_backend::{LogitsRequest, Model, Sequence};
use roundhouse_guided::{Accepted, TokenGuide};
use roundhouse_sampling::{Restriction, Sampled, SamplingError};
use roundhouse_text::{ChatMessage, Tokenizer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::fork::{Forks, PromptBlocks};
use super::measured::Measured;
use super::prompt_scores::PromptScores;
use super::request::{Delta, Finish, FinishReason, GenerateError, Request};
use crate::metrics::EngineMetrics;
use crate::session::SessionState;

/// A request in the scheduler.
pub(super) struct Generation {
    request: Request,
    tokenizer: Arc<Tokenizer>,
    deleted: Option<CancellationToken>,
    prompt_tokens: usize,
    cached_tokens: usize,
    output_tokens: usize,
    answer: String,
    scores: Option<PromptScores>,
    forks: Forks,
    /// The tokens of the step that runs, where guesses follow the one that is pending; else empty.
    drafted: Vec<u32>,
    draft_tokens: usize,
    accepted_draft_tokens: usize,
    submitted: Instant,
    started: Option<Instant>,
    /// When the prompt was done: the time of the first token, or of the prompt's last score.
    prefilled: Option<Instant>,
    last_token: Option<Instant>,
    /// Since when the client has had no room.
    stalled: Option<Instant>,
    measured: Measured,
}

/// Whether a generation goes on.
pub(super) enum Progress {
    /// It does.
    Running,
    /// Its last message is sent, or nobody is there to read it.
    Ended,
}

impl Generation {
    pub(super) fn new(
        mut request: Request,
        tokenizer: Arc<Tokenizer>,
        submitted: Instant,
        metrics: EngineMetrics,
    ) -> Self {
        let deleted = request.lease.session().map(|session| session.deleted().clone());
        let (prompt_tokens, cached_tokens) =
            request.lease.state().map_or((0, 0), |state| (state.tokens.len(), state.cache.len()));
        let forks = Forks::new(std::mem::take(&mut request.forks));
        let scores = request.prompt_logprobs.map(|asked| PromptScores::new(asked, prompt_tokens));
        Self {
            request,
            tokenizer,
            deleted,
            prompt_tokens,
            cached_tokens,
            output_tokens: 0,
            answer: String::new(),
            scores,
            forks,
            drafted: Vec::new(),
            draft_tokens: 0,
            accepted_draft_tokens: 0,
            submitted,
            started: None,
            prefilled: None,
            last_token: None,
            stalled: None,
            measured: Measured::new(metrics, submitted),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.request.id
    }

    pub(super) fn submitted(&self) -> Instant {
        self.submitted
    }

    pub(super) fn state(&mut self) -> Option<&mut SessionState> {
        self.request.lease.state()
    }

    /// Tokens that are still to be computed: those that are not in the cache. The last one is not when no token follows
    /// it.
    pub(super) fn pending(&mut self) -> usize {
        let not_needed = usize::from(self.makes_no_tokens());
        self.state().map_or(0, |state| (state.tokens.len() - state.cache.len()).saturating_sub(not_needed))
    }

    /// Tokens that its empty cache will take in before it computes anything.
    pub(super) fn forked(&mut self) -> usize {
        let is_empty = self.state().is_some_and(|state| state.cache.is_empty());
        let blocks = self.request.prompt_blocks.as_ref().filter(|_| is_empty);
        blocks.map_or(0, PromptBlocks::tokens)
    }

    /// Takes what others have computed of its history into its cache, before its first step and when the cache was dropped
    /// since; how many tokens are pending then.
    pub(super) fn refill(&mut self, model: &dyn Model) -> usize {
        if let Some(state) = self.request.lease.state() {
            let forked = self.request.prompt_blocks.as_ref();
            let taken_in = forked.map_or(0, |blocks| blocks.take_in(&mut state.cache, model));
            let gained = if taken_in > 0 { taken_in } else { state.refill(model) };
            if self.started.is_none() {
                self.cached_tokens += gained;
            }
        }
        self.pending()
    }

    /// Reserves the memory of so many tokens after those that its cache has; whether it is there.
    pub(super) fn reserve(&mut self, tokens: usize) -> bool {
        self.request
            .lease
            .state()
            .is_some_and(|state| state.cache.reserve(state.cache.len() + tokens).is_ok())
    }

    /// Gives others what it has computed.
    pub(super) fn share(&mut self) {
        if let Some(state) = self.request.lease.state() {
            self.forks.collect(self.prompt_tokens, &mut state.cache);
            state.share();
        }
    }

    /// The other outputs of its prompt, as soon as it has computed that or has ended. They are released once.
    pub(super) fn release_forks(&mut self, has_ended: bool) -> Vec<Request> {
        if has_ended || self.prefilled.is_some() { self.forks.release() } else { Vec::new() }
    }

    /// Whether the prompt is only scored.
    fn makes_no_tokens(&self) -> bool {
        self.request.limits.max_tokens == 0
    }

    /// Whether tokens that are still to be computed have logits that the prompt is scored by.
    pub(super) fn is_scored(&mut self) -> bool {
        let Some(scores) = &self.scores else { return false };
        let lengths = self.request.lease.state().map(|state| (state.cache.len(), state.tokens.len()));
        lengths.is_some_and(|(cached, length)| scores.needs(&(cached..length)))
    }

    /// Its part of a step that computes so many of the pending tokens, and guesses after them: at most `draft_rows`, from
    /// which they are taken. None where it has no cache.
    pub(super) fn sequence<'a>(
        &'a mut self,
        tokens: usize,
        draft_rows: &mut usize,
        logits: &'a mut Vec<f32>,
    ) -> Option<Sequence<'a>> {
        self.draft(tokens, *draft_rows);
        *draft_rows -= self.drafted.len().saturating_sub(1);
        let request = self.logits_request(tokens);
        let state = self.request.lease.state()?;
        let cached = state.cache.len();
        let cache = state.cache.get()?;
        let pending = &state.tokens[cached..cached + tokens];
        let tokens = if self.drafted.is_empty() { pending } else { &self.drafted };
        Some(Sequence { cache, tokens, request, logits })
    }

    /// The logits that a step needs which computes so many of the pending tokens.
    fn logits_request(&mut self, tokens: usize) -> LogitsRequest {
        let Some(state) = self.request.lease.state() else { return LogitsRequest::None };
        let step = state.cache.len()..state.cache.len() + tokens;
        match &self.scores {
            _ if !self.drafted.is_empty() => LogitsRequest::All,
            Some(scores) if scores.needs(&step) => LogitsRequest::All,
            _ if step.end == state.tokens.len() => LogitsRequest::Last,
            _ => LogitsRequest::None,
        }
    }

    /// Whether the client has room for messages. Notes since when it has not: then it has again when half of its buffer is
    /// free, so that one who reads slowly does not go on and stop with every message. The last place is kept for the end:
    /// a client that is ended because it does not read is still told why, should it read again.
    pub(super) fn has_room(&mut self, now: Instant) -> bool {
        let free = self.request.deltas.capacity();
        let wanted = if self.stalled.is_some() { self.request.deltas.max_capacity() / 2 } else { 1 };
        let room = free > wanted;
        self.stalled = if room { None } else { self.stalled.or(Some(now)) };
        room
    }

    /// Notes that a step begins.
    pub(super) fn begin_step(&mut self, now: Instant) {
        if self.started.is_none() {
            self.started = Some(now);
            self.request.prompt_blocks = None;
            if let Some(state) = self.request.lease.state() {
                state.confirm_turn();
                // Others can have had the cache's memory while it waited.
                self.cached_tokens = state.cache.len();
            }
        }
        self.measured.begin_step(now);
    }

    /// Ends the generation if it is cancelled, late, stalled, deleted or alone, or if it has nothing to compute.
    pub(super) fn check(&mut self, now: Instant, stall_timeout: Duration) -> Progress {
        if self.request.deltas.is_closed() {
            tracing::debug!(request = self.id(), "the client is gone");
            self.keep_answer();
            return Progress::Ended;
        }
        if self.deleted.as_ref().is_some_and(CancellationToken::is_cancelled) {
            return self.fail(GenerateError::SessionDeleted);
        }
        if self.request.deadline.is_some_and(|deadline| now >= deadline) {
            return self.fail(GenerateError::DeadlineExceeded { output_tokens: self.output_tokens });
        }
        if self.request.cancellation.is_cancelled() {
            let text = self.flush();
            return self.finish(Delta { text, ..Delta::default() }, FinishReason::Cancelled);
        }
        if self.makes_no_tokens() && self.pending() == 0 {
            if let Some(state) = self.request.lease.state() {
                state.confirm_turn();
            }
            return self.finish(Delta::default(), FinishReason::MaxTokens);
        }
        match self.stalled {
            Some(since) if now.duration_since(since) >= stall_timeout => {
                self.fail(GenerateError::ClientStalled(stall_timeout))
            }
            _ => Progress::Running,
        }
    }

    /// Ends it with an error. Its session keeps what is in the history.
    pub(super) fn fail(&mut self, error: GenerateError) -> Progress {
        self.keep_answer();
        self.measured.ends(error.name());
        if let Err(error) = self.request.deltas.try_send(Err(error)) {
            tracing::debug!(request = self.id(), %error, "the client was not told of a failure");
        }
        Progress::Ended
    }

    /// Takes the logits of a step that computed so many tokens, as many rows as its [`Generation::sequence`] asked for,
    /// and tells the client what they say: the scores of the prompt's tokens, and after its last one the next token.
    pub(super) fn advance(&mut self, logits: &mut [f32], tokens: usize, now: Instant) -> Progress {
        if !self.drafted.is_empty() {
            return self.verify(logits, now);
        }
        let mut delta = Delta::default();
        let mut rows = 1;
        if let (Some(scores), Some(state)) = (&mut self.scores, self.request.lease.state()) {
            let step = state.cache.len().saturating_sub(tokens)..state.cache.len();
            if scores.needs(&step) {
                rows = tokens;
                match scores.score(&step, logits, &state.tokens) {
                    Ok(scores) => delta.prompt_logprobs = scores,
                    Err(error) => return self.fail(GenerateError::Sampling(Arc::new(error))),
                }
            }
        }
        if self.pending() == 0 && self.makes_no_tokens() {
            self.prefilled = Some(now);
            return self.finish(delta, FinishReason::MaxTokens);
        }
        if self.pending() == 0 {
            let last = logits.len() - logits.len() / rows.max(1);
            return self.next_token(delta, &mut logits[last..], now);
        }
        if delta.prompt_logprobs.is_empty() { Progress::Running } else { self.send(delta) }
    }

    /// Takes the logits that follow the last token of the history: chooses the next token, and tells the client of it and
    /// of what `delta` has already.
    fn next_token(&mut self, mut delta: Delta, logits: &mut [f32], now: Instant) -> Progress {
        let outcome = self.choose(&mut delta, logits, now);
        self.tell(delta, outcome)
    }

    /// Tells the client what a step gave, and why it was the last one, if it was.
    fn tell(&mut self, delta: Delta, outcome: Result<Option<FinishReason>, GenerateError>) -> Progress {
        match outcome {
            Ok(None) => self.send(delta),
            Ok(Some(reason)) => self.finish(delta, reason),
            Err(error) => self.fail(error),
        }
    }

    /// Chooses the token that these logits say, and adds it and its text to the history and to `delta`. Returns why it is
    /// the last one, if it is.
    fn choose(
        &mut self,
        delta: &mut Delta,
        logits: &mut [f32],
        now: Instant,
    ) -> Result<Option<FinishReason>, GenerateError> {
        let Some(sampled) = self.sample(logits)? else {
            delta.text.push_str(&self.flush());
            return Ok(Some(FinishReason::GrammarComplete));
        };
        self.accept(delta, sampled, now)
    }

    /// Adds a token and its text to the history and to `delta`. Returns why it is the last one, if it is.
    fn accept(
        &mut self,
        delta: &mut Delta,
        sampled: Sampled,
        now: Instant,
    ) -> Result<Option<FinishReason>, GenerateError> {
        let token = sampled.token;
        self.request.sampler.accept(token);
        self.output_tokens += 1;
        if self.prefilled.is_none() {
            self.measured.prompt(self.prompt_tokens, self.cached_tokens);
        }
        self.prefilled.get_or_insert(now);
        self.last_token = Some(now);
        self.measured.token(now);
        let (length, capacity) = match self.request.lease.state() {
            Some(state) => {
                state.tokens.push(token);
                (state.tokens.len(), state.cache.capacity())
            }
            None => return Err(GenerateError::Unloaded),
        };
        delta.tokens.push(token);
        if self.request.logprobs.is_some() {
            delta.logprobs.push(sampled);
        }
        let limits = &self.request.limits;
        let is_stop_token = limits.stop_tokens.contains(&token);
        if is_stop_token && !limits.include_stop {
            delta.text.push_str(&self.flush());
            return Ok(Some(FinishReason::StopToken));
        }
        let text = self.request.detokenizer.push(&self.tokenizer, token);
        let text = text.map_err(|error| GenerateError::Text(error.to_string()))?;
        let stop_allowed = self.output_tokens > self.request.limits.min_tokens;
        let (text, stopped) = self.request.stop_strings.push(&text, stop_allowed);
        self.answer.push_str(&text);
        delta.text.push_str(&text);
        if stopped {
            return Ok(Some(FinishReason::StopString));
        }
        let reason = if is_stop_token {
            Some(FinishReason::StopToken)
        } else if self.is_complete_after(token)? {
            Some(FinishReason::GrammarComplete)
        } else if self.output_tokens >= self.request.limits.max_tokens {
            Some(FinishReason::MaxTokens)
        } else if length >= capacity {
            // The token just made must fit too, or there is no next one to make.
            Some(FinishReason::CacheFull)
        } else {
            None
        };
        if reason.is_some() {
            delta.text.push_str(&self.flush());
        }
        Ok(reason)
    }

    /// The next token. None where the output is whole and nothing else may come: its end is suppressed while there are
    /// fewer than the least number of tokens.
    fn sample(&mut self, logits: &mut [f32]) -> Result<Option<Sampled>, GenerateError> {
        let Request { sampler, limits, guide, logprobs, .. } = &mut self.request;
        let suppressed: &[u32] =
            if self.output_tokens < limits.min_tokens { &limits.stop_tokens } else { &[] };
        let allowed = guide.as_mut().map(TokenGuide::allowed).transpose().map_err(GenerateError::Guide)?;
        match sampler.sample(logits, Restriction { suppressed, allowed }, *logprobs) {
            Ok(sampled) => Ok(Some(sampled)),
            Err(SamplingError::NoCandidate) if guide.as_mut().is_some_and(TokenGuide::may_end) => Ok(None),
            Err(error) => Err(GenerateError::Sampling(Arc::new(error))),
        }
    }

    /// Tells the guide of a token. Whether it allows nothing more.
    fn is_complete_after(&mut self, token: u32) -> Result<bool, GenerateError> {
        let Some(guide) = &mut self.request.guide else { return Ok(false) };
        Ok(guide.accept(token).map_err(GenerateError::Guide)? == Accepted::Complete)
    }

    /// The text that was held back.
    fn flush(&mut self) -> String {
        let rest = self.request.detokenizer.finish(&self.tokenizer).unwrap_or_default();
        let (mut text, stopped) = self.request.stop_strings.push(&rest, true);
        if !stopped {
            text.push_str(&self.request.stop_strings.finish());
        }
        self.answer.push_str(&text);
        text
    }

    fn finish(&mut self, mut delta: Delta, reason: FinishReason) -> Progress {
        self.keep_answer();
        self.measured.ends(reason.name());
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        delta.finish = Some(Finish {
            reason,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            output_tokens: self.output_tokens,
            draft_tokens: self.draft_tokens,
            accepted_draft_tokens: self.accepted_draft_tokens,
            queue: between(Some(self.submitted), self.started),
            prefill: between(self.started, self.prefilled),
            decode: between(self.prefilled, self.last_token),
        });
        // The end of the stream: whether it was read changes nothing any more.
        let _ = self.send(delta);
        Progress::Ended
    }

    fn send(&mut self, delta: Delta) -> Progress {
        match self.request.deltas.try_send(Ok(delta)) {
            Ok(()) => Progress::Running,
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.keep_answer();
                Progress::Ended
            }
            // A sequence takes part in a step only when its client has room, and a step makes one message.
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.fail(GenerateError::ClientStalled(Duration::ZERO))
            }
        }
    }

    /// Adds what was answered so far to the session's conversation.
    fn keep_answer(&mut self) {
        if !std::mem::take(&mut self.request.is_chat) {
            return;
        }
        let content = std::mem::take(&mut self.answer);
        if let Some(state) = self.request.lease.state() {
            state.messages.push(ChatMessage { role: "assistant".to_owned(), content: content.into() });
        }
    }
}
