//! What building a graph can fail with.

use roundhouse_backend::WeightError;
use roundhouse_graph::GraphError;

use crate::ConfigError;

/// What building a graph can fail with.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No family builds this architecture.
    #[error("architecture {found} is not supported: expected one of {supported}")]
    UnsupportedArchitecture {
        /// What the config names.
        found: String,
        /// The architectures that are.
        supported: String,
    },
    /// A field of config.json is missing, malformed, or asks for something that is not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tensor is missing from the checkpoint or does not have the shape that the config gives it.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The config says that the output layer has its own weight, and the checkpoint has none.
    #[error(
        "the checkpoint has no tensor {name:?} although tie_word_embeddings is false: it is incomplete, or its \
         config.json is another model's"
    )]
    MissingHead {
        /// The tensor.
        name: String,
    },
    /// The checkpoint holds tensors that the model would not read, so the graph would not compute what it means.
    #[error("the checkpoint has {count} tensors that {architecture} with this config does not use: {names}")]
    UnusedTensors {
        /// The architecture.
        architecture: &'static str,
        /// How many there are.
        count: usize,
        /// The first few.
        names: String,
    },
    /// The graph does not hold together.
    #[error(transparent)]
    Graph(#[from] GraphError),
}
