//! The conformance suite on this machine.

use std::fmt;
use std::time::Instant;

use roundhouse_backend::{Builder, Runtime};
use roundhouse_backend_conformance::suite::{self, Backend, PROMISES};
use roundhouse_engine::{BackendKind, EngineOptions};
use roundhouse_graph::{Graph, PassReport};
use serde::Serialize;

/// What became of a promise.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    promise: &'static str,
    seconds: f64,
    /// Where the backend departed from it; none where it was kept.
    pub(super) failure: Option<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.failure.is_none() { "kept  " } else { "BROKEN" };
        write!(f, "promise    {verdict} {} ({:.1} s)", self.promise, self.seconds)?;
        self.failure.iter().try_for_each(|failure| write!(f, "\n{:10} {failure}", ""))
    }
}

/// Runs the whole suite on a backend and tells each outcome as it comes.
pub(super) fn run(builder: &dyn Builder, runtime: &dyn Runtime, tell: impl Fn(&Outcome)) -> Vec<Outcome> {
    let backend = Backend::new(builder, runtime, &lower);
    let every_op: suite::Promise = match builder.kind() {
        BackendKind::Cuda => |backend| suite::ops(backend, roundhouse_cuda_builder::UNSUPPORTED_OPS),
        _ => |backend| suite::ops(backend, &[]),
    };
    let promises = [("every_op_is_run", every_op)];
    let promises = promises.iter().chain(PROMISES);
    let outcomes = promises.map(|&(name, promise)| {
        let started = Instant::now();
        let failure = promise(&backend).err().map(|failure| failure.to_string());
        let outcome = Outcome { promise: name, seconds: started.elapsed().as_secs_f64(), failure };
        tell(&outcome);
        outcome
    });
    outcomes.collect()
}

#[expect(
    clippy::expect_used,
    reason = "the suite's models are its own, and every one of them can be lowered"
)]
fn lower(graph: Graph, options: &EngineOptions) -> (Graph, Vec<PassReport>) {
    roundhouse_lowering::lower(graph, options).expect("a model of the suite")
}
