//! The pull cache: an engine's blobs on local disk, verified.

mod download;
mod flights;
mod folder;
mod lookup;
mod room;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use roundhouse_engine::{BlobRef, EngineFiles, Manifest};
use tokio::sync::Semaphore;

use crate::error::blocking;
use crate::progress::{BlobTracker, Tracker};
use crate::publish::distinct;
use crate::{EngineStore, StoreError, TransferProgress};
use download::Written;
use flights::Flights;
use folder::CacheFolder;
use lookup::Mismatch;

/// Blobs of one engine that are fetched at once.
const BLOBS_IN_FLIGHT: usize = 4;
/// Times that a blob is looked for when other processes fetch and evict it at the same time.
const MAX_TRIES: usize = 8;

/// What a cache may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheLimits {
    /// Bytes of all blobs together, those that are arriving included. None: as much as the disk has.
    pub max_bytes: Option<u64>,
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheUsage {
    /// Whole blobs.
    pub blobs: u64,
    /// Bytes of all blobs, those that are arriving included.
    pub bytes: u64,
}

/// Blobs on local disk, for all engines and all processes of this machine that open the same folder:
///
/// ```text
/// blobs/sha256/<digest>     whole and verified
/// verified/<digest>.json    what the file was like when its digest was last found right; its time is the last use
/// tmp/                      arriving
/// ```
///
/// **Verification.** A blob is hashed on its way in, and appears under its name only when the digest is right. Later
/// pulls compare the file's size, modification time, inode and device with those recorded then, and hash it again only
/// when something differs: a warm start reads no weights. A write that leaves all four as they were is not noticed.
///
/// **Eviction.** When a blob needs room, under the cache's limit or on the disk, the blobs used longest ago go, but
/// never one that a [`PulledEngine`] of any process holds.
///
/// **A local store.** When the store is a folder, nothing is copied: the engine's paths are the store's own files,
/// verified by the same rule. They stay as long as the engine is in the store; a file that is open or mapped outlives
/// even that.
///
/// The folder's file system must know advisory locks: they keep blobs that are in use, and tell what a killed process
/// left from what a living one writes.
///
/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalCache {
    folder: Arc<CacheFolder>,
    flights: Arc<Flights>,
}

/// An engine on local disk. Its blobs are not evicted while this is alive.
#[derive(Debug)]
pub struct PulledEngine {
    files: EngineFiles,
    downloaded_bytes: u64,
    /// Each holds a shared lock on a blob.
    _leases: Vec<File>,
}

impl PulledEngine {
    /// The manifest and the blobs' paths.
    #[must_use]
    pub fn files(&self) -> &EngineFiles {
        &self.files
    }

    /// Bytes that this pull fetched from the store: 0 when all blobs were here.
    #[must_use]
    pub fn downloaded_bytes(&self) -> u64 {
        self.downloaded_bytes
    }
}

impl LocalCache {
    /// Opens a cache in a folder, which is made when it does not exist. What killed processes left half-written is
    /// removed. Blocks for as long as that takes.
    ///
    /// # Errors
    /// What the folder fails with.
    pub fn open(folder: impl Into<PathBuf>, limits: CacheLimits) -> Result<Self, StoreError> {
        let folder = CacheFolder::open(folder.into(), limits)?;
        folder.locked(|| folder.remove_abandoned())?;
        Ok(Self { folder: Arc::new(folder), flights: Arc::default() })
    }

    /// What the cache holds.
    ///
    /// # Errors
    /// What the folder fails with.
    pub async fn usage(&self) -> Result<CacheUsage, StoreError> {
        let folder = self.folder.clone();
        blocking(move || folder.usage()).await
    }

