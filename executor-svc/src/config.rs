//! What an executor service is told at its start.

use std::path::PathBuf;
use std::time::Duration;

use roundhouse_backend::LibrarySearch;

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
    /// New tokens in one step over all sequences: what bounds the time between two tokens while prompts are prefilled.
    pub step_token_budget: usize,
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
            step_token_budget: 512,
            threads: None,
            tensorrt: LibrarySearch::default(),
        }
    }
}
