//! What running a network can fail with.

use roundhouse_tensorrt_network::NetworkError;

/// What running a network can fail with.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum InterpreterError {
    /// The network does not verify.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A weight is missing or has another number of elements.
    #[error("weight {name:?}: {what}")]
    Weight {
        /// The weight.
        name: String,
        /// What was expected and what was found.
        what: String,
    },
    /// An input is missing, superfluous, or of another shape or kind.
    #[error("input {name:?}: {what}")]
    Input {
        /// The input.
        name: String,
        /// What was expected and what was found.
        what: String,
    },
    /// No profile allows inputs of these shapes and values.
    #[error("no profile allows these inputs: {}", .0.join("; "))]
    Profile(Vec<String>),
    /// A layer cannot run on what it was given.
    #[error("layer {layer:?}: {what}")]
    Layer {
        /// The layer.
        layer: String,
        /// What was expected and what was found.
        what: String,
    },
    /// An output cannot share its memory with the input that it aliases.
    #[error("output {name:?}: {what}")]
    Output {
        /// The output.
        name: String,
        /// What was expected and what was found.
        what: String,
    },
}
