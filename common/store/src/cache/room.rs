//! Room in the cache: what it holds, and what has to go. All of it blocks, and all but [`CacheFolder::usage`] runs under
//! the cache's lock.

use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fs4::FileExt as _;
use tempfile::NamedTempFile;

use super::CacheUsage;
use super::folder::CacheFolder;
use super::lookup::is_at;
use crate::StoreError;

/// How long a new file may be without its owner's lock.
const UNLOCKED_GRACE: Duration = Duration::from_secs(60);

/// A blob of the cache.
struct Held {
    digest: String,
    bytes: u64,
    last_used: SystemTime,
}

impl CacheFolder {
    pub(super) fn usage(&self) -> Result<CacheUsage, StoreError> {
        let blobs = self.held()?;
        let bytes = blobs.iter().map(|blob| blob.bytes).sum::<u64>() + self.arriving_bytes()?;
        Ok(CacheUsage { blobs: blobs.len() as u64, bytes })
    }

    /// A file for `bytes` that arrive, with its room reserved where the file system can.
    pub(super) fn reserve(&self, digest: &str, bytes: u64) -> Result<NamedTempFile, StoreError> {
        self.locked(|| {
            self.make_room(bytes)?;
            let file = self.new_file(&format!("{digest}-"))?;
            let path = file.path();
            // For as long as it is locked, its owner lives.
            file.as_file().lock().map_err(|error| StoreError::from_io(error, path))?;
            allocate(file.as_file(), bytes).map_err(|error| StoreError::from_write(error, path, bytes))?;
            Ok(file)
        })
    }

    /// Evicts until `bytes` more fit, under the cache's limit and on the disk.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.remove_abandoned()?;
        let mut blobs = self.held()?;
        blobs.sort_by_key(|blob| std::cmp::Reverse(blob.last_used));
        let evictable = blobs.iter().map(|blob| blob.bytes).sum::<u64>();
        let arriving = self.arriving_bytes()?;
        let free =
            || fs4::available_space(&self.root).map_err(|error| StoreError::from_io(error, &self.root));
        // What can never fit evicts nothing.
        self.check_room(bytes, arriving, free()?.saturating_add(evictable))?;
        let mut used = evictable.saturating_add(arriving);
        loop {
            let fits = self.check_room(bytes, used, free()?);
            let (Err(_), Some(oldest)) = (&fits, blobs.pop()) else { return fits };
            if self.evict(&oldest)? {
                used = used.saturating_sub(oldest.bytes);
            }
        }
    }

    /// Whether `bytes` more fit beside `used` in the cache and into `free` on the disk.
    fn check_room(&self, bytes: u64, used: u64, free: u64) -> Result<(), StoreError> {
        match self.limits.max_bytes {
            Some(limit) if used.saturating_add(bytes) > limit => {
                Err(StoreError::CacheFull { path: self.root.clone(), limit, needed: bytes, in_use: used })
            }
            _ if free < bytes => Err(StoreError::DiskFull { path: self.root.clone(), needed: bytes, free }),
            _ => Ok(()),
        }
    }

    /// Removes a blob unless somebody leases it. Says whether it is gone.
    fn evict(&self, blob: &Held) -> Result<bool, StoreError> {
        let path = self.blob_path(&blob.digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(StoreError::from_io(error, &path)),
        };
        if !is_free(&file, &path)? || !is_at(&file, &path)? {
            return Ok(false);
        }
        // Still locked, so that nobody leases it between the check and the removal.
        self.remove(&blob.digest)?;
        tracing::info!(digest = %blob.digest, bytes = blob.bytes, "blob evicted from the cache");
        Ok(true)
    }

    /// Removes files that arrive for nobody: their owner holds no lock on them any more.
    pub(super) fn remove_abandoned(&self) -> Result<(), StoreError> {
        for (name, meta) in entries(&self.arriving)? {
            let path = self.arriving.join(name);
            let age = meta.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
            if age.unwrap_or_default() < UNLOCKED_GRACE {
                continue;
            }
            let abandoned = match File::open(&path) {
                Ok(file) => is_free(&file, &path)?,
                Err(_) => false,
            };
            if abandoned {
                tracing::info!(path = %path.display(), "removing an abandoned download");
                // Gone meanwhile is as good.
                let _ = std::fs::remove_file(&path);
            }
        }
        Ok(())
    }

    fn held(&self) -> Result<Vec<Held>, StoreError> {
        let held = entries(&self.blobs)?.into_iter().map(|(digest, meta)| {
            let record = std::fs::metadata(self.record_path(&digest));
            let last_used = record.and_then(|record| record.modified()).or_else(|_| meta.modified());
            Held { digest, bytes: meta.len(), last_used: last_used.unwrap_or(SystemTime::UNIX_EPOCH) }
        });
        Ok(held.collect())
    }

    fn arriving_bytes(&self) -> Result<u64, StoreError> {
        Ok(entries(&self.arriving)?.iter().map(|(_, meta)| meta.len()).sum())
    }
}

/// Whether nobody else has this file locked. It stays locked until it is closed.
fn is_free(file: &File, path: &Path) -> Result<bool, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(StoreError::from_io(error, path)),
    }
}

/// Gives a file its final size. Its blocks are reserved where the file system can, so that a full disk shows now.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match file.allocate(bytes) {
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => {
            file.set_len(bytes)
        }
        result => result,
    }
}

/// The files of a folder by name; those that go meanwhile are left out.
fn entries(folder: &Path) -> Result<Vec<(String, Metadata)>, StoreError> {
    let entries = std::fs::read_dir(folder).map_err(|error| StoreError::from_io(error, folder))?;
    let files = entries.flatten().filter_map(|entry| {
        let meta = entry.metadata().ok().filter(Metadata::is_file)?;
        Some((entry.file_name().into_string().ok()?, meta))
    });
    Ok(files.collect())
}
