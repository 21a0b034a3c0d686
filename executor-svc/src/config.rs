//! What an executor service is told at its start.

use std::path::PathBuf;
use std::time::Duration;

use roundhouse_backend::LibrarySearch;

use crate::scheduler::PaceLimits;

/// What an executor service is told at its start.
#[derive(Debug, Clone)]
pub struct ExecutorConfig {
    /// The engine store: a folder or an object-store URL.
    pub store: String,
    /// Where pulled engines are kept.
    pub cache_dir: PathBuf,
    /// Bytes of pulled engines to keep; the least recently used go first. `None` keeps all.
    pub cache_limit_bytes: Option<u64>,
    /// Bytes for the KV caches of all sessions together.
    pub kv_memory_bytes: u64,
    /// Generations of one engine that may run or wait at a time; one more is refused with RESOURCE_EXHAUSTED.
    pub max_generations: usize,
    /// Sessions at a time; one more is refused with RESOURCE_EXHAUSTED.
    pub max_sessions: usize,
    /// How long a session lives without a request when it does not say itself.
    pub session_idle_timeout: Duration,
    /// How long a client may leave its stream unread before the generation is ended.
    pub stall_timeout: Duration,
    /// How long a generation may wait for its first step before it is refused with RESOURCE_EXHAUSTED.
    pub queue_timeout: Duration,
    /// How long a step may take before health turns NOT_SERVING, until it ends.
    pub step_timeout: Duration,
    /// New tokens in one step over all sequences.
    pub step_token_budget: usize,
    /// How many times as long as a step of one token a step with running streams may take because of the prompts in it:
    /// what bounds the time between two tokens while prompts are prefilled.
    pub prompt_slowdown: f64,
    /// Threads of the CPU backend; `None` takes one a core.
    pub threads: Option<usize>,
    /// Where TensorRT is; of no use to a binary without the feature `tensorrt`.
    pub tensorrt: LibrarySearch,
}

impl ExecutorConfig {
    /// The defaults beside the places that must be given.
    #[must_use]
    pub fn new(store: impl Into<String>, cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            store: store.into(),
            cache_dir: cache_dir.into(),
            cache_limit_bytes: None,
            kv_memory_bytes: 4 << 30,
            max_generations: 256,
            max_sessions: 1024,
            session_idle_timeout: Duration::from_secs(15 * 60),
            stall_timeout: Duration::from_secs(30),
            queue_timeout: Duration::from_secs(60),
            step_timeout: Duration::from_secs(120),
            step_token_budget: 512,
            prompt_slowdown: PaceLimits::default().of_one_token,
            threads: None,
            tensorrt: LibrarySearch::default(),
        }
    }
}
