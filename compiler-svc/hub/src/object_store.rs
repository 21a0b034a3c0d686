//! Bringing a checkpoint from an object store into the local cache.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

use crate::checkpoints::blocking;
use crate::layout::{self, Layout, WeightFiles};
use crate::lock::FileLock;
use crate::progress::FetchProgress;
use crate::transfer::{FILES_AT_ONCE, Transfer, at_once};
use crate::{HubConfig, HubError, digest, directory};

/// Bytes of one request.
const RANGE_BYTES: u64 = 8 << 20;
/// Requests of one file on their way at once.
const RANGES_AT_ONCE: usize = 8;

/// A checkpoint of an object store, now on this machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    Directory(PathBuf),
    GgufFile(PathBuf),
}

/// Brings the folder or GGUF file at `url` into the cache. Files that have not changed since are not downloaded again.
pub(crate) async fn fetch(
    config: &HubConfig,
    url: &Url,
    progress: &dyn FetchProgress,
) -> Result<Fetched, HubError> {
    let failed = |source| HubError::ObjectStore { url: url.to_string(), source };
    let options = config.object_store.iter().map(|(name, value)| (name.clone(), value.clone()));
    roundhouse_tls::choose_provider();
    let (store, path) = object_store::parse_url_opts(url, options).map_err(failed)?;
    fetch_from(store.into(), url, path, &config.cache.join("checkpoints"), progress).await
}

async fn fetch_from(
    store: Arc<dyn ObjectStore>,
    url: &Url,
    path: ObjectPath,
    cache: &Path,
    progress: &dyn FetchProgress,
) -> Result<Fetched, HubError> {
    let folder = cache.join(digest::hex(&Sha256::digest(url.as_str())));
    let _lock = FileLock::acquire(&folder.with_extension("lock"), progress).await?;
    std::fs::create_dir_all(&folder).map_err(HubError::io(&folder))?;
    let fetch = Fetch { store, url, folder, transfer: Transfer::new(progress) };
    match path.filename() {
        Some(name) if name.ends_with(".gguf") => {
            let name = if layout::is_plain_name(name) { name } else { "model.gguf" };
            let meta = fetch.describe(&path).await?;
            let Some(meta) = meta else {
                return Err(HubError::ModelNotFound {
                    model: url.path().to_owned(),
                    endpoint: endpoint(url),
                });
            };
            fetch.transfer.expect(meta.size);
            fetch.file(name, &meta).await?;
            Ok(Fetched::GgufFile(fetch.folder.join(name)))
        }
        _ => {
            fetch.directory(&path).await?;
            Ok(Fetched::Directory(fetch.folder))
        }
    }
}

fn endpoint(url: &Url) -> String {
    url[..url::Position::BeforePath].to_owned()
}

/// What a file was when it was downloaded.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    etag: Option<String>,
    modified: String,
}

impl Stamp {
    fn of(meta: &ObjectMeta) -> Self {
        Self { size: meta.size, etag: meta.e_tag.clone(), modified: meta.last_modified.to_rfc3339() }
    }

    fn path(file: &Path) -> PathBuf {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        file.with_file_name(format!(".{name}.stamp"))
    }

    fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::path(file)).ok()?).ok()
    }

    fn write(&self, file: &Path) -> Result<(), HubError> {
        let path = Self::path(file);
        let bytes = serde_json::to_vec(self).map_err(|error| HubError::corrupt(&path, error.to_string()))?;
        std::fs::write(&path, bytes).map_err(HubError::io(&path))
    }
}

struct Fetch<'a> {
    store: Arc<dyn ObjectStore>,
    url: &'a Url,
    /// Where the files go.
    folder: PathBuf,
    transfer: Transfer<'a>,
}

