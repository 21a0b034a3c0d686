//! One generation: what it was asked for, how far it is, and what it tells its client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use roundhouse_backend::{BackendError, LogitsRequest, Model};
use roundhouse_sampling::{Sampled, Sampler, SamplingError, TokenScore};
use roundhouse_text::{ChatMessage, Detokenizer, StopMatcher, Tokenizer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::measured::Measured;
use super::prompt_scores::{PromptLogprobs, PromptScores};
use crate::metrics::EngineMetrics;
use crate::session::{KvMemoryExhausted, Lease, SessionState};

/// What a generation was asked for.
pub struct Request {
    /// For logs.
    pub id: String,
    /// Whose it is: tenants get equal parts of the machine.
    pub tenant: String,
    /// Higher goes first.
    pub priority: i32,
    /// The history and cache. The history already holds the new prompt, at least one token of which is not in the
    /// cache.
    pub lease: Lease,
    /// Chooses tokens; knows the prompt already.
    pub sampler: Sampler,
    /// Log-probabilities of the n most probable tokens beside the chosen one's; `None` for none.
    pub logprobs: Option<usize>,
    /// Log-probabilities of the prompt's tokens; `None` for none. The token before the first of them is not in the cache.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Turns tokens into text; knows the prompt already.
    pub detokenizer: Detokenizer,
    /// Finds stop strings.
    pub stop_strings: StopMatcher,
    /// When to stop.
    pub limits: Limits,
    /// Whether the turn came as messages, so that the answer joins the session's conversation.
    pub is_chat: bool,
    /// By when it must be over.
    pub deadline: Option<Instant>,
    /// Stops it.
    pub cancellation: Cancellation,
    /// Keeps what must live as long as the generation: the claim on its request ID. Must not own the engine, which
    /// waits for its generations when it is dropped.
    pub guard: Box<dyn Send>,
    /// Where its deltas go. A receiver that is gone ends it. The last field, so that it is dropped after the lease and the
    /// guard: who has read the stream to its end finds both free.
    pub deltas: mpsc::Sender<Result<Delta, GenerateError>>,
}

/// When a generation stops by itself.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// At most this many new tokens. With 0 it ends when the prompt's tokens are scored.
    pub max_tokens: usize,
    /// No stop token or stop string before this many.
    pub min_tokens: usize,
    /// Tokens that end it.
    pub stop_tokens: Vec<u32>,
}

/// A caller's way to stop a generation.
#[derive(Debug, Clone, Default)]
pub struct Cancellation {
    cancelled: Arc<AtomicBool>,
}

impl Cancellation {
    /// Stops it at the end of the step that runs.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// A message to the client: what is new.
#[derive(Debug, Clone, Default)]
pub struct Delta {
    /// New text, whole characters.
    pub text: String,
    /// New tokens.
    pub tokens: Vec<u32>,
    /// One for each new token, where asked for.
    pub logprobs: Vec<Sampled>,
    /// Scores of the prompt's next tokens, where asked for.
    pub prompt_logprobs: Vec<TokenScore>,
    /// On the last message.
    pub finish: Option<Finish>,
}

/// The end of a generation.
#[derive(Debug, Clone, Copy)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Tokens before the first output, history included.
    pub prompt_tokens: usize,
    /// Of those, found in the cache.
    pub cached_tokens: usize,
    /// Output tokens.
    pub output_tokens: usize,
    /// From submission to the first step.
    pub queue: Duration,
    /// From the first step to the first token, or to the prompt's last score where no token is made.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// Why a generation ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token.
    StopToken,
    /// A stop string.
    StopString,
    /// `max_tokens`.
    MaxTokens,
    /// The end of the cache.
    CacheFull,
    /// Its caller stopped it.
    Cancelled,
}