    /// Brings an engine's blobs to local disk. The manifest comes from [`EngineStore::get_manifest`]: between the two
    /// calls is where a backend checks the engine's target, before anything is downloaded.
    ///
    /// Blobs that are here are not fetched again, blobs that another pull of this process is fetching are waited for,
    /// and the others are fetched in ranges, several at once, with memory bounded by
    /// [`crate::StoreOptions::range_bytes`] and [`crate::StoreOptions::ranges_in_flight`]. A corrupt one is fetched
    /// once more. Dropped half-way, nothing half-written stays.
    ///
    /// # Errors
    /// [`StoreError::MissingBlob`], [`StoreError::Corrupt`], [`StoreError::WrongSize`], [`StoreError::DiskFull`] and
    /// [`StoreError::CacheFull`] (both before the first byte, where the room can be known), or what the store and the
    /// folder fail with.
    pub async fn pull(
        &self,
        store: &EngineStore,
        manifest: &Manifest,
        progress: &dyn TransferProgress,
    ) -> Result<PulledEngine, StoreError> {
        manifest.validate()?;
        let tracker = Tracker::new(progress, manifest.total_bytes());
        let mut paths = BTreeMap::new();
        let mut leases = Vec::new();
        let mut missing = Vec::new();
        for blob in distinct(manifest) {
            let mut counted = tracker.blob(blob);
            if let Some(file) = store.blob_file(&blob.sha256) {
                self.verify_stored(store, manifest, blob, &file).await?;
                paths.insert(&blob.sha256, file);
                counted.finish();
                continue;
            }
            paths.insert(&blob.sha256, self.folder.blob_path(&blob.sha256));
            // All that is here is leased before room is made for the rest.
            match self.cached(blob).await? {
                Some(lease) => {
                    leases.push(lease);
                    counted.finish();
                }
                None => missing.push((blob, counted)),
            }
        }
        if !missing.is_empty() {
            let needed = missing.iter().map(|(blob, _)| blob.size).sum();
            let folder = self.folder.clone();
            blocking(move || folder.locked(|| folder.make_room(needed))).await?;
        }
        let requests = Arc::new(Semaphore::new(store.options.ranges_in_flight.max(1)));
        let fetches = missing
            .into_iter()
            .map(|(blob, counted)| self.fetch(store, manifest, blob, requests.clone(), counted))
            .collect::<Vec<_>>();
        let fetched = stream::iter(fetches).buffer_unordered(BLOBS_IN_FLIGHT);
        let mut downloaded_bytes = 0;
        for (lease, bytes) in fetched.try_collect::<Vec<_>>().await? {
            leases.push(lease);
            downloaded_bytes += bytes;
        }
        let named = |blob: &BlobRef| Some((blob.name.clone(), paths.get(&blob.sha256)?.clone()));
        let paths = manifest.blobs.iter().filter_map(named).collect();
        let files = EngineFiles { manifest: manifest.clone(), paths };
        Ok(PulledEngine { files, downloaded_bytes, _leases: leases })
    }

    /// A lease of a blob that is here and right. One that is here and wrong is removed.
    async fn cached(&self, blob: &BlobRef) -> Result<Option<File>, StoreError> {
        let (folder, blob) = (self.folder.clone(), blob.clone());
        blocking(move || folder.lookup(&blob)).await
    }

    /// Checks a blob that is used where the store has it.
    async fn verify_stored(
        &self,
        store: &EngineStore,
        manifest: &Manifest,
        blob: &BlobRef,
        file: &std::path::Path,
    ) -> Result<(), StoreError> {
        let (folder, owned, path) = (self.folder.clone(), blob.clone(), file.to_owned());
        let found = blocking(move || folder.verify_at(&owned, &path)).await?;
        match found {
            Some(Ok(())) => Ok(()),
            Some(Err(mismatch)) => Err(mismatch.into_error(blob)),
            None => Err(store.missing_blob(manifest, blob)),
        }
    }

    /// Fetches a blob, unless somebody else does or did, and leases it. Returns how many bytes came from the store, too.
    async fn fetch(
        &self,
        store: &EngineStore,
        manifest: &Manifest,
        blob: &BlobRef,
        requests: Arc<Semaphore>,
        mut tracker: BlobTracker<'_>,
    ) -> Result<(File, u64), StoreError> {
        let _flight = self.flights.enter(&blob.sha256).await;
        let mut corrupt: Option<Mismatch> = None;
        for _ in 0..MAX_TRIES {
            if let Some(lease) = self.cached(blob).await? {
                tracker.finish();
                return Ok((lease, 0));
            }
            match self.download(store, manifest, blob, &requests, &mut tracker).await? {
                Written::Installed(lease) => return Ok((lease, blob.size)),
                Written::Mismatch(mismatch) if corrupt.is_some() => return Err(mismatch.into_error(blob)),
                Written::Mismatch(mismatch) => {
                    tracing::warn!(blob = %blob.name, %mismatch, store = %store, "corrupt download, fetching it again");
                    corrupt = Some(mismatch);
                }
                Written::LostRace => {}
            }
            tracker.restart();
        }
        Err(StoreError::Unavailable {
            what: format!("blob {} ({})", blob.name, blob.sha256),
            source: "other processes keep fetching and evicting it: the cache's limit is too small for all of them"
                .into(),
        })
    }
}
