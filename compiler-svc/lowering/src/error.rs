//! What lowering can fail with.

use roundhouse_graph::GraphError;

/// What lowering can fail with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LoweringError {
    /// An option does not fit the model.
    #[error("{option} is {found}: expected {expected}")]
    Options {
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What the model allows.
        expected: String,
    },
    /// The graph holds something for which the pass has no equivalent.
    #[error("{pass}: {what}")]
    Unsupported {
        /// The pass.
        pass: &'static str,
        /// What it met, with the value's name.
        what: String,
    },
    /// An edit did not hold together.
    #[error(transparent)]
    Graph(#[from] GraphError),
}
