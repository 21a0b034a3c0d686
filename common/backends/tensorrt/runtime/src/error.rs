//! What a device can fail with.

use roundhouse_backend::BackendError;
use roundhouse_engine::BackendKind;

/// What a device can fail with, by meaning.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is not enough memory.
    #[error("{bytes} bytes of device memory: {what}")]
    Memory {
        /// How many were asked for.
        bytes: usize,
        /// The driver's words.
        what: String,
    },
    /// TensorRT refused a call.
    #[error("{call}: {what}")]
    TensorRt {
        /// The call, with the tensor where it is of one.
        call: String,
        /// TensorRT's own words.
        what: String,
    },
    /// The driver refused a call.
    #[error("{call}: {what}")]
    Driver {
        /// The call.
        call: String,
        /// The driver's words.
        what: String,
    },
    /// The engine's files do not go together.
    #[error("{0}")]
    Engine(String),
    /// A tensor was bound to memory that does not fit it, or given a shape that it cannot have.
    #[error("tensor {tensor:?}: {what}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What was expected and what was found.
        what: String,
    },
    /// The owner thread panicked, or is gone.
    #[error("the device's thread: {0}")]
    Thread(String),
}

impl DeviceError {
    /// A binding or shape that does not fit a tensor.
    pub(crate) fn tensor(tensor: &str, what: impl Into<String>) -> Self {
        Self::Tensor { tensor: tensor.to_owned(), what: what.into() }
    }
}

impl From<DeviceError> for BackendError {
    fn from(error: DeviceError) -> Self {
        Self::Device { backend: BackendKind::TensorRt.name(), what: error.to_string() }
    }
}
