//! One file to one blob, which appears whole or not at all.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path as FilePath, PathBuf};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use roundhouse_engine::BlobRef;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::digest::hex;
use crate::engine_store::blob_path;
use crate::progress::BlobTracker;
use crate::{EngineStore, StoreError};

/// The most parts that S3 takes.
const MAX_PARTS: u64 = 10_000;
/// Parts grow in steps of this.
const PART_STEP_BYTES: u64 = 1 << 20;

impl EngineStore {
    /// Uploads a file as a blob, replacing what is there. The file is hashed again on its way, so that a file that
    /// changes meanwhile never becomes a blob of a wrong name.
    pub(crate) async fn upload(
        &self,
        blob: &BlobRef,
        file: &FilePath,
        tracker: &mut BlobTracker<'_>,
    ) -> Result<(), StoreError> {
        let location = blob_path(&blob.sha256);
        let part_bytes = part_bytes(blob.size, self.options.part_bytes);
        let (sender, parts) = mpsc::channel(1);
        let source = Reader { blob: blob.clone(), file: file.to_owned(), part_bytes };
        let reading = tokio::task::spawn_blocking(move || source.read(&sender));
        let uploaded = if blob.size <= part_bytes {
            self.upload_whole(&location, parts, reading).await.inspect(|()| tracker.add(blob.size))
        } else {
            self.upload_parts(&location, parts, reading, tracker).await
        };
        uploaded.map_err(|error| self.with_room(error, blob.size, &location))
    }

    /// Uploads in one request what fits one part.
    async fn upload_whole(
        &self,
        location: &Path,
        mut parts: mpsc::Receiver<Bytes>,
        reading: Reading,
    ) -> Result<(), StoreError> {
        let content = parts.recv().await.unwrap_or_default();
        reading.await.map_err(StoreError::from_join)??;
        let put = self.client.put(location, PutPayload::from_bytes(content)).await;
        put.map(drop).map_err(|error| self.client_error(error, location))
    }

    async fn upload_parts(
        &self,
        location: &Path,
        mut parts: mpsc::Receiver<Bytes>,
        reading: Reading,
        tracker: &mut BlobTracker<'_>,
    ) -> Result<(), StoreError> {
        let upload = self.client.put_multipart(location).await;
        let upload = upload.map_err(|error| self.client_error(error, location))?;
        let mut upload = Unfinished { upload: Some(upload), in_flight: JoinSet::new(), location };
        // A folder's parts are written one after the other: more of them would only wait, in memory.
        let most = if self.folder().is_some() { 1 } else { self.options.parts_in_flight.max(1) };
        let result = async {
            while let Some(part) = parts.recv().await {
                if upload.in_flight.len() >= most {
                    tracker.add(self.one_part(&mut upload, location).await?);
                }
                upload.put_part(part);
            }
            while !upload.in_flight.is_empty() {
                tracker.add(self.one_part(&mut upload, location).await?);
            }
            reading.await.map_err(StoreError::from_join)??;
            upload.complete().await.map_err(|error| self.client_error(error, location))
        }
        .await;
        if result.is_err() {
            upload.abort().await;
        }
        result
    }

    /// Waits for one part, and says how many bytes it had.
    async fn one_part(&self, upload: &mut Unfinished<'_>, location: &Path) -> Result<u64, StoreError> {
        match upload.in_flight.join_next().await {
            None => Ok(0),
            Some(joined) => {
                joined.map_err(StoreError::from_join)?.map_err(|error| self.client_error(error, location))
            }
        }
    }

    /// Says how much room a full disk lacks for `needed` bytes, when the store is a local folder.
    pub(crate) fn with_room(&self, error: StoreError, needed: u64, location: &Path) -> StoreError {
        match self.folder() {
            Some(folder) if error.is_disk_full() => {
                StoreError::disk_full(&folder.join(location.as_ref()), needed)
            }
            _ => error,
        }
    }
}

/// The thread that reads the file. It ends early when nobody takes its parts any more.
type Reading = tokio::task::JoinHandle<Result<(), StoreError>>;

/// Reads a file in parts, and checks it against what it should be.
struct Reader {
    blob: BlobRef,
    file: PathBuf,
    part_bytes: u64,
}

impl Reader {
    /// Blocks.
    fn read(&self, parts: &mpsc::Sender<Bytes>) -> Result<(), StoreError> {
        let io = |error| StoreError::from_io(error, &self.file);
        let mut file = File::open(&self.file).map_err(io)?;
        let mut hasher = Sha256::new();
        let mut left = self.blob.size;
        while left > 0 {
            let wanted = left.min(self.part_bytes);
            let mut part = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
            (&mut file).take(wanted).read_to_end(&mut part).map_err(io)?;
            if part.is_empty() {
                break;
            }
            hasher.update(&part);
            left -= part.len() as u64;
            if parts.blocking_send(part.into()).is_err() {
                return Ok(());
            }
        }
        let grown = file.read(&mut [0]).map_err(io)? > 0;
        if left == 0 && !grown && hex(hasher) == self.blob.sha256 {
            return Ok(());
        }
        Err(StoreError::InvalidArgument {
            what: format!("{} changed while it was published", self.file.display()),
        })
    }
}

/// An upload that is aborted unless it is completed.
struct Unfinished<'a> {
    upload: Option<Box<dyn MultipartUpload>>,
    /// Parts on their way; each says its size.
    in_flight: JoinSet<object_store::Result<u64>>,
    location: &'a Path,
}

impl Unfinished<'_> {
    fn put_part(&mut self, part: Bytes) {
        if let Some(upload) = &mut self.upload {
            let size = part.len() as u64;
            let sent = upload.put_part(PutPayload::from_bytes(part));
            self.in_flight.spawn(async move { sent.await.map(|()| size) });
        }
    }

    async fn complete(&mut self) -> object_store::Result<()> {
        if let Some(upload) = &mut self.upload {
            upload.complete().await?;
        }
        self.upload = None;
        Ok(())
    }

    async fn abort(&mut self) {
        self.in_flight.shutdown().await;
        if let Some(upload) = self.upload.take() {
            abort(upload, self.location).await;
        }
    }
}

/// The caller gave up: the parts are dropped in the background, as far as there still is a runtime.
impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let (Some(upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let location = self.location.clone();
        let mut in_flight = std::mem::take(&mut self.in_flight);
        runtime.spawn(async move {
            in_flight.shutdown().await;
            abort(upload, &location).await;
        });
    }
}

async fn abort(mut upload: Box<dyn MultipartUpload>, location: &Path) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(%location, %error, "an upload's parts are left behind: the store's lifecycle rule drops them");
    }
}

/// Bytes of a part: as wanted, or as many as keep a large file within [`MAX_PARTS`].
fn part_bytes(size: u64, wanted: usize) -> u64 {
    let least = size.div_ceil(MAX_PARTS).div_ceil(PART_STEP_BYTES) * PART_STEP_BYTES;
    (wanted.max(1) as u64).max(if size > MAX_PARTS * wanted.max(1) as u64 { least } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_has_larger_parts_not_more() {
        assert_eq!(part_bytes(0, 16 << 20), 16 << 20);
        assert_eq!(part_bytes(100 << 30, 16 << 20), 16 << 20);
        let part = part_bytes(1 << 40, 16 << 20);
        assert!(part > 16 << 20 && (1_u64 << 40).div_ceil(part) <= MAX_PARTS, "{part}");
        assert_eq!(part_bytes(10, 3), 3);
    }
}
