//! An executor service and its client.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use roundhouse_executor::backends::Backends;
use roundhouse_executor::{ExecutorConfig, ExecutorService};
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    CancelRequest, DetokenizeRequest, GenerateRequest, GenerateResponse, GetLoadRequest, GetLoadResponse,
    LoadEngineRequest, LoadEngineResponse,
};
use roundhouse_rpc::Readiness;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{Generated, Node, eventually};

/// How long a test's generation waits for its first step, unless the test says so.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1800);

/// An executor service and its client.
#[derive(Debug)]
pub struct Executor {
    /// All of its calls.
    pub client: ExecutorClient<Channel>,
    node: Option<Node>,
}

impl Executor {
    /// Starts an executor of a store that is a folder. Its cache, where it notes which files it has verified, is under
    /// `folder`. `change` is what is not the default.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn start(
        store: &Path,
        folder: &Path,
        change: impl FnOnce(&mut ExecutorConfig),
    ) -> Result<Self> {
        Self::start_with(store, folder, Backends::open, change).await
    }

    /// As [`Executor::start`], with other backends.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn start_with(
        store: &Path,
        folder: &Path,
        backends: impl FnOnce(&ExecutorConfig) -> Backends + Send + 'static,
        change: impl FnOnce(&mut ExecutorConfig),
    ) -> Result<Self> {
        let (node, channel) = start_node(store, folder, backends, change).await?;
        Ok(Self { node: Some(node), ..Self::connected(channel) })
    }

    pub(super) fn connected(channel: Channel) -> Self {
        Self { client: ExecutorClient::new(channel), node: None }
    }

    /// Its server, unless it is the shared one.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Loads an engine.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn load(&self, key: &str) -> Result<LoadEngineResponse, Status> {
        let request = LoadEngineRequest { engine_key: key.to_owned() };
        Ok(self.client.clone().load_engine(request).await?.into_inner())
    }

    /// Loads an engine, for requests that name it. Lives no longer than this executor.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn engine(&self, key: &str) -> Result<LoadedEngine, Status> {
        self.load(key).await?;
        let executor = Self { client: self.client.clone(), node: None };
        Ok(LoadedEngine { executor, key: key.to_owned() })
    }

    /// Begins a generation.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn stream(
        &self,
        request: impl tonic::IntoRequest<GenerateRequest>,
    ) -> Result<Streaming<GenerateResponse>, Status> {
        Ok(self.client.clone().generate(request).await?.into_inner())
    }

    /// Generates to the end.
    ///
    /// # Errors
    /// The status of the call or of the stream.
    pub async fn generate(
        &self,
        request: impl tonic::IntoRequest<GenerateRequest>,
    ) -> Result<Generated, Status> {
        Generated::read(&mut self.stream(request).await?).await
    }

    /// Stops a generation.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn cancel(&self, request_id: &str) -> Result<(), Status> {
        let request = CancelRequest { request_id: request_id.to_owned(), keep_session: None };
        self.client.clone().cancel(request).await?;
        Ok(())
    }

    /// How busy it is.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn get_load(&self) -> Result<GetLoadResponse, Status> {
        Ok(self.client.clone().get_load(GetLoadRequest {}).await?.into_inner())
    }

    /// Waits until nothing runs, waits or holds memory.
    ///
    /// # Errors
    /// When that does not come to be in [`super::PATIENCE`].
    pub async fn becomes_idle(&self) -> Result<()> {
        eventually("the executor to hold nothing", async || {
            let load = self.get_load().await?;
            let held = (load.running, load.waiting, load.sessions, load.kv_bytes_used);
            Ok((held == (0, 0, 0, 0)).then_some(()))
        })
        .await
    }
}

pub(super) async fn start_node(
    store: &Path,
    folder: &Path,
    backends: impl FnOnce(&ExecutorConfig) -> Backends + Send + 'static,
    change: impl FnOnce(&mut ExecutorConfig),
) -> Result<(Node, Channel)> {
    let mut config = ExecutorConfig::new(store.display().to_string(), folder.join("executor"));
    // What queues behind whole sequences that are computed anew for each token waits for minutes on two cores.
    config.queue_timeout = QUEUE_TIMEOUT;
    change(&mut config);
    let service = ExecutorService::open_with(config, backends).await?;
    let routes = service.routes(Routes::default());
    let ready = |readiness: Readiness| async move { service.report_health(&readiness).await };
    let node = Node::start(routes, ExecutorService::NAMES, ready).await?;
    let channel = node.connect().await?;
    Ok((node, channel))
}

/// An engine in an executor.
#[derive(Debug)]
pub struct LoadedEngine {
    /// The executor.
    pub executor: Executor,
    /// The engine's key.
    pub key: String,
}

impl LoadedEngine {
    /// Generates to the end, whichever engine the request names.
    ///
    /// # Errors
    /// The status of the call or of the stream.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generated, Status> {
        self.executor.generate(self.named(request)).await
    }

    /// Begins a generation, whichever engine the request names.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn stream(&self, request: GenerateRequest) -> Result<Streaming<GenerateResponse>, Status> {
        self.executor.stream(self.named(request)).await
    }

    /// Generates all outputs of a request to their ends, whichever engine it names.
    ///
    /// # Errors
    /// The status of the call or of the stream.
    pub async fn generate_all(&self, request: GenerateRequest) -> Result<Vec<Generated>, Status> {
        Generated::read_all(&mut self.stream(request).await?).await
    }

    /// The text of tokens.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn detokenize(&self, token_ids: &[u32], skip_special_tokens: bool) -> Result<String, Status> {
        let request = DetokenizeRequest {
            engine: Some(self.key.clone()),
            token_ids: token_ids.to_vec(),
            skip_special_tokens: Some(skip_special_tokens),
        };
        Ok(self.executor.client.clone().detokenize(request).await?.into_inner().text)
    }

    fn named(&self, request: GenerateRequest) -> GenerateRequest {
        GenerateRequest { engine: Some(self.key.clone()), ..request }
    }
}
