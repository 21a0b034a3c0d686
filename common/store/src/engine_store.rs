//! The store: where engines are, and what is in it.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{GetResult, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use roundhouse_engine::{EngineKey, Manifest, ManifestError};

use crate::place::Place;
use crate::{StoreError, StoreOptions};

/// Manifests fetched at once.
pub(crate) const MANIFESTS_IN_FLIGHT: usize = 16;
const BLOBS: &str = "blobs/sha256";
const ENGINES: &str = "engines";
const MANIFEST: &str = "manifest.json";

/// Engines in object storage or a local folder:
///
/// ```text
/// blobs/sha256/<digest>            content-addressed files, shared by engines
/// engines/<key>/manifest.json      written last and never overwritten
/// ```
///
/// A manifest is there only when every blob that it names is. Cheap to clone.
#[derive(Clone)]
pub struct EngineStore {
    pub(crate) client: Arc<dyn ObjectStore>,
    pub(crate) options: Arc<StoreOptions>,
    /// For messages, without credentials.
    location: Arc<str>,
    /// The folder, when the store is one.
    folder: Option<Arc<FilePath>>,
}

impl fmt::Debug for EngineStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineStore").field("location", &self.location).finish_non_exhaustive()
    }
}

/// Where the store is, without credentials.
impl fmt::Display for EngineStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.location)
    }
}

/// Selects engines to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListRequest<'a> {
    /// At most this many; 0 means [`ListRequest::DEFAULT_PAGE_SIZE`], more than [`ListRequest::MAX_PAGE_SIZE`] means
    /// that.
    pub page_size: usize,
    /// From the page before.
    pub page_token: Option<&'a str>,
    /// Only engines of this model, as their manifests name it.
    pub model: Option<&'a str>,
}

impl ListRequest<'_> {
    /// Engines of a page where the request does not say.
    pub const DEFAULT_PAGE_SIZE: usize = 100;
    /// The most engines of a page.
    pub const MAX_PAGE_SIZE: usize = 1000;
}

/// A page of engines.
#[derive(Debug, Clone, PartialEq)]
pub struct EnginePage {
    /// By key.
    pub manifests: Vec<Manifest>,
    /// For the next page; none on the last one.
    pub next_page_token: Option<String>,
}

impl EngineStore {
    /// Opens a store: a folder's path, or a URL of `file`, `memory`, `s3`, `gs`, `az` and whatever else object_store
    /// knows. A local folder is made when it does not exist. Nothing remote is asked yet. Each `memory:///` is a store
    /// of its own.
    ///
    /// # Errors
    /// [`StoreError::InvalidUrl`], [`StoreError::UnknownOption`], or what the folder fails with.
    pub fn open(url_or_path: &str, options: StoreOptions) -> Result<Self, StoreError> {
        let Place { client, location, folder } = Place::open(url_or_path, &options)?;
        Ok(Self { client, options: Arc::new(options), location, folder })
    }

    /// A store over any client: for a client of one's own, or one wrapped in object_store's limits and throttles. A
    /// local folder's client is treated as a remote one: [`crate::LocalCache`] copies from it.
    #[must_use]
    pub fn with_client(client: Arc<dyn ObjectStore>, options: StoreOptions) -> Self {
        let location = client.to_string().into();
        Self { client, options: Arc::new(options), location, folder: None }
    }

    /// The folder that the store is, if it is one.
    #[must_use]
    pub fn folder(&self) -> Option<&FilePath> {
        self.folder.as_deref()
    }

    /// The manifest of an engine, read and validated.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Manifest`], or what the store fails with.
    pub async fn get_manifest(&self, key: &EngineKey) -> Result<Manifest, StoreError> {
        Ok(self.get_manifest_object(key).await?.0)
    }

    /// The manifest and its object.
    pub(crate) async fn get_manifest_object(
        &self,
        key: &EngineKey,
    ) -> Result<(Manifest, ObjectMeta), StoreError> {
        let (json, meta) = self.get_manifest_json(key).await?;
        Ok((Manifest::from_json(key, &json)?, meta))
    }

    /// The manifest as it is, of at most [`Manifest::MAX_JSON_BYTES`].
    pub(crate) async fn get_manifest_json(
        &self,
        key: &EngineKey,
    ) -> Result<(Vec<u8>, ObjectMeta), StoreError> {
        let path = manifest_path(key);
        let not_found = |error: StoreError| match error {
            StoreError::NotFound { store, .. } => {
                StoreError::NotFound { what: format!("engine {key}"), store }
            }
            other => other,
        };
        let result: GetResult =
            self.client.get(&path).await.map_err(|error| not_found(self.client_error(error, &path)))?;
        let (found, limit) = (result.meta.size, Manifest::MAX_JSON_BYTES);
        if found > limit {
            return Err(ManifestError::TooLarge { key: key.to_string(), found, limit }.into());
        }
        let meta = result.meta.clone();
        let json = result.bytes().await.map_err(|error| not_found(self.client_error(error, &path)))?;
        Ok((json.into(), meta))
    }

