//! Why a calibration failed.

use roundhouse_backend::{BackendError, WeightError};
use roundhouse_graph::GraphError;
use roundhouse_lowering::LoweringError;
use roundhouse_sampling::SamplingError;

/// Why a calibration failed.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The model does not run on the CPU, or it was cancelled.
    #[error("calibration: {0}")]
    Backend(#[from] BackendError),
    /// A weight.
    #[error("calibration: {0}")]
    Weight(#[from] WeightError),
    /// A part of the model is no graph.
    #[error("calibration: {0}")]
    Graph(#[from] GraphError),
    /// The passes.
    #[error("calibration: {0}")]
    Lowering(#[from] LoweringError),
    /// The model's logits are nothing to sample from.
    #[error("calibration: the model's own text: {0}")]
    Sampling(#[from] SamplingError),
    /// The folder of its engines.
    #[error("calibration: {path}: {source}")]
    Io {
        /// The folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A value that cannot be written as JSON.
    #[error("calibration: JSON: {0}")]
    Json(#[from] serde_json::Error),
}
