//! Small records that several processes write in turn: nobody overwrites what it has not seen.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};

use crate::place::Place;
use crate::{StoreError, StoreOptions};

/// Digits of a version in a name: all that there can be, so that names sort as versions do.
const DIGITS: usize = 20;

/// Records in versions, in object storage or a local folder:
///
/// ```text
/// <name>/<version>     never overwritten; the largest version is the record
/// ```
///
/// Each version is created only where it does not exist, which every store can do, so of two writers that go on from the
/// same version one loses. A writer keeps its version's predecessor and deletes those before: one whose predecessor is
/// gone by then has been deleted meanwhile, or overtaken. Cheap to clone.
#[derive(Clone)]
pub struct Versions {
    client: Arc<dyn ObjectStore>,
    location: Arc<str>,
}

/// A version of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// From 1 on.
    pub number: u64,
    /// What was written.
    pub bytes: Vec<u8>,
    /// When, by the store's clock.
    pub written: SystemTime,
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is the record now.
    Done,
    /// Somebody else wrote this version or a later one.
    Overtaken,
    /// The record was deleted.
    Deleted,
}

impl fmt::Debug for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Versions").field("location", &self.location).finish_non_exhaustive()
    }
}

/// Where they are, without credentials.
impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.location)
    }
}

impl Versions {
    /// Opens a folder's path or a URL, as [`crate::EngineStore::open`].
    ///
    /// # Errors
    /// [`StoreError::InvalidUrl`], [`StoreError::UnknownOption`], or what the folder fails with.
    pub fn open(url_or_path: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        let Place { client, location, .. } = Place::open(url_or_path, options)?;
        Ok(Self { client, location })
    }

    /// The number of a record's latest version; `None` when there is no such record.
    ///
    /// # Errors
    /// [`StoreError::InvalidArgument`] for a name that is none, or what the store fails with.
    pub async fn latest_number(&self, name: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.numbers(name).await?.last_key_value().map(|(&number, _)| number))
    }

    /// A record's latest version, if it has at most `limit` bytes; `None` when there is no such record.
    ///
    /// # Errors
    /// As [`Versions::latest_number`], and [`StoreError::InvalidArgument`] for a larger one.
    pub async fn latest(&self, name: &str, limit: u64) -> Result<Option<Version>, StoreError> {
        loop {
            let numbers = self.numbers(name).await?;
            let Some((&number, meta)) = numbers.last_key_value() else { return Ok(None) };
            if meta.size > limit {
                let what = format!("{} has {} bytes: at most {limit} are read", meta.location, meta.size);
                return Err(StoreError::InvalidArgument { what });
            }
            let bytes = match self.client.get(&meta.location).await {
                Ok(object) => object.bytes().await,
                Err(error) => Err(error),
            };
            match bytes {
                Ok(bytes) => {
                    let written = meta.last_modified.into();
                    return Ok(Some(Version { number, bytes: bytes.into(), written }));
                }
                // Overtaken twice or deleted since it was listed.
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.error(error, &meta.location)),
            }
        }
    }

    /// Writes a version that follows `number - 1`, which the caller has read or written; 1 for a new record.
    ///
    /// # Errors
    /// [`StoreError::InvalidArgument`] for a name that is none, or what the store fails with: then it may have been
    /// written all the same.
    pub async fn write(&self, name: &str, number: u64, bytes: Vec<u8>) -> Result<Written, StoreError> {
        let path = path(name, number)?;
        match self.client.put_opts(&path, PutPayload::from(bytes), PutMode::Create.into()).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => return Ok(Written::Overtaken),
            Err(error) => return Err(self.error(error, &path)),
        }
        let numbers = self.numbers(name).await?;
        let is_last = numbers.last_key_value().is_none_or(|(&last, _)| last <= number);
        let follows = number <= 1 || numbers.contains_key(&(number - 1));
        if is_last && follows {
            for (_, meta) in numbers.range(..number.saturating_sub(1)) {
                self.delete_object(&meta.location).await?;
            }
            return Ok(Written::Done);
        }
        self.delete_object(&path).await?;
        Ok(if is_last { Written::Deleted } else { Written::Overtaken })
    }

    /// Deletes a record. One that is gone already is fine.
    ///
    /// # Errors
    /// As [`Versions::latest_number`].
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        // The latest one last: what is left half-way is the record, not one of its past.
        for meta in self.numbers(name).await?.into_values() {
            self.delete_object(&meta.location).await?;
        }
        Ok(())
    }

    /// The names of all records with the numbers of their latest versions.
    ///
    /// # Errors
    /// What the store fails with.
    pub async fn list(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let listing = self.client.list(None).try_fold(BTreeMap::new(), |mut all, meta| async move {
            let mut parts = meta.location.parts();
            if let (Some(name), Some(number), None) = (parts.next(), number_of(&meta), parts.nth(1)) {
                let latest: &mut u64 = all.entry(name.as_ref().to_owned()).or_default();
                *latest = number.max(*latest);
            }
            Ok(all)
        });
        listing.await.map_err(|error| self.error(error, &Path::default()))
    }

    /// A record's versions.
    async fn numbers(&self, name: &str) -> Result<BTreeMap<u64, ObjectMeta>, StoreError> {
        let prefix = folder(name)?;
        let listing = self.client.list(Some(&prefix));
        let numbered =
            listing.try_filter_map(|meta| async move { Ok(number_of(&meta).map(|number| (number, meta))) });
        numbered.try_collect().await.map_err(|error| self.error(error, &prefix))
    }

    async fn delete_object(&self, path: &Path) -> Result<(), StoreError> {
        match self.client.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error(error, path)),
        }
    }

    fn error(&self, error: object_store::Error, path: &Path) -> StoreError {
        StoreError::from_client(error, path.as_ref(), &self.location)
    }
}

/// Letters, digits and hyphens only: a name never leaves its folder.
fn folder(name: &str) -> Result<Path, StoreError> {
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match is_name {
        true => Ok(Path::from(name)),
        false => Err(StoreError::InvalidArgument { what: format!("{name:?} is no name of a record") }),
    }
}

fn path(name: &str, number: u64) -> Result<Path, StoreError> {
    Ok(folder(name)?.join(format!("{number:0DIGITS$}")))
}

fn number_of(meta: &ObjectMeta) -> Option<u64> {
    let name = meta.location.filename().filter(|name| name.len() == DIGITS)?;
    name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse().ok())?
}
