//! What a build can fail with.

use roundhouse_backend::BackendError;
use roundhouse_tensorrt_library::TensorRtError;

/// The backend's name in errors.
pub(crate) const BACKEND: &str = "tensorrt";

/// A network that TensorRT does not take as it is.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ReplayError {
    /// TensorRT infers another output than the network says.
    #[error("layer {layer:?} makes {theirs} by TensorRT's rules, {ours} by the network's")]
    Output {
        /// The layer.
        layer: String,
        /// Dtype and dimensions that the network says.
        ours: String,
        /// Those that TensorRT infers.
        theirs: String,
    },
    /// TensorRT holds another layer than it was given.
    #[error("layer {layer:?}: TensorRT holds {what} {theirs}, the network has {ours}")]
    Held {
        /// The layer.
        layer: String,
        /// Which attribute or operand.
        what: String,
        /// As the network has it.
        ours: String,
        /// As TensorRT does.
        theirs: String,
    },
    /// A layer with operands or attributes that its kind does not have.
    #[error("layer {layer:?}: {what}")]
    Malformed {
        /// The layer.
        layer: String,
        /// What is wrong with it.
        what: String,
    },
    /// A constant is a weight that the weights file lacks, or holds otherwise.
    #[error("layer {layer:?}: weight {weight:?} {what}")]
    Weight {
        /// The constant.
        layer: String,
        /// The weight.
        weight: String,
        /// What is wrong with it.
        what: String,
    },
    /// TensorRT refused a call.
    #[error(transparent)]
    TensorRt(#[from] TensorRtError),
}

impl From<ReplayError> for BackendError {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::TensorRt(TensorRtError::Cancelled) => Self::Cancelled,
            error => Self::Device { backend: BACKEND, what: error.to_string() },
        }
    }
}
