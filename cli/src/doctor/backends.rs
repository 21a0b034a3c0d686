//! What each backend can do on this machine.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use roundhouse_backend::{Builder, LibrarySearch, Runtime};
use roundhouse_compiler::backends::{Backends as Builders, NoBuilder};
use roundhouse_engine::BackendKind;
use roundhouse_executor::ExecutorConfig;
use roundhouse_executor::backends::Backends as Runtimes;
use serde::Serialize;

/// The backends as the services would have them.
pub(super) struct Backends {
    builders: Builders,
    runtimes: Runtimes,
}

/// The two sides of a backend.
pub(super) struct Both {
    pub(super) builder: Arc<dyn Builder>,
    pub(super) runtime: Arc<dyn Runtime>,
}

/// What a backend can do here.
#[derive(Debug, Serialize)]
pub(super) struct BackendReport {
    name: &'static str,
    builds: bool,
    runs: bool,
    /// The GPUs that it runs on.
    compute_capabilities: Vec<String>,
    /// What is missing and how to get it.
    missing: Vec<String>,
}

impl Backends {
    pub(super) fn open(home: &Path, search: &LibrarySearch, nvrtc: LibrarySearch) -> Self {
        let store = home.join("store").display().to_string();
        let mut config = ExecutorConfig::new(store, home.join("executor"));
        config.tensorrt = search.clone();
        Self { builders: Builders::new(search.clone(), nvrtc), runtimes: Runtimes::open(&config) }
    }

    pub(super) fn report(&self, kind: BackendKind) -> BackendReport {
        let (builder, runs_on) = (self.builder(kind), self.runtimes.runs_on(kind));
        BackendReport {
            name: kind.name(),
            builds: builder.is_ok(),
            runs: runs_on.is_ok(),
            missing: missing(builder.as_ref().err(), runs_on.as_ref().err()),
            compute_capabilities: runs_on.map(|found| found.names()).unwrap_or_default(),
        }
    }

    /// Builder and runtime of a backend that has both here; else what is missing.
    pub(super) fn both(&self, kind: BackendKind) -> Result<Both, Vec<String>> {
        let runtime = self.runtimes.runs_on(kind).map(|_| self.runtimes.runtime(kind));
        match (self.builder(kind), runtime) {
            (Ok(builder), Ok(Some(runtime))) => Ok(Both { builder, runtime }),
            (builder, runtime) => Err(missing(builder.as_ref().err(), runtime.as_ref().err())),
        }
    }

    fn builder(&self, kind: BackendKind) -> Result<Arc<dyn Builder>, String> {
        self.builders.builder(kind).map_err(|NoBuilder::Unavailable { reason, .. }| reason)
    }
}

/// What builder and runtime lack, said once where it is the same.
fn missing(builder: Option<&String>, runtime: Option<&String>) -> Vec<String> {
    let runtime = runtime.filter(|&runtime| Some(runtime) != builder);
    builder.into_iter().chain(runtime).cloned().collect()
}

impl fmt::Display for BackendReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let can = |can: bool| if can { "yes" } else { "no" };
        write!(f, "{:10} builds: {}, runs: {}", self.name, can(self.builds), can(self.runs))?;
        if !self.compute_capabilities.is_empty() {
            write!(f, " on {}", self.compute_capabilities.join(", "))?;
        }
        self.missing.iter().try_for_each(|missing| write!(f, "\n{:10} missing: {missing}", ""))
    }
}
