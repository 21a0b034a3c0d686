//! Bringing a revision of a model into the hub's cache: only the files that are read, each content once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::io::AsyncWriteExt;

use crate::checkpoints::{blocking, off_runtime};
use crate::digest::{self, FileDigests};
use crate::hub_cache::{Completeness, ModelCache};
use crate::hub_http::{HubHttp, RemoteFile, Revision, describe, is_commit};
use crate::layout::{self, Layout, WeightFiles};
use crate::lock::FileLock;
use crate::progress::{FetchProgress, FetchStage};
use crate::transfer::{FILES_AT_ONCE, Transfer, at_once};
use crate::{HubConfig, HubError, directory};

/// What a model is at when no revision is asked for.
const DEFAULT_REVISION: &str = "main";
/// Connections of one file that may break one after the other without a byte between them.
const MAX_BROKEN_CONNECTIONS: u32 = 5;

/// A revision in the cache.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) directory: PathBuf,
    pub(crate) commit: String,
}

/// One revision on its way into the cache.
struct Download<'a> {
    http: &'a HubHttp,
    cache: &'a ModelCache,
    digests: &'a FileDigests,
    id: &'a str,
    commit: &'a str,
    transfer: Transfer<'a>,
}

/// Brings a revision of a model into the cache, and says where it is.
///
/// A commit that is whole in the cache is used without asking. A branch or tag is asked for; when the hub cannot be
/// reached, what it was last resolved to is used, if that is there.
pub(crate) async fn fetch(
    config: &HubConfig,
    digests: &FileDigests,
    id: &str,
    revision: Option<&str>,
    progress: &dyn FetchProgress,
) -> Result<Snapshot, HubError> {
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    let cache = ModelCache::new(&config.hub_cache, id);
    let last_known = match is_commit(revision) {
        true => Some(revision.to_ascii_lowercase()),
        false => cache.resolved(revision),
    };
    let cached = |completeness| {
        let (cache, commit) = (cache.clone(), last_known.clone());
        blocking(move || {
            let commit = commit?;
            Some(Snapshot { directory: cache.cached(&commit, completeness)?, commit })
        })
    };
    if config.offline {
        return cached(Completeness::Usable).await?.ok_or_else(|| HubError::Offline {
            model: id.to_owned(),
            what: format!("a complete snapshot of revision {revision:?}"),
        });
    }
    if is_commit(revision)
        && let Some(snapshot) = cached(Completeness::Whole).await?
    {
        return Ok(snapshot);
    }
    let http = HubHttp::new(config)?;
    let found = match http.revision(id, revision).await {
        Err(error @ HubError::Network { .. }) => {
            let Some(snapshot) = cached(Completeness::Usable).await? else { return Err(error) };
            progress.log(&format!("{error}: using the cached commit {}", snapshot.commit));
            return Ok(snapshot);
        }
        result => result?,
    };
    let download = Download {
        http: &http,
        cache: &cache,
        digests,
        id,
        commit: &found.commit,
        transfer: Transfer::new(progress),
    };
    download.all(&found).await?;
    if !is_commit(revision) {
        cache.set_resolved(revision, &found.commit)?;
    }
    Ok(Snapshot { directory: cache.snapshot(&found.commit), commit: found.commit })
}

