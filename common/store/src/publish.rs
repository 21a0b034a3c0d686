//! Publishing: blobs first, the manifest last and only once.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path as FilePath, PathBuf};

use object_store::{ObjectStore as _, PutMode, PutPayload};
use roundhouse_engine::{BlobRef, Manifest};
use tokio::sync::oneshot;

use crate::digest;
use crate::engine_store::{blob_path, manifest_path};
use crate::error::blocking;
use crate::progress::{BlobTracker, Tracker};
use crate::{EngineStore, NoProgress, StoreError, TransferProgress};

/// Times that a manifest is tried when somebody else's comes and goes.
const MANIFEST_TRIES: usize = 3;

/// How a publication ended. Either way the engine is in the store.
#[derive(Debug, Clone, PartialEq)]
pub enum Published {
    /// This call put it there.
    Created(Manifest),
    /// It was there, or another builder was faster: theirs.
    AlreadyExists(Manifest),
}

impl Published {
    /// The manifest in the store.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        match self {
            Self::Created(manifest) | Self::AlreadyExists(manifest) => manifest,
        }
    }

    /// The manifest in the store.
    #[must_use]
    pub fn into_manifest(self) -> Manifest {
        match self {
            Self::Created(manifest) | Self::AlreadyExists(manifest) => manifest,
        }
    }

    /// Whether this call put it there.
    #[must_use]
    pub fn is_created(&self) -> bool {
        matches!(self, Self::Created(_))
    }
}

/// The files by digest: one of each content.
type Contents<'a> = BTreeMap<String, &'a FilePath>;

impl EngineStore {
    /// Publishes an engine: hashes the files, uploads the blobs that the store lacks, and then creates the manifest,
    /// unless there is one.
    ///
    /// `files` are blob names and paths. `manifest.blobs` is filled in from them; where it is not empty already, it
    /// must say the same. Memory is bounded by [`crate::StoreOptions::part_bytes`] and
    /// [`crate::StoreOptions::parts_in_flight`], whatever the files' sizes.
    ///
    /// Dropped or killed half-way, it leaves no manifest. Blobs that are whole stay and are used by the next try; an
    /// upload's parts are aborted, or left to the store's lifecycle rule (S3: `AbortIncompleteMultipartUpload`) when
    /// the process was killed. In a local folder [`EngineStore::collect_garbage`] removes them.
    ///
    /// # Errors
    /// [`StoreError::InvalidArgument`] and [`StoreError::Manifest`] for arguments that cannot be,
    /// [`StoreError::DiskFull`] in a local folder, or what the files and the store fail with.
    pub async fn publish(
        &self,
        mut manifest: Manifest,
        files: &[(String, PathBuf)],
        progress: &dyn TransferProgress,
    ) -> Result<Published, StoreError> {
        let blobs = hash_files(files).await?;
        if !manifest.blobs.is_empty() && !same_blobs(&manifest.blobs, &blobs) {
            return Err(StoreError::InvalidArgument {
                what: format!("engine {}: the manifest's blobs are not the files'", manifest.key),
            });
        }
        manifest.blobs = blobs;
        manifest.validate()?;
        let paths = files.iter().map(|(_, path)| path.as_path());
        let contents: Contents<'_> =
            manifest.blobs.iter().zip(paths).map(|(blob, path)| (blob.sha256.clone(), path)).collect();
        for _ in 0..MANIFEST_TRIES {
            if let Some(theirs) = self.complete_existing(&manifest, &contents, progress).await? {
                return Ok(Published::AlreadyExists(theirs));
            }
            if self.publish_new(&manifest, &contents, progress).await? {
                tracing::info!(key = %manifest.key, store = %self, "engine published");
                return Ok(Published::Created(manifest));
            }
        }
        Err(StoreError::Unavailable {
            what: format!("engine {} of {self}", manifest.key),
            source: "others create and delete it at the same time".into(),
        })
    }

