//! What an executor service is told at its start.

use std::path::PathBuf;
use std::time::Duration;

use roundhouse_backend::LibrarySearch;
use roundhouse_vision::{FetchPolicy, ImageLimits};

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
    /// Bytes for the weights and workspaces of loaded engines: idle ones are unloaded for another one, the least recently
    /// used first. `None` keeps all.
    pub engine_memory_bytes: Option<u64>,
    /// Whether a request that names an engine of the store that is not loaded loads it.
    pub load_on_demand: bool,
    /// Bytes for the KV caches of all sessions together.
    pub kv_memory_bytes: u64,
    /// Bytes of memory for the keys and values that sequences share; 0 shares nothing.
    pub prefix_cache_bytes: u64,
    /// A folder of this process alone for those that leave memory; `None` drops them.
    pub prefix_cache_dir: Option<PathBuf>,
    /// Bytes of it.
    pub prefix_cache_disk_bytes: u64,
    /// What images of requests may cost, and where they may come from.
    pub images: ImageConfig,
    /// Generations of one engine that may run or wait at a time; one more is refused with RESOURCE_EXHAUSTED.
    pub max_generations: usize,
    /// Sessions at a time; one more is refused with RESOURCE_EXHAUSTED.
    pub max_sessions: usize,
    /// How long a session lives without a request when it does not say itself.
    pub session_idle_timeout: Duration,
    /// How long a session keeps its cache without a request; the next one computes what is not shared of it again.
    pub session_cache_timeout: Duration,
    /// Where sessions are stored at the ends of their turns, for other executors to go on with: a folder or an
    /// object-store URL. `None` stores none.
    pub session_store: Option<String>,
    /// How long a client may leave its stream unread before the generation is ended.
    pub stall_timeout: Duration,
    /// How long a generation may wait for its first step before it is refused with RESOURCE_EXHAUSTED.
    pub queue_timeout: Duration,
    /// How long a step may take before health turns NOT_SERVING, until it ends.
    pub step_timeout: Duration,
    /// New tokens in one step over all sequences.
    pub step_token_budget: usize,
    /// How many times as long as a step of one token a step with running streams may take because of the prompts in it:
    /// what bounds the time between two tokens while prompts are prefilled. Up to 5 ms, up to a quarter more than the streams take
    /// by themselves, and with up to eight tokens of prompts a step may be longer all the same.
    pub prompt_slowdown: f64,
    /// Threads of the CPU backend; `None` takes one a core.
    pub threads: Option<usize>,
    /// Where TensorRT is; of no use to a binary without the feature `tensorrt`.
    pub tensorrt: LibrarySearch,
}

/// What images of requests may cost, and where they may come from.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// What one of them may cost.
    pub limits: ImageLimits,
    /// Where they may be fetched from beside the request itself: by default from nowhere.
    pub fetch: FetchPolicy,
    /// New images of one request; one more is refused with INVALID_ARGUMENT.
    pub max_per_request: usize,
    /// Images that are decoded, processed and encoded at a time.
    pub max_concurrent: usize,
    /// Bytes for the features of images that come again; 0 keeps none.
    pub feature_cache_bytes: u64,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            limits: ImageLimits::default(),
            fetch: FetchPolicy::default(),
            max_per_request: 32,
            max_concurrent: 2,
            feature_cache_bytes: 256 << 20,
        }
    }
}

impl ExecutorConfig {
    /// The defaults beside the places that must be given.
    #[must_use]
    pub fn new(store: impl Into<String>, cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            store: store.into(),
            cache_dir: cache_dir.into(),
            cache_limit_bytes: None,
            engine_memory_bytes: None,
            load_on_demand: false,
            kv_memory_bytes: 4 << 30,
            prefix_cache_bytes: 1 << 30,
            prefix_cache_dir: None,
            prefix_cache_disk_bytes: 16 << 30,
            images: ImageConfig::default(),
            max_generations: 256,
            max_sessions: 1024,
            session_idle_timeout: Duration::from_secs(15 * 60),
            session_cache_timeout: Duration::from_secs(5 * 60),
            session_store: None,
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
