//! Generations that wait: who goes first, how long, and how they end before their first step.

use std::time::Duration;

use futures::StreamExt as _;
use roundhouse_proto::executor::{FinishReason, GenerateRequest};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::harness::{Generated, reason, tokens};
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::gated::gated;

fn named(id: &str, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { request_id: Some(id.to_owned()), ..request }
}

#[tokio::test]
async fn the_more_important_goes_first_and_of_equals_the_earlier() {
    let (_executor, engine, gate) = gated(1, |_| {}).await;
    gate.close();
    let mut streams = vec![engine.stream(tokens(&[5, 6], 2)).await.unwrap()];
    gate.step_waits().await;
    for priority in [None, Some(-10), Some(10), Some(0)] {
        let request = GenerateRequest { priority, ..tokens(&[7, 8], 3) };
        streams.push(engine.stream(request).await.unwrap());
    }
    let numbered = (0..).zip(streams).map(|(index, stream)| stream.map(move |_message| index));
    let mut messages = futures::stream::select_all(numbered);
    let mut order = Vec::new();
    // A step gives one message: there is one place.
    while order.len() < 5 {
        gate.pass_one().await;
        let index = messages.next().await.unwrap();
        if !order.contains(&index) {
            order.push(index);
        }
    }
    assert_eq!(order, [0, 3, 1, 4, 2]);
    gate.open();
}

#[tokio::test]
async fn a_priority_out_of_range_is_refused() {
    let (_executor, engine, _gate) = gated(1, |_| {}).await;
    for priority in [-11, 11, i32::MIN] {
        let request = GenerateRequest { priority: Some(priority), ..tokens(&[7, 8], 3) };
        let status = engine.stream(request).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, reasons::INVALID_FIELD)
        );
    }
}

#[tokio::test]
async fn who_waits_longer_than_one_may_is_told_to_come_back() {
    const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);
    let (executor, engine, gate) = gated(1, |config| config.queue_timeout = QUEUE_TIMEOUT).await;
    gate.close();
    let mut running = engine.stream(tokens(&[5, 6], 100)).await.unwrap();
    gate.step_waits().await;
    let mut waiting = engine.stream(tokens(&[7, 8], 3)).await.unwrap();
    tokio::time::sleep(QUEUE_TIMEOUT).await;
    gate.open();
    let status = Generated::read(&mut waiting).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, reasons::QUEUE_TIMEOUT));
    let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    assert!(retry.is_some_and(|delay| delay > Duration::ZERO), "{status}");
    // Who runs is not refused, however long it takes.
    assert_eq!(Generated::read(&mut running).await.unwrap().token_ids.len(), 100);
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn one_that_waits_is_cancelled_or_ends_with_its_deadline_and_keeps_nobody_waiting() {
    let (executor, engine, gate) = gated(1, |_| {}).await;
    gate.close();
    let mut running = engine.stream(tokens(&[5, 6], 20)).await.unwrap();
    gate.step_waits().await;
    let mut cancelled = engine.stream(named("cancelled", tokens(&[7, 8], 3))).await.unwrap();
    let mut last = engine.stream(tokens(&[9, 10], 3)).await.unwrap();
    drop(engine.stream(tokens(&[11], 3)).await.unwrap());
    let mut late = Request::new(GenerateRequest { engine: Some(engine.key.clone()), ..tokens(&[12], 3) });
    late.set_timeout(Duration::from_millis(300));
    let status = executor.generate(late).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    executor.cancel("cancelled").await.unwrap();
    // The end of this step is the first moment at which the scheduler can see any of it.
    gate.pass_one().await;
    let ended = Generated::read(&mut cancelled).await.unwrap();
    assert_eq!((ended.finish_reason, ended.usage.output_tokens), (FinishReason::Cancelled, 0));
    gate.open();
    assert_eq!(Generated::read(&mut running).await.unwrap().token_ids.len(), 20);
    assert_eq!(Generated::read(&mut last).await.unwrap().token_ids.len(), 3);
    executor.becomes_idle().await.unwrap();
}
