//! What the compiler counts and times, and what it shows when it is asked.

use std::sync::Arc;
use std::time::Duration;

use roundhouse_telemetry::metrics::{Counters, Histograms, Metrics, Observations, Observed, names};
use roundhouse_telemetry::resident_memory_bytes;

use crate::jobs::JobQueue;

/// How a compilation ended.
type ResultLabels = [(&'static str, &'static str); 1];

/// The metrics of a compiler.
#[derive(Debug)]
pub struct CompilerMetrics {
    metrics: Metrics,
    finished: Counters<ResultLabels>,
    build_time: Histograms<ResultLabels>,
}

impl CompilerMetrics {
    /// In a registry of their own, with what `jobs` has whenever they are read.
    #[must_use]
    pub(crate) fn new(jobs: Arc<JobQueue>) -> Arc<Self> {
        let metrics = Metrics::default();
        metrics.observe(Arc::new(State { jobs }));
        Arc::new(Self {
            finished: metrics.counters(&names::BUILDS_FINISHED),
            build_time: metrics.histograms(&names::BUILD_TIME),
            metrics,
        })
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Metrics {
        &self.metrics
    }

    /// Notes a compilation that took so long: `built`, `reused`, `failed` or `cancelled`.
    pub(crate) fn note(&self, result: &'static str, took: Duration) {
        self.finished.get_or_create(&[("result", result)]).inc();
        self.build_time.get_or_create(&[("result", result)]).observe(took.as_secs_f64());
    }
}

/// What is seen when it is asked for.
struct State {
    jobs: Arc<JobQueue>,
}

impl Observed for State {
    fn observe(&self, observations: &mut Observations<'_>) -> std::fmt::Result {
        let none: [(&str, &str); 0] = [];
        let (running, waiting) = self.jobs.unfinished();
        observations.gauge(&names::NUM_BUILDS_RUNNING, [(none, running as f64)])?;
        observations.gauge(&names::NUM_BUILDS_WAITING, [(none, waiting as f64)])?;
        observations.gauge(&names::COMPILER_RESIDENT_MEMORY, [(none, resident_memory_bytes() as f64)])
    }
}
