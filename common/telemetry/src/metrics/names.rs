//! The names of all metrics. In the text each begins with `roundhouse_`; counters end with `_total`, times with `_seconds`
//! and sizes with `_bytes`.

use prometheus_client::registry::Unit;

/// A count of what has happened.
#[derive(Debug)]
pub struct CounterName {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
}

/// What there is now.
#[derive(Debug)]
pub struct GaugeName {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) unit: Option<Unit>,
}

/// How often something took how long, in seconds.
#[derive(Debug)]
pub struct HistogramName {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// The upper bounds of its buckets.
    pub(super) buckets: &'static [f64],
}

/// From a millisecond to minutes: requests and their parts.
const OF_REQUESTS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0];
/// From a millisecond to seconds: tokens and steps.
const OF_STEPS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0];
/// From ten microseconds to a hundred milliseconds: what a scheduler does beside the model.
const OF_OVERHEAD: &[f64] = &[1e-5, 2.5e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 1e-1];
/// From a tenth of a second to hours: builds and loads.
const OF_BUILDS: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 3600.0];

const fn counter(name: &'static str, help: &'static str) -> CounterName {
    CounterName { name, help }
}

const fn gauge(name: &'static str, help: &'static str) -> GaugeName {
    GaugeName { name, help, unit: None }
}

const fn bytes(name: &'static str, help: &'static str) -> GaugeName {
    GaugeName { name, help, unit: Some(Unit::Bytes) }
}

const fn histogram(name: &'static str, help: &'static str, buckets: &'static [f64]) -> HistogramName {
    HistogramName { name, help, buckets }
}

/// Generations in the batch.
pub const NUM_REQUESTS_RUNNING: GaugeName = gauge("num_requests_running", "Generations in the last step");
/// Generations that wait.
pub const NUM_REQUESTS_WAITING: GaugeName =
    gauge("num_requests_waiting", "Generations that wait for a place in a step");
/// Sessions.
pub const NUM_SESSIONS: GaugeName = gauge("num_sessions", "Sessions of this executor");
/// Engines in memory.
pub const NUM_ENGINES: GaugeName = gauge("num_engines", "Loaded engines");
/// What they take.
pub const ENGINE_MEMORY: GaugeName = bytes("engine_memory", "Weights and workspaces of the loaded engines");
/// Keys and values in use.
pub const KV_CACHE_USED: GaugeName = bytes("kv_cache_used", "Keys and values in use");
/// Keys and values there is room for.
pub const KV_CACHE_TOTAL: GaugeName = bytes("kv_cache_total", "Keys and values there is room for");
/// The process of an executor. Both services may be in one, whose texts are read as one.
pub const RESIDENT_MEMORY: GaugeName =
    bytes("executor_resident_memory", "Memory that the executor's process has resident");
/// The process of a compiler.
pub const COMPILER_RESIDENT_MEMORY: GaugeName =
    bytes("compiler_resident_memory", "Memory that the compiler's process has resident");
/// Prompts.
pub const PROMPT_TOKENS: CounterName = counter("prompt_tokens", "Prompt tokens, histories included");
/// Of those, not computed again.
pub const CACHED_PROMPT_TOKENS: CounterName =
    counter("cached_prompt_tokens", "Prompt tokens that were found in a cache");
/// Prompt tokens that were looked for.
pub const PREFIX_CACHE_QUERIES: CounterName =
    counter("prefix_cache_queries", "Prompt tokens that were looked for in the prefix cache");
/// Of those, found.
pub const PREFIX_CACHE_HITS: CounterName =
    counter("prefix_cache_hits", "Prompt tokens that were found in the prefix cache");
/// What it takes.
pub const PREFIX_CACHE_USED: GaugeName = bytes("prefix_cache_used", "Keys and values in the prefix cache");
/// Images that were looked for.
pub const IMAGE_CACHE_QUERIES: CounterName =
    counter("image_cache_queries", "Images whose features were looked for among those that are kept");
/// Of those, found.
pub const IMAGE_CACHE_HITS: CounterName =
    counter("image_cache_hits", "Images whose features were found, for which no vision tower ran");
/// What they take.
pub const IMAGE_CACHE_USED: GaugeName = bytes("image_cache_used", "Features of images that are kept");
/// Outputs.
pub const GENERATION_TOKENS: CounterName = counter("generation_tokens", "Output tokens");
/// Ends.
pub const REQUESTS_FINISHED: CounterName =
    counter("requests_finished", "Generations that have ended, by why");
/// Caches that were taken for others.
pub const PREEMPTIONS: CounterName =
    counter("preemptions", "Running generations whose cache was taken for others");
/// Loads.
pub const ENGINE_LOADS: CounterName = counter("engine_loads", "Loads of engines, by their result");
/// Unloads for others.
pub const ENGINE_EVICTIONS: CounterName =
    counter("engine_evictions", "Idle engines that were unloaded to make room for others");
/// From the call to the first token.
pub const TIME_TO_FIRST_TOKEN: HistogramName =
    histogram("time_to_first_token", "From a generation's submission to its first token", OF_REQUESTS);
/// Between tokens.
pub const INTER_TOKEN_LATENCY: HistogramName =
    histogram("inter_token_latency", "From one token of a generation to the next", OF_STEPS);
/// The whole.
pub const E2E_REQUEST_LATENCY: HistogramName =
    histogram("e2e_request_latency", "From a generation's submission to its end", OF_REQUESTS);
/// Before the first step.
pub const REQUEST_QUEUE_TIME: HistogramName =
    histogram("request_queue_time", "From a generation's submission to its first step", OF_REQUESTS);
/// The step.
pub const STEP_TIME: HistogramName =
    histogram("step_time", "A step of the model, over all its sequences", OF_STEPS);
/// Beside it.
pub const SCHEDULER_OVERHEAD: HistogramName = histogram(
    "scheduler_overhead",
    "What a step takes beside the model and the choice of tokens",
    OF_OVERHEAD,
);
/// From the call to the engine that is ready.
pub const ENGINE_LOAD_TIME: HistogramName =
    histogram("engine_load_time", "A load of an engine, download included", OF_BUILDS);
/// Compilations that have ended.
pub const BUILDS_FINISHED: CounterName =
    counter("builds_finished", "Compilations that have ended, by their result");
/// How long they took.
pub const BUILD_TIME: HistogramName = histogram("build_time", "A compilation, from its start", OF_BUILDS);
/// Compilations that run.
pub const NUM_BUILDS_RUNNING: GaugeName = gauge("num_builds_running", "Compilations that run");
/// Compilations that wait.
pub const NUM_BUILDS_WAITING: GaugeName = gauge("num_builds_waiting", "Compilations that wait");
