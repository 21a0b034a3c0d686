//! How a backend fails the suite.

use roundhouse_backend::BackendError;
use roundhouse_graph::GraphError;

use crate::ReferenceError;

/// How a backend fails the suite. `case` says with which model, precision and cache kind.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The backend failed where it should not.
    #[error("{case}: {source}")]
    Backend {
        /// The case.
        case: String,
        /// What it said.
        source: BackendError,
    },
    /// The backend did something other than it should.
    #[error("{case}: {what}")]
    Departure {
        /// The case.
        case: String,
        /// What was expected and what was found.
        what: String,
    },
    /// The interpreter failed: the case itself is wrong.
    #[error("{case}: reference: {source}")]
    Reference {
        /// The case.
        case: String,
        /// What it said.
        source: ReferenceError,
    },
    /// The case's graph could not be made.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The temporary folder failed.
    #[error("temporary folder: {0}")]
    Io(#[from] std::io::Error),
}

impl Failure {
    pub(super) fn departure(case: &str, what: impl Into<String>) -> Self {
        Self::Departure { case: case.to_owned(), what: what.into() }
    }

    pub(super) fn reference(case: &str, source: ReferenceError) -> Self {
        Self::Reference { case: case.to_owned(), source }
    }
}

/// Names the case in which a backend failed.
pub(super) trait InCase<T> {
    fn in_case(self, case: &str) -> Result<T, Failure>;
}

impl<T> InCase<T> for Result<T, BackendError> {
    fn in_case(self, case: &str) -> Result<T, Failure> {
        self.map_err(|source| Failure::Backend { case: case.to_owned(), source })
    }
}
