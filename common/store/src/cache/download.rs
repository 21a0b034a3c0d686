//! One blob from the store to the cache.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{GetOptions, ObjectStore as _};
use roundhouse_engine::{BlobRef, Manifest};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::{AcquireError, Semaphore, mpsc};

use super::LocalCache;
use super::folder::{CacheFolder, sync_folder};
use super::lookup::Mismatch;
use crate::digest::hex;
use crate::engine_store::blob_path;
use crate::error::blocking;
use crate::progress::BlobTracker;
use crate::{EngineStore, StoreError};

/// Ranges that wait for the disk.
const RANGES_WAITING: usize = 2;

/// How a download ended.
pub(super) enum Written {
    /// In the cache, leased.
    Installed(File),
    /// Another process was faster.
    LostRace,
    /// The bytes are not the blob's; nothing was kept.
    Mismatch(Mismatch),
}

impl LocalCache {
    /// Fetches a blob into a file of its own, hashing as it arrives, and gives it its name when the digest is right.
    pub(super) async fn download(
        &self,
        store: &EngineStore,
        manifest: &Manifest,
        blob: &BlobRef,
        requests: &Arc<Semaphore>,
        tracker: &mut BlobTracker<'_>,
    ) -> Result<Written, StoreError> {
        let (folder, digest, size) = (self.folder.clone(), blob.sha256.clone(), blob.size);
        let file = blocking(move || folder.reserve(&digest, size)).await?;
        let (sender, chunks) = mpsc::channel(RANGES_WAITING);
        let arrival = Arrival { folder: self.folder.clone(), file, blob: blob.clone() };
        let writing = tokio::task::spawn_blocking(move || arrival.write(chunks));
        let fetched = store.fetch_ranges(manifest, blob, requests, sender, tracker).await;
        // Always waited for, so that its file is gone when a failure is reported.
        let written = writing.await.map_err(StoreError::from_join)?;
        fetched?;
        written
    }
}

impl EngineStore {
    /// Fetches a blob's ranges, several at once, and sends them on in their order.
    async fn fetch_ranges(
        &self,
        manifest: &Manifest,
        blob: &BlobRef,
        requests: &Arc<Semaphore>,
        chunks: mpsc::Sender<Bytes>,
        tracker: &mut BlobTracker<'_>,
    ) -> Result<(), StoreError> {
        if blob.size == 0 {
            // Nothing to fetch, but it has to be there.
            return self.check_stored(manifest, blob).await;
        }
        // A permit is taken before a range's place in the order is: the first range in the queue always has one.
        let permitted =
            stream::iter(ranges(blob.size, self.options.range_bytes.max(1))).then(|range| async move {
                let permit = requests.clone().acquire_owned().await.map_err(closed)?;
                Ok::<_, StoreError>((range, permit))
            });
        let mut fetched = permitted
            .map_ok(|(range, permit)| async move {
                let chunk = self.fetch_range(manifest, blob, range).await?;
                Ok::<_, StoreError>((chunk, permit))
            })
            .try_buffered(self.options.ranges_in_flight.max(1))
            .boxed();
        while let Some((chunk, permit)) = fetched.try_next().await? {
            let bytes = chunk.len() as u64;
            if chunks.send(chunk).await.is_err() {
                // The writer failed, and says why.
                return Ok(());
            }
            drop(permit);
            tracker.add(bytes);
        }
        Ok(())
    }

    async fn fetch_range(
        &self,
        manifest: &Manifest,
        blob: &BlobRef,
        range: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        let path = blob_path(&blob.sha256);
        let wanted = range.end - range.start;
        let options = GetOptions::new().with_range(Some(range));
        let fetched = async {
            let result = self.client.get_opts(&path, options).await?;
            let size = result.meta.size;
            Ok((result.bytes().await?, size))
        };
        let error = match fetched.await {
            Ok((chunk, size)) if size == blob.size && chunk.len() as u64 == wanted => return Ok(chunk),
            Ok((_, size)) if size != blob.size => return Err(Mismatch::Size(size).into_error(blob)),
            Ok((chunk, _)) => StoreError::Unavailable {
                what: format!("{path} of {self}"),
                source: format!("asked for {wanted} bytes, got {}", chunk.len()).into(),
            },
            Err(error) => self.client_error(error, &path),
        };
        // A range past the end of a truncated object is refused in as many ways as there are stores.
        self.check_stored(manifest, blob).await?;
        Err(error)
    }

