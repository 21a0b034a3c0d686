//! The shared libraries of backends.

use std::fmt;

use roundhouse_backend::LibrarySearch;
use serde::Serialize;

/// A library that was found.
#[derive(Debug, Serialize)]
pub(super) struct LibraryReport {
    path: String,
    /// The product.
    flavour: &'static str,
    /// None where it cannot be loaded.
    version: Option<String>,
    /// Whether this program can use it.
    usable: bool,
    /// The GPUs that it builds for.
    compute_capabilities: Vec<String>,
    /// Why it cannot be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// The libraries that are where the configuration says and where the system's loader looks.
#[cfg(feature = "tensorrt")]
pub(super) fn find(search: &LibrarySearch) -> Vec<LibraryReport> {
    use roundhouse_tensorrt_library::{Found, Source, find_all};

    let found = find_all(search);
    // The loader gives what is loaded already to whoever asks by its name alone.
    let loaded_by_path = |by_name: &Found| {
        by_name.source == Source::Loader
            && found.iter().any(|other| other.source != Source::Loader && other.path.ends_with(&by_name.path))
    };
    found
        .iter()
        .filter(|library| !loaded_by_path(library))
        .map(|library| LibraryReport {
            path: library.path.display().to_string(),
            flavour: library.flavour.name(),
            usable: library.is_usable(),
            compute_capabilities: library.supported().names(),
            version: library.version.as_ref().ok().map(ToString::to_string),
            problem: library.version.as_ref().err().cloned(),
        })
        .collect()
}

/// None: this program knows no backend that has one.
#[cfg(not(feature = "tensorrt"))]
pub(super) fn find(_search: &LibrarySearch) -> Vec<LibraryReport> {
    Vec::new()
}

impl fmt::Display for LibraryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "library    {}: TensorRT ({})", self.path, self.flavour)?;
        match (&self.version, &self.problem) {
            (Some(version), _) => {
                write!(f, " {version}, for {}", self.compute_capabilities.join(", "))?;
                if !self.usable {
                    write!(f, "; this program needs another version")?;
                }
                Ok(())
            }
            (None, Some(problem)) => write!(f, ": {problem}"),
            (None, None) => Ok(()),
        }
    }
}
