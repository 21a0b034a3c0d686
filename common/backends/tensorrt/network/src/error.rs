//! What a network can be refused for.

/// A layer that TensorRT would refuse.
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
    /// A name is taken.
    #[error("two tensors or layers are named {0:?}")]
    Duplicate(String),
}
