//! What a conversion can fail with.

use roundhouse_backend::{BackendError, UnsupportedNode};
use roundhouse_graph::GraphError;
use roundhouse_tensorrt_network::NetworkError;

use crate::Uncovered;

/// What a conversion can fail with, by meaning.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConvertError {
    /// Nodes have an op without a converter, or a form of it that the converter has no layers for.
    #[error("no converter for {}", list(.0))]
    Unsupported(Vec<Uncovered>),
    /// An option that cannot be, by itself or with another.
    #[error("option {option}: {reason}")]
    Option {
        /// The option.
        option: &'static str,
        /// What does not go together.
        reason: String,
    },
    /// The graph is broken.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A converter wrote a layer that TensorRT would refuse: its mistake.
    #[error("converting {node:?}: {source}")]
    Network {
        /// The node's output.
        node: String,
        /// What is wrong with which layer.
        source: NetworkError,
    },
    /// A converter wrote layers that make something else than the graph's value: its mistake.
    #[error("converting {node:?}: the layers make {found}, the graph has {expected}")]
    Type {
        /// The node's output.
        node: String,
        /// Dtype and dimensions of the graph's value.
        expected: String,
        /// Dtype and dimensions of the network's tensor.
        found: String,
    },
    /// A converter was given a node that is not its own, or one without an operand it needs: this crate's mistake.
    #[error("converting {node:?}: {what}")]
    Internal {
        /// The node's output.
        node: String,
        /// What was expected and what was found.
        what: String,
    },
}

/// Nodes in a message, each with its reason.
fn list(nodes: &[Uncovered]) -> String {
    let each = nodes.iter().map(|node| format!("node {:?} ({}): {}", node.node, node.op, node.reason));
    each.collect::<Vec<_>>().join("; ")
}

impl From<Uncovered> for UnsupportedNode {
    fn from(node: Uncovered) -> Self {
        Self { node: node.node, op: node.op.to_owned(), reason: node.reason }
    }
}

impl From<ConvertError> for BackendError {
    fn from(error: ConvertError) -> Self {
        const BACKEND: &str = "tensorrt";
        match error {
            ConvertError::Unsupported(nodes) => {
                let nodes = nodes.into_iter().map(UnsupportedNode::from).collect();
                Self::UnsupportedNodes { backend: BACKEND, nodes }
            }
            ConvertError::Option { .. } => Self::InvalidArgument(error.to_string()),
            ConvertError::Graph(error) => Self::Graph(error),
            ConvertError::Network { .. } | ConvertError::Type { .. } | ConvertError::Internal { .. } => {
                Self::Device { backend: BACKEND, what: error.to_string() }
            }
        }
    }
}
