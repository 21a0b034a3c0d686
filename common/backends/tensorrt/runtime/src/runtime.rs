//! Loads engines.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use roundhouse_backend::{BackendError, Model, Runtime};
use roundhouse_engine::{BackendKind, ComputeCapability, EngineFiles, Manifest, WeightPlacement, blob_names};
use roundhouse_graph::Graph;
use roundhouse_tensorrt_network::Network;
use roundhouse_weights::MappedWeights;

use crate::cuda::{Cuda, CudaConfig};
use crate::device::Machine;
use crate::host::Host;
use crate::model::{EngineParts, TensorRtModel};
use crate::owner::Owner;
use crate::signature::Signature;

/// Loads engines onto one device. All its models share the thread that owns the device; the device is opened with the
/// first of them and closed after the last.
pub struct TensorRtRuntime<M: Machine = Cuda> {
    machine: Arc<M>,
    kernel_cache: Option<PathBuf>,
    owner: Mutex<Weak<Owner<Host<M::Device>>>>,
}

impl TensorRtRuntime {
    /// A runtime for an NVIDIA GPU. Nothing is looked for yet: on a machine without one, [`Runtime::check`] says so.
    #[must_use]
    pub fn new(config: CudaConfig) -> Self {
        let kernel_cache = config.kernel_cache.clone();
        Self::on(Cuda::new(config), kernel_cache)
    }
}

impl<M: Machine> TensorRtRuntime<M> {
    /// A runtime for a device of this machine. Compiled kernels are kept in the folder `kernel_cache`, where there is
    /// one.
    #[must_use]
    pub fn on(machine: M, kernel_cache: Option<PathBuf>) -> Self {
        Self { machine: Arc::new(machine), kernel_cache, owner: Mutex::new(Weak::new()) }
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The thread that owns the device.
    fn owner(&self) -> Result<Arc<Owner<Host<M::Device>>>, BackendError> {
        let mut owner = self.owner.lock();
        if let Some(owner) = owner.upgrade() {
            return Ok(owner);
        }
        let machine = Arc::clone(&self.machine);
        let opened = Arc::new(Owner::start("tensorrt", move || Ok(Host::new(machine.open()?)))?);
        *owner = Arc::downgrade(&opened);
        Ok(opened)
    }
}

impl<M: Machine> Runtime for TensorRtRuntime<M> {
    fn kind(&self) -> BackendKind {
        BackendKind::TensorRt
    }

    fn check(&self, manifest: &Manifest) -> Result<(), BackendError> {
        let incompatible = |found: String, needed: String| BackendError::Incompatible {
            key: manifest.key.to_string(),
            found,
            needed,
        };
        let backend = manifest.options.backend;
        if backend != BackendKind::TensorRt {
            return Err(incompatible(format!("the {backend} backend"), "the tensorrt backend".to_owned()));
        }
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        if manifest.target.os != os || manifest.target.arch != arch {
            return Err(incompatible(manifest.target.to_string(), format!("{arch}-{os}")));
        }
        self.machine.check(manifest)
    }

    fn load(&self, engine: &EngineFiles) -> Result<Box<dyn Model>, BackendError> {
        self.check(&engine.manifest)?;
        let capability = self.machine.compute_capability();
        let parts = read(engine, capability, self.kernel_cache.as_deref())?;
        Ok(Box::new(TensorRtModel::load(self.owner()?, parts)?))
    }
}

/// Reads an engine's files and checks that they go together.
fn read(
    engine: &EngineFiles,
    capability: Option<ComputeCapability>,
    kernel_cache: Option<&Path>,
) -> Result<EngineParts, BackendError> {
    let manifest = &engine.manifest;
    let corrupt = |path: &Path, what: String| BackendError::Corrupt {
        key: manifest.key.to_string(),
        what: format!("{}: {what}", path.display()),
    };
    let bytes = |path: &Path| {
        fs::read(path).map_err(|source| BackendError::Io { path: path.display().to_string(), source })
    };

    let graph_path = engine.path(blob_names::GRAPH)?;
    let graph =
        String::from_utf8(bytes(graph_path)?).map_err(|error| corrupt(graph_path, error.to_string()))?;
    let graph = Graph::from_json(&graph)?;

    let network_path = engine.path(blob_names::NETWORK)?;
    let network = Network::from_json(&bytes(network_path)?);
    let network = network.map_err(|error| corrupt(network_path, error.to_string()))?;
    let signature = Signature::new(&network, &graph, manifest.options.cache);
    let signature = signature.map_err(|what| corrupt(network_path, what))?;

    let placement = manifest.options.tensorrt.map(|options| options.weights);
    let separate =
        placement == Some(WeightPlacement::Separate) || engine.paths.contains_key(blob_names::WEIGHTS);
    let weights = match separate {
        true => {
            let path = engine.path(blob_names::WEIGHTS)?;
            Some(MappedWeights::open(path, &graph, manifest.key.as_str())?)
        }
        false => None,
    };
    let plan = match capability {
        Some(capability) => engine.plan(capability)?,
        None => engine.path(blob_names::PLAN)?,
    };
    Ok(EngineParts {
        plan: plan.to_owned(),
        network,
        signature,
        weights,
        options: manifest.options,
        memory_plan: manifest.memory_plan.clone(),
        kernel_cache: kernel_cache.map(|folder| folder.join(format!("{}.kernels", manifest.key))),
    })
}
