//! Shorthands for the backend's errors.

use std::path::Path;

use roundhouse_backend::BackendError;
use roundhouse_engine::BackendKind;

/// The backend has no way to do `what`.
pub(crate) fn unsupported(what: impl Into<String>) -> BackendError {
    BackendError::Unsupported { backend: BackendKind::Cpu.name(), what: what.into() }
}

/// A file could not be read or written.
pub(crate) fn io_error(path: &Path, source: std::io::Error) -> BackendError {
    BackendError::Io { path: path.display().to_string(), source }
}
