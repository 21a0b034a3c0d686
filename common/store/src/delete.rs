//! Deleting engines, and the blobs that nothing names any more.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _};
use roundhouse_engine::{EngineKey, ManifestError};
use serde::Deserialize;

use crate::engine_store::{MANIFESTS_IN_FLIGHT, manifest_path};
use crate::{EngineStore, StoreError, staging};

/// What a deletion freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deleted {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes together.
    pub bytes: u64,
}

/// The engine whose deletion makes room.
struct Gone {
    digests: BTreeSet<String>,
    manifest: ObjectMeta,
}

/// The part of a manifest that keeps blobs alive, in any format so far.
#[derive(Deserialize)]
struct References {
    blobs: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    sha256: String,
}

impl EngineStore {
    /// Deletes an engine: its manifest first, so that nobody finds it any more, then every blob that no other manifest
    /// names. Also collects the garbage of earlier publications, as [`EngineStore::collect_garbage`] does.
    ///
    /// **The race with a publisher.** A publisher's blobs are named by no manifest until its own is written, so two
    /// kinds of blobs could be taken from it. Those that it uploads itself are left alone for
    /// [`crate::StoreOptions::blob_grace`], and a publication must not take longer than that. Those that it found in
    /// the store are looked for again right before and right after its manifest is written, and uploaded again when
    /// they are gone. What is left is a publisher that writes its manifest and looks after it, all between this call's
    /// reading of the manifests and its last deletion: its engine then lacks a blob, pulling it fails with
    /// [`StoreError::MissingBlob`], and publishing it again repairs it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or what the store fails with. [`StoreError::Manifest`] when another engine's manifest
    /// cannot be understood: the engine is then deleted but no blob is.
    pub async fn delete(&self, key: &EngineKey) -> Result<Deleted, StoreError> {
        let (json, manifest) = self.get_manifest_json(key).await?;
        // A manifest that cannot be understood is deleted like any other; its blobs are then garbage of unknown origin.
        let digests = references(key, &json).unwrap_or_default();
        self.delete_object(&manifest_path(key)).await?;
        tracing::info!(%key, store = %self, "engine deleted");
        self.sweep(Some(Gone { digests, manifest })).await
    }

    /// Deletes blobs that no manifest names and that are older than [`crate::StoreOptions::blob_grace`]: those of
    /// publications that never ended. In a local folder, also their half-written files.
    ///
    /// # Errors
    /// As [`EngineStore::delete`].
    pub async fn collect_garbage(&self) -> Result<Deleted, StoreError> {
        self.sweep(None).await
    }

    async fn sweep(&self, gone: Option<Gone>) -> Result<Deleted, StoreError> {
        if let Some(folder) = self.folder() {
            staging::remove_abandoned(folder, self.options.blob_grace).await?;
        }
        // The blobs first: one that appears after this list is left alone whatever the manifests say.
        let blobs = self.blobs().await?;
        let referenced = self.referenced().await?;
        let mut deleted = Deleted::default();
        for (digest, meta) in blobs {
            if !referenced.contains(&digest) && self.is_garbage(&digest, &meta, gone.as_ref()) {
                self.delete_object(&meta.location).await?;
                deleted.blobs += 1;
                deleted.bytes += meta.size;
            }
        }
        Ok(deleted)
    }

    /// Whether a blob that no manifest names has no publisher either: it belonged to the deleted engine and nobody
    /// uploaded it again since that was published, or its grace is over.
    fn is_garbage(&self, digest: &str, meta: &ObjectMeta, gone: Option<&Gone>) -> bool {
        // In whole seconds: that is all that a header carries, while a list may say more.
        let of_deleted = gone.is_some_and(|gone| {
            gone.digests.contains(digest)
                && meta.last_modified.timestamp() <= gone.manifest.last_modified.timestamp()
        });
        of_deleted || age(meta) >= self.options.blob_grace
    }

    /// The digests that manifests name.
    async fn referenced(&self) -> Result<BTreeSet<String>, StoreError> {
        let keys = self.keys(None).await?;
        let digests = stream::iter(keys).map(|key| async move {
            match self.get_manifest_json(&key).await {
                Ok((json, _)) => Ok(references(&key, &json)?),
                // Deleted since the keys were listed.
                Err(error) if error.is_not_found() => Ok(BTreeSet::new()),
                Err(error) => Err(error),
            }
        });
        let digests = digests.buffer_unordered(MANIFESTS_IN_FLIGHT);
        digests
            .try_fold(BTreeSet::new(), |mut all, digests| async move {
                all.extend(digests);
                Ok(all)
            })
            .await
    }

    /// Deletes an object; one that is gone already is fine.
    pub(crate) async fn delete_object(&self, path: &Path) -> Result<(), StoreError> {
        match self.client.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.client_error(error, path)),
        }
    }
}

fn references(key: &EngineKey, json: &[u8]) -> Result<BTreeSet<String>, ManifestError> {
    let references: References = serde_json::from_slice(json)
        .map_err(|source| ManifestError::Json { key: key.to_string(), source })?;
    Ok(references.blobs.into_iter().map(|reference| reference.sha256).collect())
}

/// How long ago an object was written, by this machine's clock. None at all for one from the future.
fn age(meta: &ObjectMeta) -> Duration {
    SystemTime::now().duration_since(meta.last_modified.into()).unwrap_or_default()
}
