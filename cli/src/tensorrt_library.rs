//! Where the libraries of backends are.

use std::path::{Path, PathBuf};

use clap::Args;
use roundhouse_backend::LibrarySearch;

/// Where the libraries of backends are.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LibraryArgs {
    /// TensorRT's library. Without it: the `tensorrt` folder of the home folder, `.roundhouse/tensorrt` here, and where
    /// the system's loader looks.
    #[arg(long, global = true, env = "ROUNDHOUSE_TENSORRT_LIBRARY", value_name = "FILE")]
    pub(crate) tensorrt_library: Option<PathBuf>,
    /// NVRTC, which compiles the CUDA backend's kernels. Without it: the `nvrtc` folder of the home folder,
    /// `.roundhouse/nvrtc` here, and where the system's loader looks.
    #[arg(long, global = true, env = "ROUNDHOUSE_NVRTC_LIBRARY", value_name = "FILE")]
    pub(crate) nvrtc_library: Option<PathBuf>,
}

impl LibraryArgs {
    /// Where to look for NVRTC; `home` as for [`LibraryArgs::search`].
    pub(crate) fn nvrtc(&self, home: &Path) -> LibrarySearch {
        let here = Path::new(".roundhouse").join("nvrtc");
        LibrarySearch { path: self.nvrtc_library.clone(), folders: vec![home.join("nvrtc"), here] }
    }

    /// Where to look for TensorRT; `home` is the folder for everything that is not asked for elsewhere.
    pub(crate) fn search(&self, home: &Path) -> LibrarySearch {
        let here = Path::new(".roundhouse").join("tensorrt");
        LibrarySearch { path: self.tensorrt_library.clone(), folders: vec![home.join("tensorrt"), here] }
    }
}
