//! Which backends this compiler builds for.

use std::sync::Arc;

use roundhouse_backend::{Builder, LibrarySearch};
use roundhouse_backend_cpu::CpuBuilder;
use roundhouse_engine::BackendKind;

/// The backends of a compiler.
pub struct Backends {
    cpu: Arc<dyn Builder>,
    tensorrt: TensorRt,
}

/// Why a compiler does not build for a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoBuilder {
    /// It does not know the backend.
    #[error("this compiler has no builder for {backend}: it has {known}")]
    Unknown {
        /// The backend asked for.
        backend: BackendKind,
        /// Those that it knows.
        known: String,
    },
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
    const KNOWN: [BackendKind; 2] = [BackendKind::TensorRt, BackendKind::Cpu];

    /// Every backend that this program knows. `tensorrt` is where TensorRT's library is; it is loaded when it is first
    /// asked for.
    #[must_use]
    pub fn new(tensorrt: LibrarySearch) -> Self {
        Self { cpu: Arc::new(CpuBuilder::new()), tensorrt: TensorRt::new(tensorrt) }
    }

    /// With this builder instead of the CPU's.
    #[cfg(test)]
    pub(crate) fn with_cpu(cpu: Arc<dyn Builder>) -> Self {
        Self { cpu, ..Self::new(LibrarySearch::default()) }
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
                Err(NoBuilder::Unknown { backend, known: Self::KNOWN.map(BackendKind::name).join(", ") })
            }
        }
    }

    /// The backends that it can build for now. Blocks as [`Backends::builder`].
    #[must_use]
    pub fn available(&self) -> Vec<BackendKind> {
        Self::KNOWN.into_iter().filter(|&backend| self.builder(backend).is_ok()).collect()
    }
}

#[cfg(feature = "tensorrt")]
struct TensorRt {
    search: LibrarySearch,
    builder: parking_lot::Mutex<Option<Arc<dyn Builder>>>,
}

#[cfg(feature = "tensorrt")]
impl TensorRt {
    fn new(search: LibrarySearch) -> Self {
        Self { search, builder: parking_lot::Mutex::default() }
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
