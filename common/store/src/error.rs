//! What a store or the cache can fail with.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use roundhouse_engine::ManifestError;

/// The error below an error, whatever it is.
pub type Source = Box<dyn StdError + Send + Sync>;

/// What a store or the cache can fail with, by meaning.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not the address of a store.
    #[error("{url:?} is no store: {what}")]
    InvalidUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// No storage service knows this option.
    #[error("unknown storage option {name:?}: expected one of object_store's, such as aws_region")]
    UnknownOption {
        /// The option.
        name: String,
    },
    /// The caller's arguments contradict each other or themselves.
    #[error("{what}")]
    InvalidArgument {
        /// Which, and how.
        what: String,
    },
    /// The store has no such engine or object.
    #[error("{what} is not in {store}")]
    NotFound {
        /// What was looked for.
        what: String,
        /// Where.
        store: String,
    },
    /// A manifest names a blob that the store does not have.
    #[error("engine {key}: blob {blob} (sha256 {digest}) is not in {store}: build the engine again")]
    MissingBlob {
        /// The engine.
        key: String,
        /// The blob's role.
        blob: String,
        /// Its digest.
        digest: String,
        /// The store.
        store: String,
    },
    /// The object is there already.
    #[error("{what} exists already in {store}")]
    AlreadyExists {
        /// What was to be created.
        what: String,
        /// Where.
        store: String,
    },
    /// A blob's bytes are not those that the manifest promises.
    #[error("blob {blob} is corrupt: expected sha256 {expected}, found {found}")]
    Corrupt {
        /// The blob's role.
        blob: String,
        /// The manifest's digest.
        expected: String,
        /// The digest of the bytes.
        found: String,
    },
    /// A blob is shorter or longer than the manifest promises.
    #[error("blob {blob} (sha256 {digest}) is corrupt: expected {expected} bytes, found {found}")]
    WrongSize {
        /// The blob's role.
        blob: String,
        /// The manifest's digest.
        digest: String,
        /// The manifest's size in bytes.
        expected: u64,
        /// The size found, in bytes.
        found: u64,
    },
    /// A manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The disk has no room.
    #[error("no space left for {}: needs {needed} bytes, {free} are free", path.display())]
    DiskFull {
        /// The file or folder.
        path: PathBuf,
        /// Bytes that were to be written.
        needed: u64,
        /// Bytes that the file system has left.
        free: u64,
    },
    /// The cache's own limit leaves no room, even after everything that is not in use was evicted.
    #[error(
        "the cache {} has no room for {needed} bytes: its limit is {limit}, {in_use} are in use or arriving",
        path.display()
    )]
    CacheFull {
        /// The cache's folder.
        path: PathBuf,
        /// Its limit in bytes.
        limit: u64,
        /// Bytes that were to be written.
        needed: u64,
        /// Bytes that cannot be evicted.
        in_use: u64,
    },
    /// The storage service cannot be reached or does not answer: worth trying again.
    #[error("{what}: the storage service failed: {source}")]
    Unavailable {
        /// What was asked of which store.
        what: String,
        /// What the client said.
        source: Source,
    },
    /// The credentials are missing, wrong or not enough.
    #[error("{what}: permission denied: {source}")]
    PermissionDenied {
        /// What was asked of which store.
        what: String,
        /// What the store said.
        source: Source,
    },
    /// The storage service cannot do this.
    #[error("{what}: not supported: {source}")]
    Unsupported {
        /// What was asked of which store.
        what: String,
        /// What the client said.
        source: Source,
    },
    /// A local file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether the thing asked for is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The meaning of what a storage client said about `object` of `store`.
    pub(crate) fn from_client(error: object_store::Error, object: &str, store: &str) -> Self {
        use object_store::Error as Client;
        let what = format!("{object} of {store}");
        match error {
            Client::NotFound { .. } => Self::NotFound { what: object.to_owned(), store: store.to_owned() },
            Client::AlreadyExists { .. } => {
                Self::AlreadyExists { what: object.to_owned(), store: store.to_owned() }
            }
            Client::PermissionDenied { .. } | Client::Unauthenticated { .. } => {
                Self::PermissionDenied { what, source: error.into() }
            }
            Client::NotSupported { .. } | Client::NotImplemented { .. } => {
                Self::Unsupported { what, source: error.into() }
            }
            Client::Generic { store: "LocalFileSystem", source } => {
                Self::from_local_client(source, what, Path::new(store).join(object))
            }
            other => Self::Unavailable { what, source: other.into() },
        }
    }

    /// The meaning of what the local folder's client said: it wraps the system's error.
    fn from_local_client(source: Source, what: String, path: PathBuf) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(source.as_ref());
        while let Some(error) = cause {
            if let Some(system) = error.downcast_ref::<io::Error>() {
                return match system.kind() {
                    io::ErrorKind::PermissionDenied => Self::PermissionDenied { what, source },
                    // The client's text says what it was doing.
                    kind => Self::Io { path, source: io::Error::new(kind, source.to_string()) },
                };
            }
            cause = error.source();
        }
        Self::Unavailable { what, source }
    }

    /// The meaning of a system's error about a local file, of which `needed` bytes were to be written.
    pub(crate) fn from_write(source: io::Error, path: &Path, needed: u64) -> Self {
        if is_disk_full(&source) {
            return Self::disk_full(path, needed);
        }
        Self::from_io(source, path)
    }

    /// The meaning of a system's error about a local file.
    pub(crate) fn from_io(source: io::Error, path: &Path) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => {
                Self::PermissionDenied { what: path.display().to_string(), source: source.into() }
            }
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// [`StoreError::DiskFull`] with what is free around `path` now.
    pub(crate) fn disk_full(path: &Path, needed: u64) -> Self {
        let around = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
        let free = fs4::available_space(around).unwrap_or(0);
        Self::DiskFull { path: path.to_owned(), needed, free }
    }

    /// A background thread that did not end by itself: the runtime shuts down.
    pub(crate) fn from_join(error: tokio::task::JoinError) -> Self {
        Self::Unavailable { what: "a background thread".to_owned(), source: error.into() }
    }

    /// Whether this is a write that found no room.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_disk_full(source))
    }
}

