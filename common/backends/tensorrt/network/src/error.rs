//! What a network can be refused for.

use crate::TensorId;

/// A network that TensorRT would refuse, or that cannot be read.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum NetworkError {
    /// The operands or attributes do not fit the layer.
    #[error("layer {layer:?}: {what}")]
    Layer {
        /// The layer.
        layer: String,
        /// What was expected and what was found.
        what: String,
    },
    /// No input has these dimensions.
    #[error("input {input:?}: {what}")]
    Input {
        /// The input.
        input: String,
        /// What was expected and what was found.
        what: String,
    },
    /// A tensor cannot be this output.
    #[error("output {output:?}: {what}")]
    Output {
        /// The name that the output would have.
        output: String,
        /// What was expected and what was found.
        what: String,
    },
    /// A cache is not changed in place by one layer alone.
    #[error("cache update {layer:?}: {what}")]
    Cache {
        /// The layer.
        layer: String,
        /// What was expected and what was found.
        what: String,
    },
    /// A profile does not fit the inputs.
    #[error("profile {profile}, input {input:?}: {what}")]
    Profile {
        /// Which profile, from 0.
        profile: usize,
        /// The input.
        input: String,
        /// What was expected and what was found.
        what: String,
    },
    /// A name is taken.
    #[error("two tensors or layers are named {0:?}")]
    Duplicate(String),
    /// A tensor of another network, or one that is made later.
    #[error("there is no tensor {} at this point", .0.0)]
    NoSuchTensor(TensorId),
    /// Bytes that are no network in JSON.
    #[error("not a network in JSON: {0}")]
    Json(String),
    /// A stored network that contradicts itself.
    #[error("stored network: {0}")]
    Stored(String),
}
