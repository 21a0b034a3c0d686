//! What can go wrong with TensorRT.

use std::path::PathBuf;

use crate::device::DeviceError;
use crate::{Flavour, RecordedError, Version};

/// A library that cannot be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum LibraryError {
    /// It is nowhere.
    #[error("{flavour} was not found; looked for {}. To get it: {}", looked.join(", "), flavour.how_to_get())]
    NotFound {
        /// The flavour that this program needs.
        flavour: Flavour,
        /// Every place looked at.
        looked: Vec<String>,
    },
    /// Another version than this program was compiled for. Plans and interfaces are of one version.
    #[error("{} is {found}; this program needs {needed}. To get it: {}", path.display(), needed.flavour().how_to_get())]
    VersionMismatch {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The version of the headers.
        needed: Version,
    },
    /// The other product.
    #[error("{} is {found}; this program was compiled for {needed}. To get it: {}", path.display(), needed.how_to_get())]
    WrongFlavour {
        /// The library.
        path: PathBuf,
        /// What it is.
        found: Flavour,
        /// What is needed.
        needed: Flavour,
    },
    /// A file that cannot be loaded or is no TensorRT.
    #[error("{} cannot be loaded: {what}", path.display())]
    LoadFailed {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        what: String,
    },
    /// A process has one TensorRT.
    #[error("{} cannot be loaded: this process has loaded {}", asked.display(), loaded.display())]
    AlreadyLoaded {
        /// The library in use.
        loaded: PathBuf,
        /// The other one.
        asked: PathBuf,
    },
}

/// A call that TensorRT refused, or that would have been unsafe to make.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum TensorRtError {
    /// TensorRT refused something.
    #[error("TensorRT refused {what}: {}", said(errors))]
    Refused {
        /// What was asked of it.
        what: String,
        /// In its own words.
        errors: Vec<RecordedError>,
    },
    /// The caller asked for something that TensorRT would have taken without a word, or crashed on.
    #[error("{what}")]
    Misuse {
        /// What was wrong with the call.
        what: String,
    },
    /// A monitor or writer stopped the build.
    #[error("cancelled")]
    Cancelled,
    /// A callback panicked. The panic was caught before it could reach C++, and the build stopped.
    #[error("a callback of TensorRT panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// `trtx` is not what this crate was written for.
    #[error("the crate trtx has changed: {what}")]
    Binding {
        /// What was expected and what was found.
        what: String,
    },
    /// This flavour builds on a GPU only.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No library.
    #[error(transparent)]
    Library(#[from] LibraryError),
}

impl TensorRtError {
    /// A misuse.
    pub(crate) fn misuse(what: impl Into<String>) -> Self {
        Self::Misuse { what: what.into() }
    }
}

fn said(errors: &[RecordedError]) -> String {
    if errors.is_empty() {
        return "it did not say why".to_owned();
    }
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