/// Runs blocking work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(StoreError::from_join)?
}

/// Whether a write failed for want of room, on the disk or in the user's quota.
fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(store: &'static str, source: impl Into<Source>) -> object_store::Error {
        object_store::Error::Generic { store, source: source.into() }
    }

    #[test]
    fn client_errors_keep_their_meaning() {
        let source = || Source::from("said so");
        let path = || "p".to_owned();
        let map = |error| StoreError::from_client(error, "engines/k", "s3://bucket");
        let error = map(object_store::Error::NotFound { path: path(), source: source() });
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "engines/k is not in s3://bucket");
        let error = map(object_store::Error::AlreadyExists { path: path(), source: source() });
        assert!(matches!(error, StoreError::AlreadyExists { .. }));
        for error in [
            object_store::Error::PermissionDenied { path: path(), source: source() },
            object_store::Error::Unauthenticated { path: path(), source: source() },
            generic("LocalFileSystem", io::Error::from(io::ErrorKind::PermissionDenied)),
        ] {
            assert!(matches!(map(error), StoreError::PermissionDenied { .. }));
        }
        let error = map(object_store::Error::NotSupported { source: source() });
        assert!(matches!(error, StoreError::Unsupported { .. }));
        let error = map(generic("LocalFileSystem", io::Error::from(io::ErrorKind::StorageFull)));
        assert!(error.is_disk_full());
    }

    #[test]
    fn only_a_failing_service_is_worth_another_try() {
        let map = |error| StoreError::from_client(error, "o", "s");
        assert!(map(generic("S3", "503 Slow Down")).is_retryable());
        assert!(
            !map(generic("LocalFileSystem", io::Error::from(io::ErrorKind::IsADirectory))).is_retryable()
        );
        assert!(
            !map(object_store::Error::NotFound { path: String::new(), source: "gone".into() }).is_retryable()
        );
    }
}
