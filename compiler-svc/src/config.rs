//! What a compiler service is told at its start.

use std::path::PathBuf;

/// What a compiler service is told at its start.
#[derive(Debug, Clone)]
pub struct CompilerConfig {
    /// The engine store: a folder or an object-store URL.
    pub store: String,
    /// Where checkpoints are cached and engines are built before upload.
    pub work_dir: PathBuf,
    /// Whether requests may name local folders and files. Off where clients are not trusted with them.
    pub allow_local_paths: bool,
    /// Never ask the hub: only what its cache has.
    pub offline: bool,
    /// Compilations at a time.
    pub concurrent_builds: usize,
    /// Compilations that wait; one more is refused with RESOURCE_EXHAUSTED.
    pub queue_limit: usize,
}
