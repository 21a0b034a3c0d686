//! What can be wrong with a graph.

/// What can be wrong with a graph.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GraphError {
    /// A node has the wrong number of inputs.
    #[error("{op} takes {expected} inputs and was given {found}")]
    InputCount {
        /// The op.
        op: &'static str,
        /// How many it takes.
        expected: String,
        /// How many there were.
        found: usize,
    },
    /// An input's shape, rank or dtype does not fit the op.
    #[error("{op}: {what}")]
    Type {
        /// The op.
        op: &'static str,
        /// What was expected and what was found.
        what: String,
    },
    /// The graph's structure is broken: a use before its definition, an unknown value, a name used twice, ….
    #[error("graph {graph}: {what}")]
    Structure {
        /// The graph.
        graph: String,
        /// What is wrong and where.
        what: String,
    },
    /// A serialised graph could not be read.
    #[error("the graph is not valid JSON of this version: {0}")]
    Json(String),
}
