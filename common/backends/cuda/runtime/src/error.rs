//! Shorthands for the backend's errors.

use roundhouse_backend::BackendError;
use roundhouse_cuda_device::DeviceError;
use roundhouse_engine::BackendKind;

/// The device failed.
pub(crate) fn device(error: &DeviceError) -> BackendError {
    failed(error.to_string())
}

/// Something of the backend failed.
pub(crate) fn failed(what: impl Into<String>) -> BackendError {
    BackendError::Device { backend: BackendKind::Cuda.name(), what: what.into() }
}
