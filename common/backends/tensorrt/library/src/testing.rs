//! Where tests find TensorRT. Tests that need it fail without it.

use std::path::PathBuf;

use roundhouse_backend::LibrarySearch;

use crate::{Flavour, Library, find};

/// The variable that names the library.
const LIBRARY_VARIABLE: &str = "ROUNDHOUSE_TENSORRT_LIBRARY";

/// The library that `ROUNDHOUSE_TENSORRT_LIBRARY` names, else the one in `.roundhouse/tensorrt` of the workspace.
#[must_use]
pub fn library_search() -> LibrarySearch {
    let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(4).map(PathBuf::from);
    LibrarySearch {
        path: std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from),
        folders: workspace.map(|root| root.join(".roundhouse/tensorrt")).into_iter().collect(),
    }
}

/// The path of that library.
#[must_use]
pub fn library_path() -> PathBuf {
    find::candidates(&library_search(), Flavour::COMPILED).swap_remove(0).path
}

/// That library, loaded.
///
/// # Panics
/// With how to get it if there is none.
#[must_use]
#[expect(clippy::panic, reason = "a test that needs TensorRT fails without it")]
pub fn library() -> Library {
    Library::load(&library_search()).unwrap_or_else(|error| panic!("this test needs TensorRT: {error}"))
}
