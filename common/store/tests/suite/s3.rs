//! The suite over S3's protocol: conditional creation, multipart uploads and ranges, against a server that this project
//! did not write.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use object_store::RetryConfig;
use object_store::aws::AmazonS3Builder;
use roundhouse_store::conformance::{sample_manifest, store_conformance};
use roundhouse_store::{EngineStore, StoreError, StoreOptions, Versions};
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::versions::versions_conform;

/// A server over a folder with one bucket, stopped when dropped.
struct Server {
    address: SocketAddr,
    _tasks: JoinSet<()>,
    _folder: TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join("bucket")).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single("key", "secret"));
        let service = builder.build();
        // The server looks whether an object is there and then writes it, in two steps; S3 does it in one.
        let creations = Arc::new(Mutex::new(()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (service, creations) = (service.clone(), creations.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (service, creations) = (service.clone(), creations.clone());
                    async move {
                        let conditional = request.headers().contains_key("if-none-match");
                        let _turn = if conditional { Some(creations.lock().await) } else { None };
                        service.call(request.map(Body::from)).await
                    }
                });
                connections.spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { address, _tasks: tasks, _folder: folder }
    }

    fn options(&self) -> StoreOptions {
        // 5 MiB is the smallest part that S3 takes.
        let options = StoreOptions { part_bytes: 5 << 20, range_bytes: 1 << 20, ..StoreOptions::default() };
        options
            .with("aws_endpoint", format!("http://{}", self.address))
            .with("aws_allow_http", "true")
            .with("aws_region", "us-east-1")
            .with("aws_access_key_id", "key")
            .with("aws_secret_access_key", "secret")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_passes_the_suite() {
    let server = Server::start().await;
    store_conformance(&EngineStore::open("s3://bucket/a/prefix", server.options()).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_keeps_records_in_versions() {
    let server = Server::start().await;
    let store = Versions::open("s3://bucket/a/prefix", &server.options()).unwrap();
    versions_conform(&store).await;
}

#[tokio::test]
async fn wrong_credentials_are_told_apart_from_a_missing_engine_and_a_dead_server() {
    let key = sample_manifest("m", 1).unwrap().key;
    let server = Server::start().await;
    let store = EngineStore::open("s3://bucket", server.options()).unwrap();
    let error = store.get_manifest(&key).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");

    let options = server.options().with("aws_secret_access_key", "wrong");
    let error = EngineStore::open("s3://bucket", options).unwrap().get_manifest(&key).await.unwrap_err();
    assert!(matches!(error, StoreError::PermissionDenied { .. }), "{error}");
    assert!(!error.to_string().contains("wrong") && !error.is_retryable(), "{error}");

    let endpoint = format!("http://{}", server.address);
    drop(server);
    let client =
        AmazonS3Builder::new().with_bucket_name("bucket").with_endpoint(endpoint).with_allow_http(true);
    let client = client.with_access_key_id("key").with_secret_access_key("secret");
    let client = client.with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() }).build().unwrap();
    let store = EngineStore::with_client(Arc::new(client), StoreOptions::default());
    let error = store.get_manifest(&key).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}
