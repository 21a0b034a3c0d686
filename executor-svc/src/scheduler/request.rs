//! What a generation is asked for, and what it tells its client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use roundhouse_backend::BackendError;
use roundhouse_guided::{GuideError, TokenGuide};
use roundhouse_sampling::{Sampled, Sampler, SamplingError, TokenScore};
use roundhouse_text::{Detokenizer, StopMatcher};
use tokio::sync::mpsc;

use super::drafts::PromptLookup;
use super::fork::PromptBlocks;
use super::prompt_scores::PromptLogprobs;
use crate::session::{KvMemoryExhausted, Lease};

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
    /// What the output must be; `None` for anything.
    pub guide: Option<TokenGuide>,
    /// How tokens are guessed; `None` for one token a step. The engine must give the logits of several tokens of a step.
    pub speculative: Option<PromptLookup>,
    /// When to stop.
    pub limits: Limits,
    /// Whether the turn came as messages, so that the answer joins the session's conversation.
    pub is_chat: bool,
    /// By when it must be over.
    pub deadline: Option<Instant>,
    /// Stops it.
    pub cancellation: Cancellation,
    /// The keys and values that it begins with; `None` where it computes its prompt or finds it shared.
    pub prompt_blocks: Option<PromptBlocks>,
    /// Other outputs of the same prompt: they begin when this one has computed it, with its keys and values.
    pub forks: Vec<Request>,
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
    /// Whether the text has what ended it.
    pub include_stop: bool,
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

    pub(super) fn is_cancelled(&self) -> bool {
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
    /// The prompt, where asked for: on the first message.
    pub echo: Option<Echo>,
    /// Scores of the prompt's next tokens, where asked for.
    pub prompt_logprobs: Vec<TokenScore>,
    /// On the last message.
    pub finish: Option<Finish>,
}

/// The prompt of a request, for its client.
#[derive(Debug, Clone, Default)]
pub struct Echo {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
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
    /// Tokens that were guessed.
    pub draft_tokens: usize,
    /// Of those, right.
    pub accepted_draft_tokens: usize,
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
    /// Its guide allows nothing more.
    GrammarComplete,
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
    /// The model's logits cannot be sampled from, or what the request allows leaves no token.
    #[error("sampling: {0}")]
    Sampling(Arc<SamplingError>),
    /// Its guide says no next token.
    #[error("{0}")]
    Guide(GuideError),
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
            Self::Model(_) | Self::Sampling(_) | Self::Guide(_) | Self::Text(_) => "failed",
        }
    }
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
            Self::GrammarComplete => "grammar_complete",
        }
    }
}
