//! The gRPC surface of the executor.

mod caller;
mod convert;
mod engines;
mod executor;
mod failure;
mod generate;
mod images;
mod options;
mod requests;
mod sessions;
mod stream;
mod until;
mod watchdog;

use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse_engine::EngineKey;
use roundhouse_proto::executor::executor_server::ExecutorServer;
use roundhouse_rpc::MAX_MESSAGE_BYTES;
use roundhouse_store::{CacheLimits, EngineStore, LocalCache, StoreError, StoreOptions, Versions};
use roundhouse_telemetry::metrics::Metrics;
use roundhouse_vision::VisionError;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;

use crate::ExecutorConfig;
use crate::backends::Backends;
use crate::engine::{Engines, Loaded, SharedParts};
use crate::images::Images;
use crate::metrics::{ExecutorMetrics, State};
use crate::prefix_cache::{PrefixCache, PrefixCacheLimits, SpillError};
use crate::session::{KvMemory, SessionArchive, Sessions};
use requests::Requests;

/// The longest that an expired session stays.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often stored sessions are looked at that no executor may have any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// The executor service. Cheap to clone; all clones are one service.
#[derive(Clone)]
pub struct ExecutorService {
    engines: Arc<Engines>,
    sessions: Arc<Sessions>,
    memory: Arc<KvMemory>,
    metrics: Arc<ExecutorMetrics>,
    prefixes: Arc<PrefixCache>,
    images: Arc<Images>,
    requests: Arc<Requests>,
    config: Arc<ExecutorConfig>,
    stopped: CancellationToken,
}

/// An executor service that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store or the local cache.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder of the prefix cache.
    #[error(transparent)]
    Spill(#[from] SpillError),
    /// The configuration of images.
    #[error(transparent)]
    Images(#[from] VisionError),
    /// A fault of the executor.
    #[error("opening the cache and the backends ended abnormally: {0}")]
    Panicked(#[source] tokio::task::JoinError),
}

impl ExecutorService {
    /// The full gRPC names, for health and reflection.
    pub const NAMES: &'static [&'static str] = &["roundhouse.executor.v1.Executor"];

    /// Opens the store, the local cache and the backends.
    ///
    /// # Errors
    /// When the store or the cache cannot be used. A backend that cannot be is no error: loading its engine is.
    pub async fn open(config: ExecutorConfig) -> Result<Self, OpenError> {
        Self::open_with(config, Backends::open).await
    }

    /// As [`ExecutorService::open`], with other backends than this program knows.
    ///
    /// # Errors
    /// As [`ExecutorService::open`].
    pub async fn open_with(
        config: ExecutorConfig,
        backends: impl FnOnce(&ExecutorConfig) -> Backends + Send + 'static,
    ) -> Result<Self, OpenError> {
        let store = EngineStore::open(&config.store, StoreOptions::from_env())?;
        let opening = {
            let (folder, limits) =
                (config.cache_dir.clone(), CacheLimits { max_bytes: config.cache_limit_bytes });
            let config = config.clone();
            tokio::task::spawn_blocking(move || {
                Ok::<_, StoreError>((LocalCache::open(folder, limits)?, backends(&config)))
            })
        };
        let (cache, backends) = opening.await.map_err(OpenError::Panicked)??;
        for found in backends.found() {
            match &found.runs_on {
                Ok(_) => tracing::info!(backend = %found.backend, "backend"),
                Err(reason) => tracing::info!(backend = %found.backend, reason, "backend unavailable"),
            }
        }
        let archive = match &config.session_store {
            Some(place) => Some(SessionArchive::new(Versions::open(place, &StoreOptions::from_env())?)),
            None => None,
        };
        let shared = SharedParts {
            memory: KvMemory::new(config.kv_memory_bytes),
            sessions: Arc::new(Sessions::new(config.max_sessions, archive)),
            metrics: ExecutorMetrics::new(Metrics::default()),
        };
        let prefixes = PrefixCache::new(PrefixCacheLimits {
            memory_bytes: config.prefix_cache_bytes,
            spill: config.prefix_cache_dir.clone().map(|folder| (folder, config.prefix_cache_disk_bytes)),
        })?;
        let images = Arc::new(Images::new(config.images.clone())?);
        let service = Self {
            engines: Arc::new(Engines::new(store, cache, backends, shared.clone(), &config)),
            metrics: Arc::clone(&shared.metrics),
            sessions: shared.sessions,
            memory: shared.memory,
            prefixes,
            images,
            requests: Arc::default(),
            config: Arc::new(config),
            stopped: CancellationToken::new(),
        };
        let shown = State {
            engines: Arc::downgrade(&service.engines),
            sessions: Arc::clone(&service.sessions),
            memory: Arc::clone(&service.memory),
            prefixes: Arc::clone(&service.prefixes),
            images: Arc::clone(&service.images),
        };
        service.metrics.registry().observe(Arc::new(shown));
        tokio::spawn(service.clone().expire_sessions());
        if let Some(archive) = service.sessions.archive() {
            tokio::spawn(sweep_sessions(Arc::clone(archive), service.stopped.clone()));
        }
        Ok(service)
    }

    /// Adds its service to `routes`.
    #[must_use]
    pub fn routes(&self, routes: Routes) -> Routes {
        routes.add_service(
            ExecutorServer::new(self.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
    }

    /// What it counts and times.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        self.metrics.registry()
    }

    /// Loads an engine by its key, as the RPC does.
    ///
    /// # Errors
    /// The status that the RPC would answer with.
    pub async fn load(&self, key: &str) -> Result<Loaded, Status> {
        let key = EngineKey::parse(key).ok_or_else(|| failure::not_a_key(key))?;
        Ok(self.engines.load(&key).await.map_err(|error| failure::of_load(&error))?)
    }

    /// Ends every generation and frees the engines.
    pub async fn stop(&self) {
        self.stopped.cancel();
        let engines = Arc::clone(&self.engines);
        // Dropping an engine joins its scheduler's thread.
        if let Err(error) = tokio::task::spawn_blocking(move || engines.stop()).await {
            tracing::error!(%error, "unloading ended abnormally");
        }
        // The generations that it has ended are turns too.
        if let Some(archive) = self.sessions.archive() {
            archive.finish().await;
        }
    }

    async fn expire_sessions(self) {
        loop {
            let now = Instant::now();
            if let Some(since) = now.checked_sub(self.config.session_cache_timeout) {
                self.sessions.drop_caches_idle_since(since);
            }
            let next = self.sessions.expire(now).unwrap_or(EXPIRY_INTERVAL).min(EXPIRY_INTERVAL);
            tokio::select! {
                () = tokio::time::sleep(next.max(Duration::from_millis(10))) => {}
                () = self.stopped.cancelled() => return,
            }
        }
    }
}

async fn sweep_sessions(archive: Arc<SessionArchive>, stopped: CancellationToken) {
    loop {
        match archive.sweep().await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "deleted expired sessions from their store"),
            Err(error) => tracing::warn!(%error, "expired sessions are still stored"),
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
            () = stopped.cancelled() => return,
        }
    }
}