    /// Whether an engine is in the store.
    ///
    /// # Errors
    /// What the store fails with.
    pub async fn exists(&self, key: &EngineKey) -> Result<bool, StoreError> {
        Ok(self.head(&manifest_path(key)).await?.is_some())
    }

    /// A page of engines by key. A manifest that cannot be read is left out, with a warning: one broken engine does
    /// not hide the others.
    ///
    /// # Errors
    /// [`StoreError::InvalidArgument`] for a token that no page gave, or what the store fails with.
    pub async fn list(&self, request: ListRequest<'_>) -> Result<EnginePage, StoreError> {
        let page_size = match request.page_size {
            0 => ListRequest::DEFAULT_PAGE_SIZE,
            size => size.min(ListRequest::MAX_PAGE_SIZE),
        };
        let after = match request.page_token {
            None | Some("") => None,
            Some(token) => Some(EngineKey::parse(token).ok_or_else(|| StoreError::InvalidArgument {
                what: "page_token is none that a page of engines gave".to_owned(),
            })?),
        };
        let keys = self.keys(after.as_ref()).await?;
        let mut found = stream::iter(keys)
            .map(|key| async move { (self.get_manifest(&key).await, key) })
            .buffered(MANIFESTS_IN_FLIGHT);
        let mut manifests: Vec<Manifest> = Vec::new();
        while let Some((result, key)) = found.next().await {
            match result {
                Ok(manifest) if request.model.is_none_or(|model| model == manifest.model) => {
                    if manifests.len() == page_size {
                        let next_page_token = manifests.last().map(|last| last.key.to_string());
                        return Ok(EnginePage { manifests, next_page_token });
                    }
                    manifests.push(manifest);
                }
                Ok(_) => {}
                // Deleted since the keys were listed.
                Err(error) if error.is_not_found() => {}
                Err(StoreError::Manifest(error)) => {
                    tracing::warn!(%key, %error, "engine left out of the list")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(EnginePage { manifests, next_page_token: None })
    }

    /// The keys of all engines after `after`, in order. Not every store lists in order, so all are collected first.
    pub(crate) async fn keys(&self, after: Option<&EngineKey>) -> Result<Vec<EngineKey>, StoreError> {
        let prefix = Path::from(ENGINES);
        let listing = match after {
            Some(key) => self.client.list_with_offset(Some(&prefix), &manifest_path(key)),
            None => self.client.list(Some(&prefix)),
        };
        let keys = listing.try_filter_map(|meta| async move { Ok(key_of(&meta.location)) });
        let mut keys: Vec<EngineKey> =
            keys.try_collect().await.map_err(|error| self.client_error(error, &prefix))?;
        keys.retain(|key| after.is_none_or(|after| key > after));
        keys.sort_unstable();
        Ok(keys)
    }

    /// The objects below `blobs/`, with their digests. Whatever else is there is not ours and left out.
    pub(crate) async fn blobs(&self) -> Result<Vec<(String, ObjectMeta)>, StoreError> {
        let prefix = Path::from(BLOBS);
        let blobs = self.client.list(Some(&prefix)).try_filter_map(|meta| async move {
            let digest = meta.location.filename().and_then(EngineKey::parse);
            let digest = digest.filter(|digest| blob_path(digest.as_str()) == meta.location);
            Ok(digest.map(|digest| (digest.to_string(), meta)))
        });
        blobs.try_collect().await.map_err(|error| self.client_error(error, &prefix))
    }

    /// What the store says of an object; none when it is not there.
    pub(crate) async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>, StoreError> {
        match self.client.head(path).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.client_error(error, path)),
        }
    }

    /// The meaning of what the client said about an object.
    pub(crate) fn client_error(&self, error: object_store::Error, path: &Path) -> StoreError {
        StoreError::from_client(error, path.as_ref(), &self.location)
    }

    /// A blob's file, when the store is a folder.
    pub(crate) fn blob_file(&self, digest: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(BLOBS).join(digest))
    }
}

/// Where a blob is in a store.
pub(crate) fn blob_path(digest: &str) -> Path {
    Path::from(format!("{BLOBS}/{digest}"))
}

/// Where an engine's manifest is in a store.
pub(crate) fn manifest_path(key: &EngineKey) -> Path {
    Path::from(format!("{ENGINES}/{key}/{MANIFEST}"))
}

/// The key of the engine whose manifest is here; none for any other object.
fn key_of(path: &Path) -> Option<EngineKey> {
    let mut parts = path.parts();
    let key = EngineKey::parse(parts.nth(1)?.as_ref())?;
    (*path == manifest_path(&key)).then_some(key)
}
