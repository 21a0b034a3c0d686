//! A step that does not end, or a lost device, shows in the health and the load, and holds up no caller beyond its deadline.

use std::time::Duration;

use roundhouse_executor::ExecutorService;
use roundhouse_proto::executor::GenerateRequest;
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::harness::{Generated, eventually, reason, tokens};
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::gated::gated;

async fn becomes(channel: &Channel, status: ServingStatus) {
    for service in ["", ExecutorService::NAMES[0]] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut changes = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
        eventually("the health to change", async || {
            let found = changes.message().await?;
            Ok(found.filter(|found| found.status == status as i32).map(drop))
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn a_step_that_does_not_end_turns_health_not_serving_until_it_does() {
    let (executor, engine, gate) = gated(1, |config| config.step_timeout = Duration::from_millis(200)).await;
    let channel = executor.node().unwrap().connect().await.unwrap();
    becomes(&channel, ServingStatus::Serving).await;
    assert_eq!(executor.get_load().await.unwrap().problems, [""; 0]);

    gate.close();
    let mut stream = engine.stream(tokens(&[5, 6, 7], 4)).await.unwrap();
    becomes(&channel, ServingStatus::NotServing).await;
    let problems = executor.get_load().await.unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains(&engine.key) && problems[0].contains("200ms"), "{problems:?}");

    gate.open();
    assert_eq!(Generated::read(&mut stream).await.unwrap().token_ids.len(), 4);
    becomes(&channel, ServingStatus::Serving).await;
    assert_eq!(executor.get_load().await.unwrap().problems, [""; 0]);
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn a_lost_device_ends_streams_with_a_status_to_go_elsewhere_and_turns_health_not_serving() {
    let (executor, engine, gate) = gated(1, |config| config.step_timeout = Duration::from_millis(200)).await;
    let channel = executor.node().unwrap().connect().await.unwrap();
    becomes(&channel, ServingStatus::Serving).await;

    gate.lose();
    let status = match engine.stream(tokens(&[5, 6, 7], 4)).await {
        Ok(mut stream) => Generated::read(&mut stream).await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, reasons::DEVICE_LOST));
    becomes(&channel, ServingStatus::NotServing).await;
    let problems = executor.get_load().await.unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains(&engine.key) && problems[0].contains("lost"), "{problems:?}");
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn a_deadline_ends_streams_while_a_step_does_not_end() {
    let (executor, engine, gate) = gated(1, |_| {}).await;
    gate.close();
    let late = async || {
        let named = GenerateRequest { engine: Some(engine.key.clone()), ..tokens(&[5, 6, 7], 4) };
        let mut request = Request::new(named);
        request.set_timeout(Duration::from_millis(500));
        executor.generate(request).await.unwrap_err()
    };
    // The one in the step, and one that waits for its first.
    for status in [late().await, late().await] {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::DeadlineExceeded, reasons::DEADLINE_EXCEEDED)
        );
    }
    gate.open();
    executor.becomes_idle().await.unwrap();
}
