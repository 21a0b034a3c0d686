//! Opening checkpoints by name.

use std::path::Path;

use crate::digest::FileDigests;
use crate::object_store::Fetched;
use crate::progress::{Cancelled, FetchProgress, FetchStage};
use crate::{Checkpoint, HubConfig, HubError, ModelSource, directory, gguf, hub_download, object_store};

/// Reports of hashing on their way to the caller; the hashing thread waits when there are more.
const REPORTS: usize = 16;

/// Opens checkpoints by name.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    config: HubConfig,
    digests: FileDigests,
}

impl Checkpoints {
    /// Nothing is asked or written yet.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        let digests = FileDigests::new(config.cache.join("digests"));
        Self { config, digests }
    }

    /// Opens a model: fetches what is not on this machine, reads and checks everything but the weights, and
    /// identifies the content. `model` is read as [`ModelSource::parse`] says.
    ///
    /// Dropping the future stops a download; what has come stays in the cache, and the next call goes on from there.
    ///
    /// # Errors
    /// As [`HubError`] lists them.
    pub async fn open(
        &self,
        model: &str,
        revision: Option<&str>,
        progress: &dyn FetchProgress,
    ) -> Result<Checkpoint, HubError> {
        let source = ModelSource::parse(model, revision, self.config.local_paths)?;
        self.open_source(model, &source, progress).await
    }

    async fn open_source(
        &self,
        model: &str,
        source: &ModelSource,
        progress: &dyn FetchProgress,
    ) -> Result<Checkpoint, HubError> {
        match source {
            ModelSource::Directory(path) => self.open_directory(path, model, progress).await,
            ModelSource::GgufFile(path) => self.open_gguf(path, model, progress).await,
            ModelSource::HubId { id, revision } => {
                let revision = revision.as_deref();
                let snapshot =
                    hub_download::fetch(&self.config, &self.digests, id, revision, progress).await?;
                let checkpoint = self.open_directory(&snapshot.directory, model, progress).await?;
                Ok(Checkpoint { revision: Some(snapshot.commit), ..checkpoint })
            }
            ModelSource::ObjectStore(url) => match object_store::fetch(&self.config, url, progress).await? {
                Fetched::Directory(path) => self.open_directory(&path, model, progress).await,
                Fetched::GgufFile(path) => self.open_gguf(&path, model, progress).await,
            },
        }
    }

    async fn open_directory(
        &self,
        path: &Path,
        model: &str,
        progress: &dyn FetchProgress,
    ) -> Result<Checkpoint, HubError> {
        let (path, model, digests) = (path.to_owned(), model.to_owned(), self.digests.clone());
        off_runtime(FetchStage::Hash, progress, move |hashed| {
            directory::open(&path, &model, &digests, hashed)
        })
        .await
    }

    async fn open_gguf(
        &self,
        path: &Path,
        model: &str,
        progress: &dyn FetchProgress,
    ) -> Result<Checkpoint, HubError> {
        let (path, model, digests) = (path.to_owned(), model.to_owned(), self.digests.clone());
        off_runtime(FetchStage::Hash, progress, move |hashed| gguf::open(&path, &model, &digests, hashed))
            .await
    }
}

/// Runs blocking work off the runtime's threads, and passes its reports on to the caller. When the caller cancels, or
/// drops the future, the work's next report fails.
pub(crate) async fn off_runtime<T: Send + 'static>(
    stage: FetchStage,
    progress: &dyn FetchProgress,
    work: impl FnOnce(&mut dyn FnMut(u64, u64) -> Result<(), Cancelled>) -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(REPORTS);
    let work = tokio::task::spawn_blocking(move || {
        work(&mut |done, total| sender.blocking_send((done, total)).map_err(|_| Cancelled))
    });
    while let Some((done, total)) = receiver.recv().await {
        progress.bytes(stage, done, total)?;
    }
    work.await.map_err(thread_failed)?
}

/// Runs short blocking work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HubError> {
    tokio::task::spawn_blocking(work).await.map_err(thread_failed)
}

fn thread_failed(error: tokio::task::JoinError) -> HubError {
    HubError::Io { path: "worker thread".into(), source: std::io::Error::other(error) }
}
