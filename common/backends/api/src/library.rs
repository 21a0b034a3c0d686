//! Shared libraries that a backend needs and a machine may lack.

use std::path::PathBuf;

/// Where to look for a backend's shared library.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LibrarySearch {
    /// The library's file; where given, it is the only place.
    pub path: Option<PathBuf>,
    /// Folders to look in, in this order and before the system's own.
    pub folders: Vec<PathBuf>,
}
