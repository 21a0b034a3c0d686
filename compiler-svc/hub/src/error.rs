//! What opening a checkpoint can fail with.

use std::path::{Path, PathBuf};

/// What opening a checkpoint can fail with, by meaning.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The text names no model: neither a path, a URL, nor a hub id.
    #[error("{text:?} names no model: {what}")]
    InvalidSource {
        /// The text as given.
        text: String,
        /// What is wrong with it.
        what: String,
    },
    /// A path that is not there.
    #[error("{} does not exist", path.display())]
    PathNotFound {
        /// The path.
        path: PathBuf,
    },
    /// This service does not open paths of its own machine.
    #[error("{path:?} is a local path, and this service opens none: name a hub model or an object-store URL")]
    LocalPathsForbidden {
        /// The path as given.
        path: String,
    },
    /// The hub or the object store has no such model.
    #[error(
        "there is no model {model:?} at {endpoint} (or it is private: set HF_TOKEN to a token that may read it)"
    )]
    ModelNotFound {
        /// The model.
        model: String,
        /// Where it was looked for.
        endpoint: String,
    },
    /// The model has no such branch, tag or commit.
    #[error("model {model:?} has no revision {revision:?}")]
    RevisionNotFound {
        /// The model.
        model: String,
        /// The branch, tag or commit.
        revision: String,
    },
    /// The hub asks for permission.
    #[error("model {model:?} is not open to {who}: {action}")]
    AccessDenied {
        /// The model.
        model: String,
        /// Who asked: the configured token, or nobody.
        who: &'static str,
        /// What to do about it.
        action: String,
    },
    /// Nothing is cached, and the network must not be used.
    #[error("model {model:?}: {what} is not cached and the hub is offline (HF_HUB_OFFLINE)")]
    Offline {
        /// The model.
        model: String,
        /// The missing revision or file.
        what: String,
    },
    /// The hub could not be reached, or a connection broke and resuming did not help.
    #[error("{url}: {what}")]
    Network {
        /// What was asked for.
        url: String,
        /// What happened.
        what: String,
    },
    /// The hub answered with something else than its API promises.
    #[error("{url}: {what}")]
    UnexpectedAnswer {
        /// What was asked for.
        url: String,
        /// What was unexpected about the answer.
        what: String,
    },
    /// An object store failed.
    #[error("{url}: {source}")]
    ObjectStore {
        /// The object.
        url: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// The checkpoint lacks a file that every checkpoint needs.
    #[error("{place} has no {file}")]
    MissingFile {
        /// The folder, model or URL.
        place: String,
        /// The file.
        file: String,
    },
    /// The checkpoint has no tokenizer that an executor could use.
    #[error(
        "{place} has no tokenizer.json; save one with transformers' \
         AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )]
    MissingTokenizer {
        /// The folder, model or URL.
        place: String,
    },
    /// The checkpoint is in a form that this crate does not read.
    #[error("{place}: {found} is not supported; supported: {supported}")]
    Unsupported {
        /// The folder, file, model or URL.
        place: String,
        /// What it has.
        found: String,
        /// What would do.
        supported: String,
    },
    /// A file is broken.
    #[error("{}: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        what: String,
    },
    /// A local file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The caller stopped it.
    #[error("cancelled")]
    Cancelled,
}

impl HubError {
    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), what: what.into() }
    }

    /// For `map_err`: an I/O error of `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
