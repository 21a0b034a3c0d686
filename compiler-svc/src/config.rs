//! What a compiler service is told at its start.

use std::path::PathBuf;

use roundhouse_backend::LibrarySearch;
use roundhouse_hub::HubConfig;

/// What a compiler service is told at its start.
#[derive(Debug, Clone)]
pub struct CompilerConfig {
    /// The engine store: a folder or an object-store URL.
    pub store: String,
    /// Where engines are built before upload.
    pub build_dir: PathBuf,
    /// Where checkpoints come from and are cached, and whether requests may name local folders and files.
    pub hub: HubConfig,
    /// Where TensorRT is; of no use to a binary without the feature `tensorrt`.
    pub tensorrt: LibrarySearch,
    /// Where NVRTC is, which compiles the CUDA backend's kernels.
    pub nvrtc: LibrarySearch,
    /// Compilations at a time.
    pub concurrent_builds: usize,
    /// Compilations that wait; one more is refused with RESOURCE_EXHAUSTED.
    pub queue_limit: usize,
}
