//! The gRPC surface of the compiler.

mod compiler;
mod failure;
mod operations;

use std::sync::Arc;

use roundhouse_hub::Checkpoints;
use roundhouse_proto::compiler::compiler_server::CompilerServer;
use roundhouse_proto::google::longrunning::operations_server::OperationsServer;
use roundhouse_rpc::MAX_MESSAGE_BYTES;
use roundhouse_store::{EngineStore, StoreError, StoreOptions};
use roundhouse_telemetry::metrics::Metrics;
use tonic::service::Routes;

use crate::CompilerConfig;
use crate::backends::Backends;
use crate::jobs::JobQueue;
use crate::metrics::CompilerMetrics;
use crate::pipeline::Pipeline;

/// The compiler service. Cheap to clone; all clones are one service.
#[derive(Clone)]
pub struct CompilerService {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) jobs: Arc<JobQueue>,
    pub(crate) config: Arc<CompilerConfig>,
    pub(crate) metrics: Arc<CompilerMetrics>,
}

/// A compiler service that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store.
    #[error("engine store: {0}")]
    Store(#[from] StoreError),
}

impl CompilerService {
    /// The full gRPC names, for health and reflection.
    pub const NAMES: &'static [&'static str] =
        &["roundhouse.compiler.v1.Compiler", "google.longrunning.Operations"];

    /// Opens the store and the checkpoint cache.
    ///
    /// # Errors
    /// When either cannot be used.
    pub async fn open(config: CompilerConfig) -> Result<Self, OpenError> {
        let store = EngineStore::open(&config.store, StoreOptions::from_env())?;
        let checkpoints = Checkpoints::new(config.hub.clone());
        let backends = Backends::new(config.tensorrt.clone(), config.nvrtc.clone());
        let pipeline = Pipeline::new(checkpoints, store, backends, config.build_dir.clone());
        let jobs = Arc::new(JobQueue::new(config.concurrent_builds, config.queue_limit));
        Ok(Self {
            pipeline: Arc::new(pipeline),
            metrics: CompilerMetrics::new(Arc::clone(&jobs)),
            jobs,
            config: Arc::new(config),
        })
    }

    /// Adds its services to `routes`.
    #[must_use]
    pub fn routes(&self, routes: Routes) -> Routes {
        routes
            .add_service(
                CompilerServer::new(self.clone())
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(OperationsServer::new(self.clone()))
    }

    /// What it counts and times.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        self.metrics.registry()
    }

    /// Cancels what runs and returns when it has ended.
    pub async fn stop(&self) {
        self.jobs.stop().await;
    }
}
