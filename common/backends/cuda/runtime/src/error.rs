//! Shorthands for the backend's errors.

use roundhouse_backend::BackendError;
use roundhouse_cuda_device::DeviceError;
use roundhouse_engine::BackendKind;

const BACKEND: &str = BackendKind::Cuda.name();

/// The device failed.
pub(crate) fn device(error: &DeviceError) -> BackendError {
    match *error {
        DeviceError::OutOfMemory { bytes, free } => {
            BackendError::OutOfMemory { backend: BACKEND, needed: bytes, free }
        }
        DeviceError::Lost(_) => BackendError::DeviceLost { backend: BACKEND, what: error.to_string() },
        DeviceError::Missing(_) | DeviceError::DriverTooOld { .. } | DeviceError::Failed(_) => {
            failed(error.to_string())
        }
    }
}

/// Something of the backend failed.
pub(crate) fn failed(what: impl Into<String>) -> BackendError {
    BackendError::Device { backend: BACKEND, what: what.into() }
}
