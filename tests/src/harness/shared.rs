//! The services that all tests of a process share.

use std::future::Future;
use std::path::PathBuf;
use std::sync::LazyLock;

use anyhow::{Context as _, Result, anyhow};
use roundhouse_engine::{CacheKind, EngineKey, Precision};
use roundhouse_executor::ExecutorConfig;
use roundhouse_executor::backends::Backends;
use roundhouse_store::{CacheLimits, EngineStore, LocalCache, NoProgress, PulledEngine, StoreOptions};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use super::compiler::{self, Compiler, store_of};
use super::executor::{self, Executor, LoadedEngine};
use super::folder::folder;
use super::{Node, smollm2_request};

/// Bytes for the KV caches of the shared executor: enough for every test of a process at once.
const KV_MEMORY_BYTES: u64 = 8 << 30;

/// The servers' own runtime: a test's ends with the test.
static RUNTIME: LazyLock<std::io::Result<Runtime>> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("services").enable_all().build()
});

static NODES: OnceCell<Nodes> = OnceCell::const_new();

struct Nodes {
    compiler: Node,
    executor: Node,
}

/// Clients of the shared services, connected by the calling test.
#[derive(Debug)]
pub struct Shared {
    /// The compiler.
    pub compiler: Compiler,
    /// The executor.
    pub executor: Executor,
    /// Everything that the services write is under it.
    pub folder: PathBuf,
}

impl Shared {
    /// The folder that is the store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        store_of(&self.folder)
    }

    /// An executor of the caller's own, of the same store: nobody else adds to its load.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn executor_alone(&self, change: impl FnOnce(&mut ExecutorConfig)) -> Result<Executor> {
        Executor::start(&self.store(), &self.folder, change).await
    }
}

/// The shared services, started by the first call.
///
/// # Errors
/// When they cannot start.
pub async fn shared() -> Result<Shared> {
    let folder = folder()?;
    let nodes = NODES
        .get_or_try_init(|| async {
            let (compiler, _) = on_services_runtime(compiler::start_node(folder)).await?;
            let store = store_of(folder);
            let (executor, _) = on_services_runtime(async move {
                let change = |config: &mut ExecutorConfig| config.kv_memory_bytes = KV_MEMORY_BYTES;
                executor::start_node(&store, folder, Backends::open, change).await
            })
            .await?;
            Ok::<_, anyhow::Error>(Nodes { compiler, executor })
        })
        .await?;
    Ok(Shared {
        compiler: Compiler::connected(folder, nodes.compiler.connect().await?),
        executor: Executor::connected(nodes.executor.connect().await?),
        folder: folder.to_owned(),
    })
}

/// SmolLM2-135M-Instruct in the shared executor.
///
/// # Errors
/// When it cannot be compiled or loaded.
pub async fn smollm2(precision: Precision, cache: CacheKind) -> Result<LoadedEngine> {
    let shared = shared().await?;
    let key = shared.compiler.key(smollm2_request(precision, cache)?).await?;
    Ok(shared.executor.engine(&key).await?)
}

/// An engine of a store's folder as files, verified.
///
/// # Errors
/// When it is not in the store or broken.
pub async fn engine_files(shared: &Shared, key: &str) -> Result<PulledEngine> {
    let store = EngineStore::open(&shared.store().display().to_string(), StoreOptions::default())?;
    let key = EngineKey::parse(key).with_context(|| format!("{key:?} is no engine key"))?;
    let cache = LocalCache::open(shared.folder.join("executor"), CacheLimits::default())?;
    let manifest = store.get_manifest(&key).await?;
    Ok(cache.pull(&store, &manifest, &NoProgress).await?)
}

async fn on_services_runtime<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let runtime = RUNTIME.as_ref().map_err(|error| anyhow!("{error}"))?;
    runtime.spawn(work).await?
}
