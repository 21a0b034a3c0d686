//! A server on a port of its own.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use roundhouse_rpc::{Readiness, ServeError, Server, ServerConfig};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};

/// A server that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Node {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Node {
    /// Serves `routes` on a free port of the loopback, in a task of the current runtime. `names` and `ready` as for
    /// [`Server::serve`].
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start<Ready>(
        routes: Routes,
        names: &'static [&'static str],
        ready: impl FnOnce(Readiness) -> Ready + Send + 'static,
    ) -> Result<Self>
    where
        Ready: Future<Output = ()> + Send,
    {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(&ServerConfig { address, drain_timeout: Duration::from_secs(30) }).await?;
        let address = server.address();
        let (stop, stopped) = oneshot::channel();
        let serving =
            tokio::spawn(
                async move { server.serve(routes, names, ready, async { drop(stopped.await) }).await },
            );
        Ok(Self { address, stop: Some(stop), serving })
    }

    /// Serves `routes`, ready at once.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start_ready(routes: Routes, names: &'static [&'static str]) -> Result<Self> {
        Self::start(routes, names, |readiness| async move { readiness.serving().await }).await
    }

    /// How to connect to it.
    ///
    /// # Errors
    /// Never in practice: the address is one.
    pub fn endpoint(&self) -> Result<Endpoint> {
        Ok(Endpoint::from_shared(format!("http://{}", self.address))?)
    }

    /// A connection of the current runtime.
    ///
    /// # Errors
    /// When nothing listens.
    pub async fn connect(&self) -> Result<Channel> {
        self.endpoint()?.connect().await.with_context(|| self.address.to_string())
    }

    /// Tells the server to drain. It ends when its calls have: [`Node::ended`].
    pub fn stop(&mut self) {
        // Dropping the sender is the signal.
        self.stop = None;
    }

    /// Waits for the server to end.
    ///
    /// # Errors
    /// What it failed with.
    pub async fn ended(mut self) -> Result<()> {
        Ok((&mut self.serving).await??)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
