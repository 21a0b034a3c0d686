//! A client that counts, fails, waits or falsifies on the way to a real one.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use roundhouse_store::{EngineStore, StoreOptions};

/// What happens before a request goes on to the real client. The number counts requests of its kind from 1.
pub(crate) type Hook = Arc<dyn Fn(&Path, usize) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// A client with hooks.
pub(crate) struct Hooked {
    inner: Arc<dyn ObjectStore>,
    /// Before each read of a blob, heads left out.
    pub(crate) on_read: Hook,
    /// Before each part of a multipart upload.
    pub(crate) on_part: Hook,
    /// Before each whole object is written.
    pub(crate) on_put: Hook,
    pub(crate) reads: AtomicUsize,
    pub(crate) parts: Arc<AtomicUsize>,
    pub(crate) puts: AtomicUsize,
    pub(crate) aborted: Arc<AtomicUsize>,
    pub(crate) completed: Arc<AtomicUsize>,
}

/// Lets everything pass.
pub(crate) fn pass() -> Hook {
    Arc::new(|_, _| async { Ok(()) }.boxed())
}

/// The storage service's own failure.
pub(crate) fn failure() -> object_store::Error {
    object_store::Error::Generic { store: "Hooked", source: "503 Slow Down".into() }
}

/// Small parts and ranges, so that files of a few MiB have many.
pub(crate) fn small() -> StoreOptions {
    StoreOptions { part_bytes: 1 << 20, range_bytes: 1 << 20, ..StoreOptions::default() }
}

impl Hooked {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self {
            inner,
            on_read: pass(),
            on_part: pass(),
            on_put: pass(),
            reads: AtomicUsize::default(),
            parts: Arc::default(),
            puts: AtomicUsize::default(),
            aborted: Arc::default(),
            completed: Arc::default(),
        }
    }

    pub(crate) fn store(self: &Arc<Self>) -> EngineStore {
        EngineStore::with_client(self.clone(), small())
    }
}

/// A count so far.
pub(crate) fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::SeqCst)
}

fn next(counter: &AtomicUsize) -> usize {
    counter.fetch_add(1, Ordering::SeqCst) + 1
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hooked({:?})", self.inner)
    }
}

impl fmt::Display for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hooked({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Hooked {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        (self.on_put)(location, next(&self.puts)).await?;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(HookedUpload {
            inner,
            location: location.clone(),
            on_part: self.on_part.clone(),
            parts: self.parts.clone(),
            aborted: self.aborted.clone(),
            completed: self.completed.clone(),
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let read = !options.head && location.as_ref().starts_with("blobs/");
        if read {
            (self.on_read)(location, next(&self.reads)).await?;
        }
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

struct HookedUpload {
    inner: Box<dyn MultipartUpload>,
    location: Path,
    on_part: Hook,
    parts: Arc<AtomicUsize>,
    aborted: Arc<AtomicUsize>,
    completed: Arc<AtomicUsize>,
}

impl fmt::Debug for HookedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HookedUpload({:?})", self.inner)
    }
}

#[async_trait]
impl MultipartUpload for HookedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let hook = (self.on_part)(&self.location, next(&self.parts));
        let part = self.inner.put_part(data);
        async move {
            hook.await?;
            part.await
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        next(&self.completed);
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        let result = self.inner.abort().await;
        next(&self.aborted);
        result
    }
}
