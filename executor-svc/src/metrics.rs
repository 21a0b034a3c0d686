//! What the executor counts and times, and what it shows when it is asked.

use std::sync::{Arc, Weak};
use std::time::Duration;

use roundhouse_engine::Manifest;
use roundhouse_telemetry::metrics::{
    Counter, Counters, Histogram, Histograms, Metrics, Observations, Observed, names,
};
use roundhouse_telemetry::resident_memory_bytes;

use crate::engine::Engines;
use crate::images::Images;
use crate::prefix_cache::PrefixCache;
use crate::session::{KvMemory, Sessions};

/// Labels of what belongs to an engine: its model and its key.
type EngineLabels = [(&'static str, String); 2];

/// The same, and how something ended.
type EndLabels = [(&'static str, String); 3];

/// How something ended.
type ResultLabels = [(&'static str, &'static str); 1];

/// The metrics of an executor.
#[derive(Debug)]
pub struct ExecutorMetrics {
    metrics: Metrics,
    time_to_first_token: Histograms<EngineLabels>,
    inter_token_latency: Histograms<EngineLabels>,
    e2e_latency: Histograms<EngineLabels>,
    queue_time: Histograms<EngineLabels>,
    step_time: Histograms<EngineLabels>,
    overhead: Histograms<EngineLabels>,
    prompt_tokens: Counters<EngineLabels>,
    cached_prompt_tokens: Counters<EngineLabels>,
    generation_tokens: Counters<EngineLabels>,
    preemptions: Counters<EngineLabels>,
    finished: Counters<EndLabels>,
    loads: Counters<ResultLabels>,
    load_time: Histograms<[(&'static str, &'static str); 0]>,
    evictions: Counters<[(&'static str, &'static str); 0]>,
}

/// The metrics of one engine.
#[derive(Debug, Clone)]
pub struct EngineMetrics {
    labels: EngineLabels,
    finished: Counters<EndLabels>,
    /// From a generation's submission to its first token.
    pub time_to_first_token: Seconds,
    /// Between two tokens.
    pub inter_token_latency: Seconds,
    /// From a generation's submission to its end.
    pub e2e_latency: Seconds,
    /// From a generation's submission to its first step.
    pub queue_time: Seconds,
    /// A step of the model.
    pub step_time: Seconds,
    /// What the scheduler adds to a step.
    pub overhead: Seconds,
    /// Prompt tokens.
    pub prompt_tokens: Counter,
    /// Of those, found in a cache.
    pub cached_prompt_tokens: Counter,
    /// Output tokens.
    pub generation_tokens: Counter,
    /// Caches that were taken for other generations.
    pub preemptions: Counter,
}

/// A histogram of seconds.
#[derive(Debug, Clone)]
pub struct Seconds(Histogram);

impl Seconds {
    /// Counts one.
    pub fn note(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

impl ExecutorMetrics {
    /// Adds all of them to a registry that has none of them yet.
    #[must_use]
    pub fn new(metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            time_to_first_token: metrics.histograms(&names::TIME_TO_FIRST_TOKEN),
            inter_token_latency: metrics.histograms(&names::INTER_TOKEN_LATENCY),
            e2e_latency: metrics.histograms(&names::E2E_REQUEST_LATENCY),
            queue_time: metrics.histograms(&names::REQUEST_QUEUE_TIME),
            step_time: metrics.histograms(&names::STEP_TIME),
            overhead: metrics.histograms(&names::SCHEDULER_OVERHEAD),
            prompt_tokens: metrics.counters(&names::PROMPT_TOKENS),
            cached_prompt_tokens: metrics.counters(&names::CACHED_PROMPT_TOKENS),
            generation_tokens: metrics.counters(&names::GENERATION_TOKENS),
            preemptions: metrics.counters(&names::PREEMPTIONS),
            finished: metrics.counters(&names::REQUESTS_FINISHED),
            loads: metrics.counters(&names::ENGINE_LOADS),
            load_time: metrics.histograms(&names::ENGINE_LOAD_TIME),
            evictions: metrics.counters(&names::ENGINE_EVICTIONS),
            metrics,
        })
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Metrics {
        &self.metrics
    }

    /// Those of an engine.
    #[must_use]
    pub fn of_engine(&self, manifest: &Manifest) -> EngineMetrics {
        let labels = labels(manifest);
        let seconds = |family: &Histograms<EngineLabels>| Seconds(family.get_or_create_owned(&labels));
        let counter = |family: &Counters<EngineLabels>| family.get_or_create_owned(&labels);
        EngineMetrics {
            finished: self.finished.clone(),
            time_to_first_token: seconds(&self.time_to_first_token),
            inter_token_latency: seconds(&self.inter_token_latency),
            e2e_latency: seconds(&self.e2e_latency),
            queue_time: seconds(&self.queue_time),
            step_time: seconds(&self.step_time),
            overhead: seconds(&self.overhead),
            prompt_tokens: counter(&self.prompt_tokens),
            cached_prompt_tokens: counter(&self.cached_prompt_tokens),
            generation_tokens: counter(&self.generation_tokens),
            preemptions: counter(&self.preemptions),
            labels,
        }
    }

    /// Notes a load that took so long, or failed.
    pub(crate) fn note_load(&self, took: Result<Duration, ()>) {
        let result = if took.is_ok() { "loaded" } else { "failed" };
        self.loads.get_or_create(&[("result", result)]).inc();
        if let Ok(took) = took {
            self.load_time.get_or_create(&[]).observe(took.as_secs_f64());
        }
    }

    /// Notes that idle engines made room for another one.
    pub(crate) fn note_evictions(&self, count: u64) {
        self.evictions.get_or_create(&[]).inc_by(count);
    }
}

impl EngineMetrics {
    /// Notes that a generation has ended, and why.
    pub fn note_end(&self, reason: &'static str) {
        let [model, engine] = self.labels.clone();
        self.finished.get_or_create(&[model, engine, ("finished_reason", reason.to_owned())]).inc();
    }
}

fn labels(manifest: &Manifest) -> EngineLabels {
    [("model_name", manifest.model.clone()), ("engine", manifest.key.to_string())]
}

/// What is seen when it is asked for.
pub(crate) struct State {
    /// Which have their metrics from the registry that shows this.
    pub(crate) engines: Weak<Engines>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) memory: Arc<KvMemory>,
    pub(crate) prefixes: Arc<PrefixCache>,
    pub(crate) images: Arc<Images>,
}

impl Observed for State {
    fn observe(&self, observations: &mut Observations<'_>) -> std::fmt::Result {
        let Some(engines) = self.engines.upgrade() else { return Ok(()) };
        let none: [(&str, &str); 0] = [];
        let list = engines.list();
        let loads: Vec<_> =
            list.iter().map(|engine| (labels(engine.manifest()), engine.scheduler().load())).collect();
        let running = loads.iter().map(|(labels, load)| (labels.clone(), load.running as f64));
        observations.gauge(&names::NUM_REQUESTS_RUNNING, running)?;
        let waiting = loads.iter().map(|(labels, load)| (labels.clone(), load.waiting as f64));
        observations.gauge(&names::NUM_REQUESTS_WAITING, waiting)?;
        observations.gauge(
            &names::ENGINE_MEMORY,
            list.iter().map(|engine| (labels(engine.manifest()), engine.bytes() as f64)),
        )?;
        observations.gauge(&names::NUM_ENGINES, [(none, list.len() as f64)])?;
        observations.gauge(&names::NUM_SESSIONS, [(none, self.sessions.len() as f64)])?;
        observations.gauge(&names::KV_CACHE_USED, [(none, self.memory.used() as f64)])?;
        observations.gauge(&names::KV_CACHE_TOTAL, [(none, self.memory.total() as f64)])?;
        let prefixes = self.prefixes.usage();
        observations.counter(&names::PREFIX_CACHE_QUERIES, prefixes.queried_tokens)?;
        observations.counter(&names::PREFIX_CACHE_HITS, prefixes.hit_tokens)?;
        observations.gauge(&names::PREFIX_CACHE_USED, [(none, prefixes.memory_bytes as f64)])?;
        let images = self.images.cache().usage();
        observations.counter(&names::IMAGE_CACHE_QUERIES, images.queries)?;
        observations.counter(&names::IMAGE_CACHE_HITS, images.hits)?;
        observations.gauge(&names::IMAGE_CACHE_USED, [(none, images.bytes as f64)])?;
        observations.gauge(&names::RESIDENT_MEMORY, [(none, resident_memory_bytes() as f64)])
    }
}