impl FinishReason {
    /// As in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::StopToken => "stop_token",
            Self::StopString => "stop_string",
            Self::MaxTokens => "max_tokens",
            Self::CacheFull => "cache_full",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a generation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GenerateError {
    /// The deadline passed.
    #[error("the deadline passed after {output_tokens} tokens")]
    DeadlineExceeded {
        /// Tokens made until then.
        output_tokens: usize,
    },
    /// The client read nothing.
    #[error("the client read nothing for {0:?}")]
    ClientStalled(Duration),
    /// No step began in time.
    #[error("it waited {0:?} for its first step, which is the limit")]
    QueueTimeout(Duration),
    /// Its keys and values do not fit the memory even alone.
    #[error(transparent)]
    Memory(KvMemoryExhausted),
    /// Its session was deleted.
    #[error("the session was deleted")]
    SessionDeleted,
    /// The engine was unloaded or the service is going down.
    #[error("the engine is being unloaded")]
    Unloaded,
    /// The model failed.
    #[error("the model failed: {0}")]
    Model(Arc<BackendError>),
    /// The model's logits cannot be sampled from.
    #[error("sampling: {0}")]
    Sampling(Arc<SamplingError>),
    /// A token is not the tokenizer's.
    #[error("detokenisation: {0}")]
    Text(String),
}

impl GenerateError {
    /// As in metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::DeadlineExceeded { .. } => "deadline_exceeded",
            Self::ClientStalled(_) => "client_stalled",
            Self::QueueTimeout(_) => "queue_timeout",
            Self::Memory(_) => "memory_exhausted",
            Self::SessionDeleted => "session_deleted",
            Self::Unloaded => "unloaded",
            Self::Model(_) | Self::Sampling(_) | Self::Text(_) => "failed",
        }
    }
}

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

    pub(super) fn state(&mut self) -> Option<&mut SessionState> {
        self.request.lease.state()
    }

    /// Tokens that are still to be computed: those that are not in the cache. The last one is not when no token follows
    /// it.
    pub(super) fn pending(&mut self) -> usize {
        let not_needed = usize::from(self.makes_no_tokens());
        self.state().map_or(0, |state| (state.tokens.len() - state.cache.len()).saturating_sub(not_needed))
    }

    /// Takes what others have computed of its history into its cache, before its first step and when the cache was dropped
    /// since; how many tokens are pending then.
    pub(super) fn refill(&mut self, model: &dyn Model) -> usize {
        if let Some(state) = self.request.lease.state() {
            let gained = state.refill(model);
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
            state.share();
        }
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

    /// The logits that a step needs which computes so many of the pending tokens.
    pub(super) fn logits_request(&mut self, tokens: usize) -> LogitsRequest {
        let Some(state) = self.request.lease.state() else { return LogitsRequest::None };
        let step = state.cache.len()..state.cache.len() + tokens;
        match &self.scores {
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
            // Others can have had the cache's memory while it waited.
            self.cached_tokens = self.state().map_or(0, |state| state.cache.len());
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

    /// Takes the logits of a step that computed so many tokens, as many rows as [`Generation::logits_request`] asked for,
    /// and tells the client what they say: the scores of the prompt's tokens, and after its last one the next token.
    pub(super) fn advance(&mut self, logits: &mut [f32], tokens: usize, now: Instant) -> Progress {
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
        let limits = &self.request.limits;
        let suppressed: &[u32] =
            if self.output_tokens < limits.min_tokens { &limits.stop_tokens } else { &[] };
        let sampled = match self.request.sampler.sample(logits, suppressed, self.request.logprobs) {
            Ok(sampled) => sampled,
            Err(error) => return self.fail(GenerateError::Sampling(Arc::new(error))),
        };
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
            None => return Progress::Ended,
        };
        delta.tokens.push(token);
        if self.request.logprobs.is_some() {
            delta.logprobs.push(sampled);
        }
        if self.request.limits.stop_tokens.contains(&token) {
            delta.text = self.flush();
            return self.finish(delta, FinishReason::StopToken);
        }
        let text = match self.request.detokenizer.push(&self.tokenizer, token) {
            Ok(text) => text,
            Err(error) => return self.fail(GenerateError::Text(error.to_string())),
        };
        let stop_allowed = self.output_tokens > self.request.limits.min_tokens;
        let (text, stopped) = self.request.stop_strings.push(&text, stop_allowed);
        self.answer.push_str(&text);
        delta.text = text;
        if stopped {
            return self.finish(delta, FinishReason::StopString);
        }
        if self.output_tokens >= self.request.limits.max_tokens {
            delta.text.push_str(&self.flush());
            return self.finish(delta, FinishReason::MaxTokens);
        }
        // The token just made must fit too, or there is no next one to make.
        if length >= capacity {
            delta.text.push_str(&self.flush());
            return self.finish(delta, FinishReason::CacheFull);
        }
        self.send(delta)
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
            state.messages.push(ChatMessage { role: "assistant".to_owned(), content });
        }
    }
}
