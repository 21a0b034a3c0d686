//! Which backends this compiler builds for.

use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_backend::{Builder, LibrarySearch};
use roundhouse_backend_cpu::CpuBuilder;
use roundhouse_cuda_builder::CudaBuilder;
use roundhouse_cuda_device::{GPU, compute_capability};
use roundhouse_cuda_nvrtc::Nvrtc;
use roundhouse_engine::BackendKind;

/// The backends of a compiler.
pub struct Backends {
    cpu: Arc<dyn Builder>,
    cuda: Cuda,
    tensorrt: TensorRt,
}

/// Why a compiler does not build for a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoBuilder {
    /// Something that the builder needs is missing.
    #[error("this compiler cannot build for {backend}: {reason}")]
    Unavailable {
        /// The backend asked for.
        backend: BackendKind,
        /// What is missing and how to get it.
        reason: String,
    },
}

impl Backends {
    /// Those that this program knows.
    const KNOWN: [BackendKind; 3] = [BackendKind::TensorRt, BackendKind::Cuda, BackendKind::Cpu];

    /// Every backend that this program knows. `tensorrt` is where TensorRT's library is and `nvrtc` where the compiler of
    /// the CUDA backend's kernels is; each is loaded when it is first asked for.
    #[must_use]
    pub fn new(tensorrt: LibrarySearch, nvrtc: LibrarySearch) -> Self {
        let cuda = Cuda { search: nvrtc, builder: Mutex::default() };
        Self { cpu: Arc::new(CpuBuilder::new()), cuda, tensorrt: TensorRt::new(tensorrt) }
    }

    /// With this builder instead of the CPU's.
    #[cfg(test)]
    pub(crate) fn with_cpu(cpu: Arc<dyn Builder>) -> Self {
        Self { cpu, ..Self::new(LibrarySearch::default(), LibrarySearch::default()) }
    }

    /// The builder of a backend. Blocks while a library is loaded.
    ///
    /// # Errors
    /// [`NoBuilder`]. What was missing once is looked for again the next time.
    pub fn builder(&self, backend: BackendKind) -> Result<Arc<dyn Builder>, NoBuilder> {
        match backend {
            BackendKind::Cpu => Ok(Arc::clone(&self.cpu)),
            BackendKind::TensorRt => {
                self.tensorrt.builder().map_err(|reason| NoBuilder::Unavailable { backend, reason })
            }
            BackendKind::Cuda => {
                self.cuda.builder().map_err(|reason| NoBuilder::Unavailable { backend, reason })
            }
        }
    }

    /// The backends that it can build for now. Blocks as [`Backends::builder`].
    #[must_use]
    pub fn available(&self) -> Vec<BackendKind> {
        Self::KNOWN.into_iter().filter(|&backend| self.builder(backend).is_ok()).collect()
    }
}

struct Cuda {
    search: LibrarySearch,
    builder: Mutex<Option<Arc<dyn Builder>>>,
}

impl Cuda {
    fn builder(&self) -> Result<Arc<dyn Builder>, String> {
        let mut builder = self.builder.lock();
        if let Some(builder) = &*builder {
            return Ok(Arc::clone(builder));
        }
        let nvrtc = Nvrtc::open(&self.search).map_err(|error| error.to_string())?;
        // Without a GPU here engines are for all kinds of them.
        let gpu = compute_capability(GPU).ok();
        Ok(Arc::clone(builder.insert(Arc::new(CudaBuilder::new(Arc::new(nvrtc), gpu)))))
    }
}

#[cfg(feature = "tensorrt")]
struct TensorRt {
    search: LibrarySearch,
    builder: Mutex<Option<Arc<dyn Builder>>>,
}

#[cfg(feature = "tensorrt")]
impl TensorRt {
    fn new(search: LibrarySearch) -> Self {
        Self { search, builder: Mutex::default() }
    }

    fn builder(&self) -> Result<Arc<dyn Builder>, String> {
        let mut builder = self.builder.lock();
        if let Some(builder) = &*builder {
            return Ok(Arc::clone(builder));
        }
        let opened = roundhouse_tensorrt_builder::TensorRtBuilder::open(&self.search);
        let opened: Arc<dyn Builder> = Arc::new(opened.map_err(|error| error.to_string())?);
        Ok(Arc::clone(builder.insert(opened)))
    }
}

#[cfg(not(feature = "tensorrt"))]
struct TensorRt;

#[cfg(not(feature = "tensorrt"))]
impl TensorRt {
    fn new(_search: LibrarySearch) -> Self {
        Self
    }

    fn builder(&self) -> Result<Arc<dyn Builder>, String> {
        Err("this program was compiled without its cargo feature `tensorrt`".to_owned())
    }
}
