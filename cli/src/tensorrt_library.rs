//! Where TensorRT's library is.

use std::path::{Path, PathBuf};

use clap::Args;
use roundhouse_backend::LibrarySearch;

/// Where TensorRT's library is.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LibraryArgs {
    /// TensorRT's library. Without it: the `tensorrt` folder of the home folder, `.roundhouse/tensorrt` here, and where
    /// the system's loader looks.
    #[arg(long, global = true, env = "ROUNDHOUSE_TENSORRT_LIBRARY", value_name = "FILE")]
    pub(crate) tensorrt_library: Option<PathBuf>,
}

impl LibraryArgs {
    /// Where to look; `home` is the folder for everything that is not asked for elsewhere.
    pub(crate) fn search(&self, home: &Path) -> LibrarySearch {
        let here = Path::new(".roundhouse").join("tensorrt");
        LibrarySearch { path: self.tensorrt_library.clone(), folders: vec![home.join("tensorrt"), here] }
    }
}
