//! The server shell: a listener, the services on it, health, reflection and draining.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;

use crate::Readiness;

/// The largest message that a service takes or sends, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// How a server listens.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// After the signal to stop, how long running calls may take to end.
    pub drain_timeout: Duration,
}

/// A server that could not start or failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The descriptors of the services are broken.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("gRPC transport: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// A bound server: its port is taken, and it answers once [`Server::serve`] runs.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    drain_timeout: Duration,
}

impl Server {
    /// Takes the port.
    ///
    /// # Errors
    /// [`ServeError::Bind`].
    pub async fn bind(config: &ServerConfig) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Bind { address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, drain_timeout: config.drain_timeout })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `services` until `shutdown` completes, then drains: health turns NOT_SERVING, no new connection is
    /// taken, and calls that run get the drain timeout to end.
    ///
    /// `names` are the full gRPC names of the services, for health and reflection; `ready` is called with the
    /// [`Readiness`] to turn SERVING when the service can serve.
    ///
    /// # Errors
    /// When reflection cannot be built or the transport fails.
    pub async fn serve<Ready>(
        self,
        services: Routes,
        names: &[&'static str],
        ready: impl FnOnce(Readiness) -> Ready,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError>
    where
        Ready: Future<Output = ()>,
    {
        let (readiness, health) = Readiness::new(names).await;
        let routes = services
            .add_service(health)
            .add_service(reflection(names).build_v1()?)
            .add_service(reflection(names).build_v1alpha()?);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .add_routes(routes)
            // The builder's own `tcp_nodelay` says nothing of connections that come this way. Without it a small message
            // waits until the one before is acknowledged: some 40 ms.
            .serve_with_incoming_shutdown(TcpIncoming::from(self.listener).with_nodelay(Some(true)), async {
                // An error means that the sender is gone, which is a reason to stop too.
                let _ = stopped.await;
            });
        tokio::pin!(server);
        tokio::pin!(shutdown);

        let running = async {
            ready(readiness.clone()).await;
            (&mut shutdown).await;
        };
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            () = running => {}
        }
        tracing::info!("draining");
        readiness.drain().await;
        // The receiver lives in `server`, which has not ended.
        let _ = stop.send(());
        match tokio::time::timeout(self.drain_timeout, server).await {
            Ok(ended) => Ok(ended?),
            Err(_elapsed) => {
                tracing::warn!(timeout = ?self.drain_timeout, "calls were still running when the drain timeout passed");
                Ok(())
            }
        }
    }
}

fn reflection(names: &[&'static str]) -> tonic_reflection::server::Builder<'static> {
    let health = tonic_health::pb::FILE_DESCRIPTOR_SET;
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(roundhouse_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(health)
        .with_service_name("grpc.health.v1.Health");
    names.iter().fold(builder, |builder, &name| builder.with_service_name(name))
}
