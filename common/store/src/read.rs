//! Small blobs, read whole.

use object_store::ObjectStoreExt as _;
use roundhouse_engine::{EngineKey, ManifestError};
use sha2::{Digest as _, Sha256};

use crate::digest::hex;
use crate::engine_store::blob_path;
use crate::{EngineStore, StoreError};

impl EngineStore {
    /// One of an engine's files by its role, of at most `limit` bytes, verified.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an engine or a file that there is not, [`StoreError::InvalidArgument`] for a larger
    /// one, [`StoreError::WrongSize`] and [`StoreError::Corrupt`] for bytes that are not the manifest's, or what the
    /// store fails with.
    pub async fn read_file(&self, key: &EngineKey, name: &str, limit: u64) -> Result<Vec<u8>, StoreError> {
        let manifest = self.get_manifest(key).await?;
        let blob = manifest.blob(name).map_err(|error| match error {
            ManifestError::MissingBlob { .. } => StoreError::NotFound {
                what: format!("file {name:?} of engine {key}"),
                store: self.to_string(),
            },
            error => error.into(),
        })?;
        if blob.size > limit {
            let what = format!("file {name:?} has {} bytes: at most {limit} are read at once", blob.size);
            return Err(StoreError::InvalidArgument { what });
        }
        let path = blob_path(&blob.sha256);
        let failed = |error| match self.client_error(error, &path) {
            error if error.is_not_found() => self.missing_blob(&manifest, blob),
            error => error,
        };
        let object = self.client.get(&path).await.map_err(failed)?;
        if object.meta.size != blob.size {
            return Err(StoreError::WrongSize {
                blob: blob.name.clone(),
                digest: blob.sha256.clone(),
                expected: blob.size,
                found: object.meta.size,
            });
        }
        let bytes = object.bytes().await.map_err(failed)?;
        let found = hex(Sha256::new_with_prefix(&bytes));
        if found != blob.sha256 {
            let (blob, expected) = (blob.name.clone(), blob.sha256.clone());
            return Err(StoreError::Corrupt { blob, expected, found });
        }
        Ok(bytes.into())
    }
}