impl Fetch<'_> {
    fn failed(&self, path: &ObjectPath) -> impl FnOnce(object_store::Error) -> HubError + use<> {
        let url = format!("{}/{path}", endpoint(self.url));
        move |source| HubError::ObjectStore { url, source }
    }

    async fn describe(&self, path: &ObjectPath) -> Result<Option<ObjectMeta>, HubError> {
        match self.store.head(path).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(path)(error)),
        }
    }

    /// Asks for files by their names: not every store can list.
    async fn describe_all(
        &self,
        path: &ObjectPath,
        names: impl IntoIterator<Item = String>,
    ) -> Result<Vec<(String, ObjectMeta)>, HubError> {
        let names: Vec<(String, ObjectPath)> =
            names.into_iter().map(|name| (name.clone(), path.clone().join(name))).collect();
        let found = at_once(RANGES_AT_ONCE, names.iter().map(|(_, path)| self.describe(path))).await?;
        Ok(names.into_iter().zip(found).filter_map(|((name, _), meta)| Some((name, meta?))).collect())
    }

    async fn directory(&self, path: &ObjectPath) -> Result<(), HubError> {
        let found = self.describe_all(path, layout::candidates().map(str::to_owned)).await?;
        let names: BTreeSet<String> = found.iter().map(|(name, _)| name.clone()).collect();
        let layout = Layout::of(self.url.as_str(), &names)?;
        let mut wanted: BTreeSet<String> = layout.small.iter().map(|&name| name.to_owned()).collect();
        let weights = match layout.weights {
            WeightFiles::Single => {
                wanted.extend(Layout::weight_files(None));
                None
            }
            WeightFiles::Indexed => {
                wanted.insert(layout::WEIGHTS_INDEX.to_owned());
                Some(path)
            }
        };
        self.files(found.into_iter().filter(|(name, _)| wanted.contains(name)).collect()).await?;
        if let Some(path) = weights {
            let folder = self.folder.clone();
            let index = blocking(move || directory::read_index(&folder)).await??;
            let shards = Layout::weight_files(Some(&index));
            let found = self.describe_all(path, shards.iter().cloned()).await?;
            if let Some(missing) = shards.iter().find(|shard| found.iter().all(|(name, _)| name != *shard)) {
                return Err(HubError::MissingFile { place: self.url.to_string(), file: missing.clone() });
            }
            wanted.extend(shards);
            self.files(found).await?;
        }
        self.remove_others(&wanted)
    }

    /// Files that the checkpoint no longer has would still be part of the folder.
    fn remove_others(&self, wanted: &BTreeSet<String>) -> Result<(), HubError> {
        for name in directory::file_names(&self.folder)? {
            if !name.starts_with('.') && !wanted.contains(&name) {
                let path = self.folder.join(name);
                std::fs::remove_file(&path).map_err(HubError::io(&path))?;
            }
        }
        Ok(())
    }

    async fn files(&self, files: Vec<(String, ObjectMeta)>) -> Result<(), HubError> {
        self.transfer.expect(files.iter().map(|(_, meta)| meta.size).sum());
        at_once(FILES_AT_ONCE, files.iter().map(|(name, meta)| self.file(name, meta))).await?;
        Ok(())
    }

    async fn file(&self, name: &str, meta: &ObjectMeta) -> Result<(), HubError> {
        let path = self.folder.join(name);
        let stamp = Stamp::of(meta);
        let is_there = path.metadata().is_ok_and(|metadata| metadata.len() == meta.size);
        if is_there && Stamp::read(&path).as_ref() == Some(&stamp) {
            return self.transfer.advance(meta.size);
        }
        let partial = self.folder.join(format!(".{name}.partial"));
        let file = std::fs::File::create(&partial).map_err(HubError::io(&partial))?;
        let file = Arc::new(file);
        let starts = (0..meta.size.div_ceil(RANGE_BYTES)).map(|index| index * RANGE_BYTES);
        at_once(RANGES_AT_ONCE, starts.map(|start| self.range(&file, &partial, meta, start))).await?;
        let (from, to) = (partial.clone(), path.clone());
        let finished = blocking(move || {
            file.sync_data()?;
            std::fs::rename(from, to)
        });
        finished.await?.map_err(HubError::io(&path))?;
        stamp.write(&path)
    }

    async fn range(
        &self,
        file: &Arc<std::fs::File>,
        partial: &Path,
        meta: &ObjectMeta,
        start: u64,
    ) -> Result<(), HubError> {
        let end = meta.size.min(start + RANGE_BYTES);
        let mut options = GetOptions::new().with_range(Some(GetRange::Bounded(start..end)));
        // A file that is replaced meanwhile is an error, and not half of each.
        options.if_match.clone_from(&meta.e_tag);
        let answer =
            self.store.get_opts(&meta.location, options).await.map_err(self.failed(&meta.location))?;
        let range = answer.range.clone();
        let bytes = answer.bytes().await.map_err(self.failed(&meta.location))?;
        if range != (start..end) || bytes.len() as u64 != end - start {
            let what = format!("bytes {start}..{end} were asked for, {} came, from {range:?}", bytes.len());
            return Err(HubError::UnexpectedAnswer { url: self.url.to_string(), what });
        }
        let (file, count) = (Arc::clone(file), bytes.len() as u64);
        blocking(move || file.write_all_at(&bytes, start)).await?.map_err(HubError::io(partial))?;
        self.transfer.advance(count)
    }
}

#[cfg(test)]
mod tests;
