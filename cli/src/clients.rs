//! Clients of the services: remote where an address is given, else embedded in this process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use roundhouse_proto::compiler::compiler_client::CompilerClient;
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::google::longrunning::operations_client::OperationsClient;
use roundhouse_rpc::{MAX_MESSAGE_BYTES, Server, ServerConfig};
use tonic::transport::{Channel, Endpoint};

use crate::failover::Executors;
use crate::serve;
use crate::tensorrt_library::LibraryArgs;

/// Where the services are.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServiceArgs {
    /// Address of a compiler service; without one it is embedded.
    #[arg(long, global = true, env = "ROUNDHOUSE_COMPILER", value_name = "URL")]
    pub(crate) compiler: Option<String>,
    /// Addresses of executor services, comma-separated: the first that answers is used, and a conversation goes on with the
    /// next one when it fails. Without any it is embedded.
    #[arg(long, global = true, env = "ROUNDHOUSE_EXECUTOR", value_delimiter = ',', value_name = "URL,…")]
    pub(crate) executor: Vec<String>,
    /// Engine store of embedded services: a folder, s3://…, gs://… or az://….
    #[arg(long, global = true, env = "ROUNDHOUSE_STORE", value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Folder of embedded services for checkpoints, builds and pulled engines.
    #[arg(long, global = true, env = "ROUNDHOUSE_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Threads of the embedded CPU backend; one a core by default.
    #[arg(long, global = true)]
    pub(crate) threads: Option<usize>,
    #[command(flatten)]
    pub(crate) library: LibraryArgs,
}

impl ServiceArgs {
    /// A client of the compiler service.
    pub(crate) async fn compiler(&self) -> anyhow::Result<Compiler> {
        let url = match &self.compiler {
            Some(url) => url.clone(),
            None => {
                let server = bind_embedded().await?;
                let url = format!("http://{}", server.address());
                let args = serve::CompilerArgs::embedded(self);
                tokio::spawn(async move {
                    if let Err(error) = serve::run_compiler(server, args, std::future::pending()).await {
                        tracing::error!("the embedded compiler service: {error:#}");
                    }
                });
                url
            }
        };
        let connecting = endpoint(&url)?.connect().await;
        let channel = connecting.with_context(|| format!("compiler service at {url}"))?;
        Ok(Compiler {
            client: CompilerClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            operations: OperationsClient::new(channel),
        })
    }

    /// A client of the executor service.
    pub(crate) async fn executor(&self) -> anyhow::Result<ExecutorClient<Channel>> {
        Ok(self.executors().await?.client())
    }

    /// The executor services.
    pub(crate) async fn executors(&self) -> anyhow::Result<Executors> {
        Executors::connect(self.executor_endpoints().await?).await
    }

    /// How to connect to the executor services, of which there is at least one.
    pub(crate) async fn executor_endpoints(&self) -> anyhow::Result<Vec<Endpoint>> {
        if !self.executor.is_empty() {
            return self.executor.iter().map(|url| endpoint(url)).collect();
        }
        let server = bind_embedded().await?;
        let url = format!("http://{}", server.address());
        let args = serve::ExecutorArgs::embedded(self);
        tokio::spawn(async move {
            if let Err(error) = serve::run_executor(server, args, std::future::pending()).await {
                tracing::error!("the embedded executor service: {error:#}");
            }
        });
        Ok(vec![endpoint(&url)?])
    }
}

/// A compiler service with its operations.
#[derive(Debug, Clone)]
pub(crate) struct Compiler {
    pub(crate) client: CompilerClient<Channel>,
    pub(crate) operations: OperationsClient<Channel>,
}

async fn bind_embedded() -> anyhow::Result<Server> {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    Ok(Server::bind(&ServerConfig { address, drain_timeout: Duration::ZERO }).await?)
}

fn endpoint(url: &str) -> anyhow::Result<Endpoint> {
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    Ok(Endpoint::from_shared(url)?.connect_timeout(Duration::from_secs(10)))
}