    /// Whether the store has a blob in its right size.
    async fn check_stored(&self, manifest: &Manifest, blob: &BlobRef) -> Result<(), StoreError> {
        match self.head(&blob_path(&blob.sha256)).await? {
            None => Err(self.missing_blob(manifest, blob)),
            Some(meta) if meta.size != blob.size => Err(Mismatch::Size(meta.size).into_error(blob)),
            Some(_) => Ok(()),
        }
    }
}

/// A blob on its way into the cache. Its file is removed unless it gets its name.
struct Arrival {
    folder: Arc<CacheFolder>,
    file: NamedTempFile,
    blob: BlobRef,
}

impl Arrival {
    /// Writes what comes until nothing more does. Blocks. When the sender gives up early, what it then returns is not
    /// looked at.
    fn write(mut self, mut chunks: mpsc::Receiver<Bytes>) -> Result<Written, StoreError> {
        let mut hasher = Sha256::new();
        let mut size = 0;
        while let Some(chunk) = chunks.blocking_recv() {
            let path = self.file.path().to_owned();
            write_chunk(self.file.as_file_mut(), &path, &chunk, self.blob.size)?;
            hasher.update(&chunk);
            size += chunk.len() as u64;
        }
        if size != self.blob.size {
            return Ok(Written::Mismatch(Mismatch::Size(size)));
        }
        let found = hex(hasher);
        if found != self.blob.sha256 {
            return Ok(Written::Mismatch(Mismatch::Digest(found)));
        }
        self.install()
    }

    /// Gives the file its name.
    fn install(self) -> Result<Written, StoreError> {
        let (path, blob) = (self.file.path().to_owned(), &self.blob);
        self.file.as_file().sync_all().map_err(|error| StoreError::from_write(error, &path, blob.size))?;
        // From its owner's lock to a lease.
        self.file.as_file().lock_shared().map_err(|error| StoreError::from_io(error, &path))?;
        match self.file.persist_noclobber(self.folder.blob_path(&blob.sha256)) {
            Ok(file) => {
                sync_folder(&self.folder.blobs)?;
                self.folder.record_verified(&blob.sha256, &file);
                Ok(Written::Installed(file))
            }
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(Written::LostRace),
            Err(error) => Err(StoreError::from_write(error.error, &path, blob.size)),
        }
    }
}

/// Writes a part of `total` bytes.
fn write_chunk(file: &mut impl Write, path: &FilePath, chunk: &[u8], total: u64) -> Result<(), StoreError> {
    file.write_all(chunk).map_err(|error| StoreError::from_write(error, path, total))
}

fn ranges(size: u64, step: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(step)).map(move |index| index * step..((index + 1) * step).min(size))
}

fn closed(error: AcquireError) -> StoreError {
    StoreError::Unavailable { what: "a pull's requests".to_owned(), source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_a_blob_once() {
        for (size, step) in [(0, 4), (1, 4), (4, 4), (5, 4), (12, 4), (13, 1)] {
            let all: Vec<_> = ranges(size, step).collect();
            let mut next = 0;
            for range in &all {
                assert_eq!(range.start, next);
                assert!(!range.is_empty() && range.end - range.start <= step);
                next = range.end;
            }
            assert_eq!(next, size);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_disk_that_fills_while_writing_is_named_with_what_is_needed() {
        let path = FilePath::new("/dev/full");
        let mut file = File::options().write(true).open(path).unwrap();
        let error = write_chunk(&mut file, path, b"weights", 1234).unwrap_err();
        assert!(matches!(error, StoreError::DiskFull { needed: 1234, .. }), "{error}");
        assert!(error.to_string().contains("/dev/full"), "{error}");
        assert!(!error.is_retryable());
    }
}
