//! Whether a blob is here, and right. All of it blocks.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use roundhouse_engine::BlobRef;
use serde::{Deserialize, Serialize};

use super::folder::CacheFolder;
use crate::{StoreError, digest};

/// What a file was like when its digest was found right.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    size: u64,
    /// Since 1970-01-01 UTC.
    modified_seconds: u64,
    modified_nanoseconds: u32,
    inode: u64,
    device: u64,
}

impl Fingerprint {
    fn of(meta: &Metadata) -> Self {
        let modified = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified = modified.unwrap_or_default();
        let (inode, device) = identity(meta);
        Self {
            size: meta.len(),
            modified_seconds: modified.as_secs(),
            modified_nanoseconds: modified.subsec_nanos(),
            inode,
            device,
        }
    }
}

/// Which file it is, whatever its name: inode and device. Zeros where the system has no such thing.
fn identity(meta: &Metadata) -> (u64, u64) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        (meta.ino(), meta.dev())
    }
    #[cfg(not(unix))]
    {
        let _ = meta;
        (0, 0)
    }
}

/// How a file differs from the blob that it should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// Bytes found.
    Size(u64),
    /// Digest found.
    Digest(String),
}

impl Mismatch {
    pub(super) fn into_error(self, blob: &BlobRef) -> StoreError {
        match self {
            Self::Size(found) => StoreError::WrongSize {
                blob: blob.name.clone(),
                digest: blob.sha256.clone(),
                expected: blob.size,
                found,
            },
            Self::Digest(found) => {
                StoreError::Corrupt { blob: blob.name.clone(), expected: blob.sha256.clone(), found }
            }
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "found {size} bytes"),
            Self::Digest(digest) => write!(f, "found sha256 {digest}"),
        }
    }
}

impl CacheFolder {
    /// Leases a blob of the cache: the file, with a shared lock that keeps it from eviction. None when it is not here;
    /// one that is here and wrong is removed first.
    pub(super) fn lookup(&self, blob: &BlobRef) -> Result<Option<File>, StoreError> {
        let path = self.blob_path(&blob.sha256);
        let Some(file) = open(&path)? else { return Ok(None) };
        file.lock_shared().map_err(|error| StoreError::from_io(error, &path))?;
        // Evicted between the opening and the lock: what was leased has no name any more.
        if !is_at(&file, &path)? {
            return Ok(None);
        }
        match self.verify(blob, &file, &path)? {
            Ok(()) => Ok(Some(file)),
            Err(mismatch) => {
                tracing::warn!(path = %path.display(), %mismatch, "corrupt blob removed from the cache");
                self.remove(&blob.sha256)?;
                Ok(None)
            }
        }
    }

    /// Checks a blob anywhere. None when there is no such file.
    pub(super) fn verify_at(
        &self,
        blob: &BlobRef,
        path: &Path,
    ) -> Result<Option<Result<(), Mismatch>>, StoreError> {
        open(path)?.map(|file| self.verify(blob, &file, path)).transpose()
    }

    /// Checks a file against the record of its last check, or else by hashing it.
    fn verify(&self, blob: &BlobRef, file: &File, path: &Path) -> Result<Result<(), Mismatch>, StoreError> {
        let meta = file.metadata().map_err(|error| StoreError::from_io(error, path))?;
        if meta.len() != blob.size {
            return Ok(Err(Mismatch::Size(meta.len())));
        }
        let before = Fingerprint::of(&meta);
        if self.recorded(&blob.sha256).is_some_and(|recorded| recorded == before) {
            self.touch(&blob.sha256);
            return Ok(Ok(()));
        }
        let (found, size) = digest::hash(file, path, || false)?;
        if size != blob.size {
            return Ok(Err(Mismatch::Size(size)));
        }
        if found != blob.sha256 {
            return Ok(Err(Mismatch::Digest(found)));
        }
        // As it was before it was read: a write meanwhile makes the record stale at once.
        self.record(&blob.sha256, &before);
        Ok(Ok(()))
    }

    /// Records that a file's digest was just found right.
    pub(super) fn record_verified(&self, digest: &str, file: &File) {
        if let Ok(meta) = file.metadata() {
            self.record(digest, &Fingerprint::of(&meta));
        }
    }

    fn recorded(&self, digest: &str) -> Option<Fingerprint> {
        let json = std::fs::read(self.record_path(digest)).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// A record that cannot be written costs a hash at the next use, nothing else.
    fn record(&self, digest: &str, fingerprint: &Fingerprint) {
        let written = self.new_file("record-").and_then(|file| {
            let io = |error| StoreError::from_io(error, file.path());
            serde_json::to_writer(file.as_file(), fingerprint).map_err(|error| io(error.into()))?;
            let path = self.record_path(digest);
            file.persist(&path).map_err(|error| StoreError::from_io(error.error, &path))
        });
        if let Err(error) = written {
            tracing::debug!(%digest, %error, "the verification is not recorded");
        }
    }

    /// The record's time is the blob's last use.
    fn touch(&self, digest: &str) {
        let path = self.record_path(digest);
        let touched =
            File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(%digest, %error, "the use is not recorded");
        }
    }

    /// Removes a blob and its record. One that is gone already is fine.
    pub(super) fn remove(&self, digest: &str) -> Result<(), StoreError> {
        for path in [self.blob_path(digest), self.record_path(digest)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::from_io(error, &path));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<Option<File>, StoreError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::from_io(error, path)),
    }
}

/// Whether a file still has this name.
pub(super) fn is_at(file: &File, path: &Path) -> Result<bool, StoreError> {
    let io = |error| StoreError::from_io(error, path);
    match std::fs::metadata(path) {
        Ok(named) => Ok(identity(&named) == identity(&file.metadata().map_err(io)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io(error)),
    }
}
