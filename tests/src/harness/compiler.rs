//! A compiler service and its clients.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use prost::Message as _;
use roundhouse_backend::LibrarySearch;
use roundhouse_compiler::{CompilerConfig, CompilerService};
use roundhouse_hub::HubConfig;
use roundhouse_proto::compiler::compiler_client::CompilerClient;
use roundhouse_proto::compiler::{CompileEngineRequest, CompileEngineResponse};
use roundhouse_proto::google::longrunning::operations_client::OperationsClient;
use roundhouse_proto::google::longrunning::{Operation, WaitOperationRequest, operation};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::Node;

/// A compiler service and its clients.
#[derive(Debug)]
pub struct Compiler {
    /// Its compilations.
    pub client: CompilerClient<Channel>,
    /// Its operations.
    pub operations: OperationsClient<Channel>,
    folder: PathBuf,
    node: Option<Node>,
}

impl Compiler {
    /// Starts a compiler with everything it writes under `folder`. It builds one engine at a time and does not use the
    /// network.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn start(folder: &Path) -> Result<Self> {
        let node = start_node(folder).await?;
        Ok(Self { node: Some(node.0), ..Self::connected(folder, node.1) })
    }

    pub(super) fn connected(folder: &Path, channel: Channel) -> Self {
        Self {
            client: CompilerClient::new(channel.clone()),
            operations: OperationsClient::new(channel),
            folder: folder.to_owned(),
            node: None,
        }
    }

    /// The folder that is its store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        store_of(&self.folder)
    }

    /// Where it builds.
    #[must_use]
    pub fn build_dir(&self) -> PathBuf {
        self.folder.join("builds")
    }

    /// Its server, unless it is the shared one.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Compiles, and waits for the end.
    ///
    /// # Errors
    /// The status of the call, or the one that the operation ended with.
    pub async fn compile(&self, request: CompileEngineRequest) -> Result<CompileEngineResponse, Status> {
        let operation = self.client.clone().compile_engine(request).await?.into_inner();
        self.finish(operation).await
    }

    /// Waits for the end of an operation.
    ///
    /// # Errors
    /// The status that it ended with.
    pub async fn finish(&self, mut operation: Operation) -> Result<CompileEngineResponse, Status> {
        let mut operations = self.operations.clone();
        while !operation.done {
            let request = WaitOperationRequest { name: operation.name, timeout: None };
            operation = operations.wait_operation(request).await?.into_inner();
        }
        operation_result(&operation)
    }

    /// The key of the engine that a request makes, compiled if there is none.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub async fn key(&self, request: CompileEngineRequest) -> Result<String, Status> {
        Ok(self.compile(request).await?.engine.unwrap_or_default().key)
    }

    /// The keys of the manifests in the store, found without asking the service.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn stored_keys(&self) -> Result<Vec<String>> {
        let engines = names_in(&self.store().join("engines"))?;
        Ok(engines.into_iter().filter(|key| self.manifest_path(key).exists()).collect())
    }

    /// The file of a manifest.
    #[must_use]
    pub fn manifest_path(&self, key: &str) -> PathBuf {
        self.store().join("engines").join(key).join("manifest.json")
    }

    /// The file of a blob.
    #[must_use]
    pub fn blob_path(&self, sha256: &str) -> PathBuf {
        self.store().join("blobs/sha256").join(sha256)
    }

    /// What is in the folder where it builds.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn builds(&self) -> Result<Vec<String>> {
        names_in(&self.build_dir())
    }
}

pub(super) async fn start_node(folder: &Path) -> Result<(Node, Channel)> {
    let config = CompilerConfig {
        store: store_of(folder).display().to_string(),
        build_dir: folder.join("builds"),
        hub: HubConfig {
            // Nothing listens there, and nothing asks: offline.
            endpoint: "http://127.0.0.1:9".to_owned(),
            token: None,
            hub_cache: folder.join("hub"),
            cache: folder.join("checkpoints"),
            offline: true,
            local_paths: true,
            retry_delay: Duration::from_millis(1),
            object_store: std::collections::BTreeMap::new(),
        },
        tensorrt: LibrarySearch {
            path: std::env::var_os("ROUNDHOUSE_TENSORRT_LIBRARY").map(PathBuf::from),
            folders: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../.roundhouse/tensorrt")],
        },
        nvrtc: LibrarySearch {
            path: std::env::var_os("ROUNDHOUSE_NVRTC_LIBRARY").map(PathBuf::from),
            folders: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../.roundhouse/nvrtc")],
        },
        concurrent_builds: 1,
        queue_limit: 64,
    };
    let service = CompilerService::open(config).await?;
    let node = Node::start_ready(service.routes(Routes::default()), CompilerService::NAMES).await?;
    let channel = node.connect().await?;
    Ok((node, channel))
}

pub(super) fn store_of(folder: &Path) -> PathBuf {
    folder.join("store")
}

/// What a finished operation made.
///
/// # Errors
/// The status that it ended with, details included; UNKNOWN when it has not ended.
pub fn operation_result(operation: &Operation) -> Result<CompileEngineResponse, Status> {
    match &operation.result {
        Some(operation::Result::Response(any)) => CompileEngineResponse::decode(any.value.as_slice())
            .map_err(|error| Status::unknown(format!("{}: {error}", any.type_url))),
        Some(operation::Result::Error(status)) => {
            // A tonic status carries its details as an encoded google.rpc.Status, which is what an operation has.
            Err(Status::with_details(
                Code::from(status.code),
                status.message.clone(),
                status.encode_to_vec().into(),
            ))
        }
        None => Err(Status::unknown(format!("{} has not ended", operation.name))),
    }
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
