//! The folders of a cache and the lock over them. All of it blocks.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::CacheLimits;
use crate::StoreError;

/// The folders of a cache.
#[derive(Debug)]
pub(super) struct CacheFolder {
    pub(super) root: PathBuf,
    pub(super) limits: CacheLimits,
    pub(super) blobs: PathBuf,
    pub(super) verified: PathBuf,
    pub(super) arriving: PathBuf,
    lock: PathBuf,
}

impl CacheFolder {
    pub(super) fn open(root: PathBuf, limits: CacheLimits) -> Result<Self, StoreError> {
        let folder = Self {
            blobs: root.join("blobs/sha256"),
            verified: root.join("verified"),
            arriving: root.join("tmp"),
            lock: root.join("lock"),
            root,
            limits,
        };
        for path in [&folder.blobs, &folder.verified, &folder.arriving] {
            std::fs::create_dir_all(path).map_err(|error| StoreError::from_write(error, path, 0))?;
        }
        Ok(folder)
    }

    pub(super) fn blob_path(&self, digest: &str) -> PathBuf {
        self.blobs.join(digest)
    }

    pub(super) fn record_path(&self, digest: &str) -> PathBuf {
        self.verified.join(format!("{digest}.json"))
    }

    /// A new file for something that arrives. It is removed when dropped.
    pub(super) fn new_file(&self, prefix: &str) -> Result<NamedTempFile, StoreError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(std::fs::Permissions::from_mode(0o644));
        }
        builder.tempfile_in(&self.arriving).map_err(|error| StoreError::from_write(error, &self.arriving, 0))
    }

    /// Does something while no other thread or process makes room in this cache.
    pub(super) fn locked<T>(&self, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let io = |error| StoreError::from_write(error, &self.lock, 0);
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(&self.lock).map_err(io)?;
        lock.lock().map_err(io)?;
        work()
        // Closing the file unlocks it.
    }
}

/// Makes a rename in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| StoreError::from_io(error, folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}
