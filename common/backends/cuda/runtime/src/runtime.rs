//! Loads engines.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_backend::{BackendError, Model, Runtime};
use roundhouse_cuda_builder::{PLAN, can_run, image_for, image_name};
use roundhouse_cuda_device::{Device, DeviceError, Driver, GPU, compute_capability};
use roundhouse_cuda_plan::Plan;
use roundhouse_engine::{BackendKind, ComputeCapability, EngineFiles, Manifest, blob_names};
use roundhouse_graph::Graph;
use roundhouse_weights::MappedWeights;

use crate::error;
use crate::executor::Executor;
use crate::model::CudaModel;
use crate::pool::Pool;

/// Loads engines onto one device, which is opened with the first of them.
pub struct CudaRuntime {
    /// `None` is the machine's GPU, until it is opened.
    device: Mutex<Option<Opened>>,
}

/// A device, and the memory of all its engines' sequences.
#[derive(Clone)]
struct Opened {
    device: Arc<dyn Device>,
    pool: Arc<Pool>,
}

impl Opened {
    fn new(device: Arc<dyn Device>) -> Self {
        Self { pool: Arc::new(Pool::new(Arc::clone(&device))), device }
    }
}

impl Default for CudaRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl CudaRuntime {
    /// A runtime for this machine's GPU. Nothing is looked for yet: on a machine without one, [`Runtime::check`] says so.
    #[must_use]
    pub fn new() -> Self {
        Self { device: Mutex::new(None) }
    }

    /// A runtime for a device.
    #[must_use]
    pub fn on(device: Arc<dyn Device>) -> Self {
        Self { device: Mutex::new(Some(Opened::new(device))) }
    }

    /// What code the device runs.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn compute_capability(&self) -> Result<ComputeCapability, DeviceError> {
        match &*self.device.lock() {
            Some(opened) => Ok(opened.device.properties().compute_capability),
            None => compute_capability(GPU),
        }
    }

    fn open(&self) -> Result<Opened, DeviceError> {
        let mut device = self.device.lock();
        if let Some(opened) = &*device {
            return Ok(opened.clone());
        }
        Ok(device.insert(Opened::new(Arc::new(Driver::open(GPU)?))).clone())
    }

    /// The target of an engine whose kernels the device runs.
    fn target(&self, manifest: &Manifest) -> Result<ComputeCapability, BackendError> {
        let incompatible = |found: String, needed: String| BackendError::Incompatible {
            key: manifest.key.to_string(),
            found,
            needed,
        };
        let backend = manifest.options.backend;
        if backend != BackendKind::Cuda {
            return Err(incompatible(format!("the {backend} backend"), "the cuda backend".to_owned()));
        }
        if let Err(needed) = can_run(&manifest.backend_version) {
            return Err(incompatible(manifest.backend_version.clone(), needed));
        }
        let target = &manifest.target;
        if target.os != "any" || target.arch != "any" {
            return Err(incompatible(target.to_string(), "any-any".to_owned()));
        }
        let device = self.compute_capability();
        let device = device.map_err(|error| incompatible(target.to_string(), format!("a GPU: {error}")))?;
        let targets = target.compute_capabilities.iter().filter_map(|name| name.parse().ok());
        image_for(targets, device).ok_or_else(|| incompatible(target.to_string(), device.to_string()))
    }
}

impl Runtime for CudaRuntime {
    fn kind(&self) -> BackendKind {
        BackendKind::Cuda
    }

    fn check(&self, manifest: &Manifest) -> Result<(), BackendError> {
        self.target(manifest).map(|_| ())
    }

    fn load(&self, engine: &EngineFiles) -> Result<Box<dyn Model>, BackendError> {
        let manifest = &engine.manifest;
        let target = self.target(manifest)?;
        let key = manifest.key.as_str();
        let corrupt = |path: &Path, what: String| BackendError::Corrupt {
            key: key.to_owned(),
            what: format!("{}: {what}", path.display()),
        };
        let read = |name: &str| -> Result<_, BackendError> {
            let path = engine.path(name)?;
            let bytes = fs::read(path);
            let bytes =
                bytes.map_err(|source| BackendError::Io { path: path.display().to_string(), source })?;
            Ok((path, bytes))
        };
        let (path, graph) = read(blob_names::GRAPH)?;
        let graph = String::from_utf8(graph).map_err(|error| corrupt(path, error.to_string()))?;
        let graph = Graph::from_json(&graph)?;
        let (path, plan) = read(PLAN)?;
        let plan: Plan = serde_json::from_slice(&plan).map_err(|error| corrupt(path, error.to_string()))?;
        // Kernels trust a plan with every address: what runs is what this program makes of the graph.
        if plan != Plan::new(&graph, &manifest.options)? {
            return Err(corrupt(path, "the plan of another graph".to_owned()));
        }
        let (path, image) = read(&image_name(target))?;
        let weights = MappedWeights::open(engine.path(blob_names::WEIGHTS)?, &graph, key)?;
        let Opened { device, pool } = self.open().map_err(|error| error::device(&error))?;
        // What no sequence uses would be missed now.
        pool.give_back();
        let executor = Executor::load(Arc::clone(&device), plan, &image, &weights, target);
        let executor = executor.map_err(|error| match error {
            BackendError::Device { what, .. } => {
                error::failed(format!("engine {key} ({}): {what}", path.display()))
            }
            error => error,
        })?;
        Ok(Box::new(CudaModel::new(device, pool, executor)))
    }
}