    /// The engine as it is in the store, with blobs that were lost since uploaded again as far as `contents` has them.
    async fn complete_existing(
        &self,
        ours: &Manifest,
        contents: &Contents<'_>,
        progress: &dyn TransferProgress,
    ) -> Result<Option<Manifest>, StoreError> {
        let theirs = match self.get_manifest(&ours.key).await {
            Ok(theirs) => theirs,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let tracker = Tracker::new(progress, theirs.total_bytes());
        for blob in distinct(&theirs) {
            let Some(path) = contents.get(&blob.sha256) else {
                if !self.has_blob(blob).await? {
                    return Err(self.missing_blob(&theirs, blob));
                }
                tracker.blob(blob).finish();
                continue;
            };
            self.ensure_blob(blob, path, &mut tracker.blob(blob)).await?;
        }
        Ok(Some(theirs))
    }

    /// Uploads what the store lacks, then creates the manifest. False when somebody else's was there first.
    async fn publish_new(
        &self,
        manifest: &Manifest,
        contents: &Contents<'_>,
        progress: &dyn TransferProgress,
    ) -> Result<bool, StoreError> {
        let tracker = Tracker::new(progress, manifest.total_bytes());
        let mut reused = Vec::new();
        for blob in distinct(manifest) {
            let Some(path) = contents.get(&blob.sha256) else { continue };
            if !self.ensure_blob(blob, path, &mut tracker.blob(blob)).await? {
                reused.push((blob, *path));
            }
        }
        // A blob that was there may have been deleted with another engine meanwhile: looked for again right before the
        // manifest protects it, and right after.
        self.restore(&reused).await?;
        if !self.create_manifest(manifest).await? {
            return Ok(false);
        }
        self.restore(&reused).await?;
        Ok(true)
    }

    /// Uploads again what has gone since it was seen.
    async fn restore(&self, blobs: &[(&BlobRef, &FilePath)]) -> Result<(), StoreError> {
        let silent = Tracker::new(&NoProgress, 0);
        for (blob, path) in blobs {
            if !self.has_blob(blob).await? {
                self.upload(blob, path, &mut silent.blob(blob)).await?;
            }
        }
        Ok(())
    }

    /// Uploads a blob unless it is there with the right size. Says whether it did.
    async fn ensure_blob(
        &self,
        blob: &BlobRef,
        path: &FilePath,
        tracker: &mut BlobTracker<'_>,
    ) -> Result<bool, StoreError> {
        if self.has_blob(blob).await? {
            tracker.finish();
            return Ok(false);
        }
        self.upload(blob, path, tracker).await?;
        Ok(true)
    }

    async fn has_blob(&self, blob: &BlobRef) -> Result<bool, StoreError> {
        let meta = self.head(&blob_path(&blob.sha256)).await?;
        Ok(meta.is_some_and(|meta| meta.size == blob.size))
    }

    /// Creates the manifest unless there is one. Says whether it did.
    async fn create_manifest(&self, manifest: &Manifest) -> Result<bool, StoreError> {
        let path = manifest_path(&manifest.key);
        let json = manifest.to_json()?;
        let needed = json.len() as u64;
        let payload = PutPayload::from(json);
        match self.client.put_opts(&path, payload, PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.with_room(self.client_error(error, &path), needed, &path)),
        }
    }

    pub(crate) fn missing_blob(&self, manifest: &Manifest, blob: &BlobRef) -> StoreError {
        StoreError::MissingBlob {
            key: manifest.key.to_string(),
            blob: blob.name.clone(),
            digest: blob.sha256.clone(),
            store: self.to_string(),
        }
    }
}

/// One blob of each content.
pub(crate) fn distinct(manifest: &Manifest) -> Vec<&BlobRef> {
    let mut seen = std::collections::BTreeSet::new();
    manifest.blobs.iter().filter(|blob| seen.insert(&blob.sha256)).collect()
}

/// Digests and sizes of files, in their order.
async fn hash_files(files: &[(String, PathBuf)]) -> Result<Vec<BlobRef>, StoreError> {
    let mut blobs = Vec::with_capacity(files.len());
    for (name, path) in files {
        let path = path.clone();
        // Dropped with this call, it tells the thread to end.
        let (caller, _alive) = oneshot::channel::<()>();
        let (sha256, size) = blocking(move || {
            let file = File::open(&path).map_err(|error| StoreError::from_io(error, &path))?;
            digest::hash(&file, &path, || caller.is_closed())
        })
        .await?;
        blobs.push(BlobRef { name: name.clone(), sha256, size });
    }
    Ok(blobs)
}

/// Whether two lists say the same in any order.
fn same_blobs(left: &[BlobRef], right: &[BlobRef]) -> bool {
    let sorted = |blobs: &[BlobRef]| {
        let mut blobs: Vec<_> =
            blobs.iter().map(|blob| (blob.name.clone(), blob.sha256.clone(), blob.size)).collect();
        blobs.sort();
        blobs
    };
    sorted(left) == sorted(right)
}
