//! What a backend can fail with.

use std::ops::Range;

use crate::WeightError;

/// A node of a graph that a backend cannot run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedNode {
    /// The node's name.
    pub node: String,
    /// Its op's name.
    pub op: String,
    /// Why it cannot.
    pub reason: String,
}

/// What a backend can fail with, by meaning.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The backend has no way to do something that the graph asks for.
    #[error("the {backend} backend does not support {what}")]
    Unsupported {
        /// The backend.
        backend: &'static str,
        /// The op, dtype or option, with the node's name.
        what: String,
    },
    /// The backend has no way to run some of the graph's nodes.
    #[error("the {backend} backend does not support {}", list(nodes))]
    UnsupportedNodes {
        /// The backend.
        backend: &'static str,
        /// All of them, in the graph's order.
        nodes: Vec<UnsupportedNode>,
    },
    /// The engine was built for something else.
    #[error("engine {key} was built for {found}; this machine needs {needed}")]
    Incompatible {
        /// The engine's key.
        key: String,
        /// Its target, backend or version.
        found: String,
        /// This machine's.
        needed: String,
    },
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    InvalidArgument(String),
    /// A sequence would grow past its cache.
    #[error("{tokens} tokens do not fit: the cache holds {length} of at most {capacity}")]
    CacheFull {
        /// New tokens.
        tokens: usize,
        /// Tokens in the cache.
        length: usize,
        /// Tokens it can hold.
        capacity: usize,
    },
    /// A cache does not hold these positions any more.
    #[error(
        "positions {positions:?} are gone: a layer with a sliding window keeps those from {first_held} on"
    )]
    PositionsLost {
        /// The positions asked for.
        positions: Range<usize>,
        /// The first one that every layer still holds.
        first_held: usize,
    },
    /// A weight could not be read.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The artifact is broken.
    #[error("engine {key}: {what}")]
    Corrupt {
        /// The engine's key.
        key: String,
        /// What is wrong in which file.
        what: String,
    },
    /// The graph is broken.
    #[error(transparent)]
    Graph(#[from] roundhouse_graph::GraphError),
    /// The manifest is broken.
    #[error(transparent)]
    Manifest(#[from] roundhouse_engine::ManifestError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The device's memory is taken.
    #[error("{backend}: out of memory on the device: {needed} bytes more are needed and {free} are free")]
    OutOfMemory {
        /// The backend.
        backend: &'static str,
        /// Bytes asked for.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The device, or this process' use of it, is broken: nothing works on it any more.
    #[error("{backend}: {what}")]
    DeviceLost {
        /// The backend.
        backend: &'static str,
        /// The driver's words.
        what: String,
    },
    /// The backend's library or device failed, in its own words.
    #[error("{backend}: {what}")]
    Device {
        /// The backend.
        backend: &'static str,
        /// Its own words.
        what: String,
    },
}

/// Nodes in a message, each with its reason.
fn list(nodes: &[UnsupportedNode]) -> String {
    let each = nodes.iter().map(|node| format!("{} ({}): {}", node.node, node.op, node.reason));
    each.collect::<Vec<_>>().join("; ")
}
