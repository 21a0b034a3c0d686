//! Which backends this executor runs.

use std::sync::Arc;

use roundhouse_backend::{BackendError, Runtime};
use roundhouse_backend_cpu::{CpuOptions, CpuRuntime};
use roundhouse_cuda_runtime::CudaRuntime;
use roundhouse_engine::{BackendKind, ComputeCapabilities, Manifest};

use crate::ExecutorConfig;

/// The backends of an executor. One that cannot run on this machine is among them: loading its engine says why.
#[derive(Clone)]
pub struct Backends {
    runtimes: Vec<Arc<dyn Runtime>>,
    found: Vec<Found>,
}

/// Whether a backend can run on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which backend.
    pub backend: BackendKind,
    /// The GPUs that it runs on, none for the CPU; or what it lacks and how to get it.
    pub runs_on: Result<ComputeCapabilities, String>,
}

impl Backends {
    /// Every backend that this program knows, the best first.
    #[must_use]
    pub fn open(config: &ExecutorConfig) -> Self {
        let mut backends = Self { runtimes: Vec::new(), found: Vec::new() };
        backends.add_tensorrt(config);
        backends.add_cuda();
        backends.runtimes.push(Arc::new(CpuRuntime::new(CpuOptions { threads: config.threads })));
        backends.found.push(Found { backend: BackendKind::Cpu, runs_on: Ok(ComputeCapabilities::NONE) });
        backends
    }

    /// One runtime alone.
    #[must_use]
    pub fn only(runtime: Arc<dyn Runtime>, runs_on: ComputeCapabilities) -> Self {
        let found = vec![Found { backend: runtime.kind(), runs_on: Ok(runs_on) }];
        Self { runtimes: vec![runtime], found }
    }

    #[cfg(feature = "tensorrt")]
    fn add_tensorrt(&mut self, config: &ExecutorConfig) {
        use roundhouse_tensorrt_library::{backend_version, device};
        use roundhouse_tensorrt_runtime::{CudaConfig, TensorRtRuntime};

        let runtime = TensorRtRuntime::new(CudaConfig {
            device: GPU,
            library: config.tensorrt.clone(),
            kernel_cache: Some(config.cache_dir.join("kernels")),
        });
        let lacks = runtime.machine().supports(&[], &backend_version()).err();
        let runs_on = match lacks {
            Some(refusal) => Err(format!("this machine needs {refusal}")),
            None => device::compute_capabilities()
                .map(|found| found.get(GPU).copied().into_iter().collect())
                .map_err(|error| error.to_string()),
        };
        self.runtimes.push(Arc::new(runtime));
        self.found.push(Found { backend: BackendKind::TensorRt, runs_on });
    }

    #[cfg(not(feature = "tensorrt"))]
    fn add_tensorrt(&mut self, _config: &ExecutorConfig) {
        let runs_on = Err("this program was compiled without its cargo feature `tensorrt`".to_owned());
        self.found.push(Found { backend: BackendKind::TensorRt, runs_on });
    }

    fn add_cuda(&mut self) {
        let runtime = CudaRuntime::new();
        let capability = runtime.compute_capability().map_err(|error| error.to_string());
        let runs_on = capability.and_then(|capability| {
            let too_old = || format!("kernels are for sm_80 and newer, this GPU is {capability}");
            if capability.major >= 8 { Ok([capability].into_iter().collect()) } else { Err(too_old()) }
        });
        self.runtimes.push(Arc::new(runtime));
        self.found.push(Found { backend: BackendKind::Cuda, runs_on });
    }

    /// Whether each backend can run on this machine, the best first.
    #[must_use]
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// The GPUs that a backend runs on, none for the CPU.
    ///
    /// # Errors
    /// What it lacks and how to get it.
    pub fn runs_on(&self, backend: BackendKind) -> Result<ComputeCapabilities, String> {
        let found = self.found.iter().find(|found| found.backend == backend);
        found.map_or_else(
            || Err(format!("this executor has no runtime for {backend}")),
            |found| found.runs_on.clone(),
        )
    }

    /// The runtime of a backend, whether or not it can run on this machine.
    #[must_use]
    pub fn runtime(&self, backend: BackendKind) -> Option<Arc<dyn Runtime>> {
        self.runtimes.iter().find(|runtime| runtime.kind() == backend).map(Arc::clone)
    }

    /// The runtime that can run an engine on this machine, by its manifest alone.
    ///
    /// # Errors
    /// [`BackendError::Incompatible`] names both sides.
    pub fn runtime_for(&self, manifest: &Manifest) -> Result<Arc<dyn Runtime>, BackendError> {
        let backend = manifest.options.backend;
        if let Some(runtime) = self.runtime(backend) {
            runtime.check(manifest)?;
            return Ok(runtime);
        }
        let known: Vec<_> = self.runtimes.iter().map(|runtime| runtime.kind().name()).collect();
        let reason = self.runs_on(backend).err().map(|reason| format!(": {reason}"));
        Err(BackendError::Incompatible {
            key: manifest.key.to_string(),
            found: format!("the {backend} backend ({})", manifest.target),
            needed: known.join(" or ") + &reason.unwrap_or_default(),
        })
    }
}

/// The GPU that engines run on, in the driver's order: the first. `CUDA_VISIBLE_DEVICES` chooses another one.
#[cfg(feature = "tensorrt")]
const GPU: usize = 0;
