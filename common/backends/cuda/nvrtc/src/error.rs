//! Why there is no compiler.

use std::path::PathBuf;

/// NVRTC cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NvrtcError {
    /// It is nowhere.
    #[error(
        "NVRTC (libnvrtc.so.12) was not found in {}; get it with: python3 scripts/fetch_nvrtc.py, or: pip install --no-deps \
         --target .roundhouse/nvrtc nvidia-cuda-nvrtc-cu12==12.9.86",
        looked_at.join(", ")
    )]
    NotFound {
        /// Where it was looked for.
        looked_at: Vec<String>,
    },
    /// A file is none that can be used.
    #[error("{}: {message}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}
