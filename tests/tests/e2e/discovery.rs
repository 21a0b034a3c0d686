//! What a client that knows nothing can find out: health and reflection, and how a server goes down.

use futures::StreamExt as _;
use prost::Message as _;
use roundhouse_compiler::CompilerService;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_executor::{ExecutorConfig, ExecutorService};
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{GenerateRequest, LoadEngineRequest};
use roundhouse_tests::harness::{Compiler, Generated, Node, shared, smollm2_request, tokens};
use tokio::sync::oneshot;
use tonic::Code;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

async fn health(channel: &Channel, service: &str) -> Result<i32, tonic::Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(HealthClient::new(channel.clone()).check(request).await?.into_inner().status)
}

const SERVING: i32 = ServingStatus::Serving as i32;
const NOT_SERVING: i32 = ServingStatus::NotServing as i32;

/// An executor that becomes ready when it is told to.
async fn executor(folder: &std::path::Path, store: String) -> (Node, oneshot::Sender<()>) {
    let service = ExecutorService::open(ExecutorConfig::new(store, folder.join("executor"))).await.unwrap();
    let (ready, told) = oneshot::channel::<()>();
    let node =
        Node::start(service.routes(Routes::default()), ExecutorService::NAMES, |readiness| async move {
            told.await.unwrap();
            readiness.serving().await;
        });
    (node.await.unwrap(), ready)
}

#[tokio::test]
async fn health_is_not_serving_until_the_service_can_serve() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store").display().to_string();
    let (node, ready) = executor(folder.path(), store).await;
    let channel = node.connect().await.unwrap();
    let name = ExecutorService::NAMES[0];
    for service in ["", name] {
        assert_eq!(health(&channel, service).await.unwrap(), NOT_SERVING, "{service:?}");
    }
    let request = HealthCheckRequest { service: name.to_owned() };
    let mut changes = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
    assert_eq!(changes.message().await.unwrap().unwrap().status, NOT_SERVING);
    ready.send(()).unwrap();
    assert_eq!(changes.message().await.unwrap().unwrap().status, SERVING);
    for service in ["", name] {
        assert_eq!(health(&channel, service).await.unwrap(), SERVING, "{service:?}");
    }
    let status = health(&channel, "no.such.Service").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn a_server_that_goes_down_says_so_and_lets_calls_end() {
    let shared = shared().await.unwrap();
    let request = smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap();
    let key = shared.compiler.key(request).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (mut node, ready) = executor(folder.path(), shared.store().display().to_string()).await;
    ready.send(()).unwrap();
    let channel = node.connect().await.unwrap();
    let mut client = ExecutorClient::new(channel.clone());
    client.load_engine(LoadEngineRequest { engine_key: key }).await.unwrap();
    let mut changes =
        HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    while changes.message().await.unwrap().unwrap().status != SERVING {}

    let request: GenerateRequest = tokens(&[1, 2, 3], 40);
    let mut stream = client.generate(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    node.stop();
    assert_eq!(changes.message().await.unwrap().unwrap().status, NOT_SERVING);
    // A watch ends when the watcher does.
    drop(changes);
    let generated = Generated::read_after(vec![first], &mut stream).await.unwrap();
    assert_eq!(generated.token_ids.len(), 40);
    drop((stream, client));
    node.ended().await.unwrap();
}

/// Asks for a server's services and their descriptors by one version of the reflection protocol, and checks that the
/// descriptors define the services.
macro_rules! reflects {
    ($version:ident, $channel:expr, $services:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest as Ask;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse as Answer;

        let (channel, services): (Channel, &[&str]) = ($channel, $services);
        let asks = std::iter::once(Ask::ListServices(String::new()))
            .chain(services.iter().map(|service| Ask::FileContainingSymbol((*service).to_owned())))
            .chain([Ask::FileContainingSymbol("no.such.Symbol".to_owned())]);
        let requests: Vec<_> = asks
            .map(|ask| ServerReflectionRequest { host: String::new(), message_request: Some(ask) })
            .collect();
        let mut client = ServerReflectionClient::new(channel);
        let answers =
            client.server_reflection_info(futures::stream::iter(requests)).await.unwrap().into_inner();
        let mut answers = answers.map(|answer| answer.map(|answer| answer.message_response.unwrap()));

        let Some(Ok(Answer::ListServicesResponse(listed))) = answers.next().await else { unreachable!() };
        let listed: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
        for service in services.iter().chain(&["grpc.health.v1.Health"]) {
            assert!(listed.iter().any(|name| name == service), "{service} is not in {listed:?}");
        }
        for service in services {
            let Some(Ok(Answer::FileDescriptorResponse(found))) = answers.next().await else {
                unreachable!("{service}")
            };
            let files: Vec<_> = found
                .file_descriptor_proto
                .iter()
                .map(|bytes| prost_types::FileDescriptorProto::decode(bytes.as_slice()).unwrap())
                .collect();
            let (package, name) = service.rsplit_once('.').unwrap();
            let defined =
                files.iter().filter(|file| file.package() == package).flat_map(|file| &file.service);
            let defined = defined.clone().find(|defined| defined.name() == name).unwrap();
            assert!(!defined.method.is_empty(), "{service}");
        }
        // tonic ends the stream where the protocol has an error message.
        let Some(Err(status)) = answers.next().await else { unreachable!() };
        assert_eq!(status.code(), Code::NotFound);
    }};
}

#[tokio::test]
async fn reflection_describes_the_services_in_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::start(folder.path()).await.unwrap();
    let store = compiler.store().display().to_string();
    let (executor, _ready) = executor(folder.path(), store).await;
    for (node, services) in
        [(compiler.node().unwrap(), CompilerService::NAMES), (&executor, ExecutorService::NAMES)]
    {
        let channel = node.connect().await.unwrap();
        reflects!(v1, channel.clone(), services);
        reflects!(v1alpha, channel, services);
    }
}
