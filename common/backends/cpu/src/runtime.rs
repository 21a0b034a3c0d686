//! Loads engines.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use roundhouse_backend::{BackendError, Model, Runtime};
use roundhouse_cpu_kernels::ThreadPool;
use roundhouse_engine::{BackendKind, Component, EngineFiles, Manifest, blob_names};
use roundhouse_graph::Graph;

use crate::builder::backend_version;
use crate::component::CpuComponent;
use crate::error::io_error;
use crate::model::CpuModel;

/// How a runtime uses the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuOptions {
    /// Threads that compute, the caller's among them; the machine's available parallelism where absent.
    pub threads: Option<usize>,
}

/// Loads engines onto the CPU. Its models share one pool of threads.
pub struct CpuRuntime {
    pool: Arc<ThreadPool>,
}

impl CpuRuntime {
    /// A runtime with threads of its own.
    #[must_use]
    pub fn new(options: CpuOptions) -> Self {
        let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = options.threads.unwrap_or_else(available).max(1);
        Self { pool: Arc::new(ThreadPool::new(threads)) }
    }

    /// How many threads compute.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// What the kernels run with: `portable`, `avx2`, `avx512` or `amx`.
    #[must_use]
    pub fn instruction_set(&self) -> &'static str {
        self.pool.isa().name()
    }
}

impl Runtime for CpuRuntime {
    fn kind(&self) -> BackendKind {
        BackendKind::Cpu
    }

    fn check(&self, manifest: &Manifest) -> Result<(), BackendError> {
        let incompatible = |found: String, needed: String| BackendError::Incompatible {
            key: manifest.key.to_string(),
            found,
            needed,
        };
        let backend = manifest.options.backend;
        if backend != BackendKind::Cpu {
            return Err(incompatible(format!("the {backend} backend"), "the cpu backend".to_owned()));
        }
        let version = backend_version();
        if manifest.backend_version != version {
            let found = format!("version {} of the cpu backend", manifest.backend_version);
            return Err(incompatible(found, format!("version {version}")));
        }
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        let target = &manifest.target;
        let fits = |found: &str, own: &str| found == "any" || found == own;
        if !fits(&target.os, os) || !fits(&target.arch, arch) || !target.compute_capabilities.is_empty() {
            return Err(incompatible(target.to_string(), format!("{arch}-{os}")));
        }
        Ok(())
    }

    fn load(&self, engine: &EngineFiles) -> Result<Box<dyn Model>, BackendError> {
        self.check(&engine.manifest)?;
        let graph = read_graph(engine.path(blob_names::GRAPH)?)?;
        let weights = engine.path(blob_names::WEIGHTS)?;
        let model = CpuModel::load(&engine.manifest, &graph, weights, Arc::clone(&self.pool))?;
        let mut components = Vec::new();
        for &component in Component::ALL {
            let role = |name| blob_names::of_component(component, name);
            let Some(path) = engine.paths.get(&role(blob_names::GRAPH)) else { continue };
            let graph = read_graph(path)?;
            let weights = engine.path(&role(blob_names::WEIGHTS))?;
            let pool = Arc::clone(&self.pool);
            components.push((component, CpuComponent::load(&engine.manifest, &graph, weights, pool)?));
        }
        Ok(Box::new(model.with_components(components)))
    }
}

fn read_graph(path: &Path) -> Result<Graph, BackendError> {
    let json = fs::read_to_string(path).map_err(|error| io_error(path, error))?;
    Ok(Graph::from_json(&json)?)
}
