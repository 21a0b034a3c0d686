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
    let found = roundhouse_tensorrt_library::find_all(search).into_iter();
    found
        .map(|found| LibraryReport {
            path: found.path.display().to_string(),
            flavour: found.flavour.name(),
            usable: found.is_usable(),
            compute_capabilities: found.supported().names(),
            version: found.version.as_ref().ok().map(ToString::to_string),
            problem: found.version.err(),
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