impl Download<'_> {
    async fn all(&self, revision: &Revision) -> Result<(), HubError> {
        let layout = Layout::of(self.id, &revision.files)?;
        for name in layout::OPTIONAL.into_iter().filter(|name| !revision.files.contains(*name)) {
            self.cache.set_no_exist(self.commit, name)?;
        }
        let mut first: BTreeSet<String> = layout.small.iter().map(|&name| name.to_owned()).collect();
        let index = match layout.weights {
            WeightFiles::Single => None,
            WeightFiles::Indexed => {
                first.insert(layout::WEIGHTS_INDEX.to_owned());
                self.files(&first).await?;
                first.clear();
                {
                    let snapshot = self.cache.snapshot(self.commit);
                    Some(blocking(move || directory::read_index(&snapshot)).await??)
                }
            }
        };
        first.extend(Layout::weight_files(index.as_ref()));
        if let Some(missing) = first.iter().find(|name| !revision.files.contains(*name)) {
            return Err(HubError::MissingFile { place: self.id.to_owned(), file: missing.clone() });
        }
        self.files(&first).await
    }

    async fn files(&self, names: &BTreeSet<String>) -> Result<(), HubError> {
        let describe = |name| self.http.describe(self.id, self.commit, name);
        let remote: Vec<RemoteFile> = at_once(FILES_AT_ONCE, names.iter().map(|name| describe(name))).await?;
        self.transfer.expect(remote.iter().map(|file| file.size).sum());
        at_once(FILES_AT_ONCE, names.iter().zip(&remote).map(|(name, file)| self.file(name, file))).await?;
        Ok(())
    }

    async fn file(&self, name: &str, remote: &RemoteFile) -> Result<(), HubError> {
        let blob = self.cache.blob(&remote.etag);
        let is_there = || blob.metadata().is_ok_and(|metadata| metadata.len() == remote.size);
        if is_there() {
            self.transfer.advance(remote.size)?;
        } else {
            let _lock = FileLock::acquire(&self.cache.lock(&remote.etag), self.transfer.progress).await?;
            if is_there() {
                self.transfer.advance(remote.size)?;
            } else {
                self.content(name, remote, &blob).await?;
            }
        }
        self.cache.link(self.commit, name, &remote.etag)
    }

    /// Downloads a content, going on where this or an earlier run was interrupted, and verifies it.
    async fn content(&self, name: &str, remote: &RemoteFile, blob: &Path) -> Result<(), HubError> {
        let partial = blob.with_file_name(format!("{}.incomplete", remote.etag));
        if let Some(parent) = blob.parent() {
            std::fs::create_dir_all(parent).map_err(HubError::io(parent))?;
        }
        let mut file = tokio::fs::File::options()
            .create(true)
            .append(true)
            .open(&partial)
            .await
            .map_err(HubError::io(&partial))?;
        let mut have = file.metadata().await.map_err(HubError::io(&partial))?.len();
        if have > 0 {
            self.transfer.progress.log(&format!("{name}: resuming at byte {have} of {}", remote.size));
            self.transfer.advance(have)?;
        }
        let (mut broken, mut delay) = (0, self.http.retry_delay());
        while have != remote.size {
            let before = have;
            let failure = match self.append(name, remote, &partial, &mut file, &mut have).await? {
                None => continue,
                Some(failure) => failure,
            };
            (broken, delay) =
                if have > before { (0, self.http.retry_delay()) } else { (broken + 1, delay * 2) };
            if broken > MAX_BROKEN_CONNECTIONS {
                let url = format!("{} {}/{name}", self.http.endpoint(), self.id);
                return Err(HubError::Network { url, what: failure });
            }
            self.transfer
                .progress
                .log(&format!("{name}: {failure}; resuming at byte {have} of {}", remote.size));
            tokio::time::sleep(delay).await;
        }
        file.sync_data().await.map_err(HubError::io(&partial))?;
        drop(file);
        self.verify(name, remote, &partial).await?;
        tokio::fs::rename(&partial, blob).await.map_err(HubError::io(&partial))?;
        Ok(())
    }

    /// Appends what one connection brings. `Some` says why it ended early.
    async fn append(
        &self,
        name: &str,
        remote: &RemoteFile,
        partial: &Path,
        file: &mut tokio::fs::File,
        have: &mut u64,
    ) -> Result<Option<String>, HubError> {
        let mut response = self.http.content(self.id, self.commit, name, *have).await?;
        // A server that does not know ranges sends all of it, and one that has other bytes none.
        if *have > 0 && !continues(&response, *have) {
            file.set_len(0).await.map_err(HubError::io(partial))?;
            self.transfer.rewind(*have);
            *have = 0;
            if response.status() != StatusCode::OK {
                return Ok(Some("the server could not resume".to_owned()));
            }
        }
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if *have == remote.size => return Ok(None),
                Ok(None) => return Ok(Some("the connection ended early".to_owned())),
                Err(error) => return Ok(Some(describe(&error))),
            };
            let total = *have + chunk.len() as u64;
            if total > remote.size {
                let what = format!("{total} bytes of {name} came, and it has {}", remote.size);
                return Err(HubError::UnexpectedAnswer { url: response.url().to_string(), what });
            }
            file.write_all(&chunk).await.map_err(HubError::io(partial))?;
            file.flush().await.map_err(HubError::io(partial))?;
            *have = total;
            self.transfer.advance(chunk.len() as u64)?;
        }
    }

    /// Large files are named by their SHA-256. A content that has another is thrown away.
    async fn verify(&self, name: &str, remote: &RemoteFile, partial: &Path) -> Result<(), HubError> {
        if !digest::is_sha256(&remote.etag) {
            return Ok(());
        }
        let (digests, path) = (self.digests.clone(), partial.to_owned());
        let sha256 = off_runtime(FetchStage::Hash, self.transfer.progress, move |hashed| {
            let mut done = 0;
            let total = path.metadata().map_err(HubError::io(&path))?.len();
            digests.of_file(&path, &mut |bytes| {
                done += bytes;
                hashed(done, total)
            })
        })
        .await?;
        if sha256 == remote.etag {
            return Ok(());
        }
        tokio::fs::remove_file(partial).await.map_err(HubError::io(partial))?;
        let what =
            format!("{name} has SHA-256 {sha256}, expected {}; it was thrown away, try again", remote.etag);
        Err(HubError::corrupt(partial, what))
    }
}

/// Whether this is the rest of a content, from byte `from` on.
fn continues(response: &Response, from: u64) -> bool {
    let range =
        response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
    response.status() == StatusCode::PARTIAL_CONTENT && range.starts_with(&format!("bytes {from}-"))
}
