//! When the memory for keys and values runs out, idle sessions and then the youngest generations give theirs, and all
//! answer as they would have alone.

use futures::future::join_all;
use roundhouse_proto::executor::{
    CreateSessionRequest, FinishReason, GenerateRequest, GetSessionRequest, Session,
};
use roundhouse_tests::harness::{Executor, Generated, tokens};

use crate::gated::gated;

/// Tokens by which a cache grows.
const BLOCK: u64 = 64;
/// Keys and values of a token of the tiny model: 2 layers of 2 heads of 16 floats each.
const TOKEN_BYTES: u64 = 2 * 2 * 2 * 16 * 4;

fn blocks(count: u64) -> u64 {
    count * BLOCK * TOKEN_BYTES
}

fn prompt(first: u32, length: u32) -> Vec<u32> {
    (0..length).map(|index| 3 + (first + index * 7) % 200).collect()
}

async fn session(executor: &Executor) -> Session {
    executor.client.clone().create_session(CreateSessionRequest::default()).await.unwrap().into_inner()
}

async fn held(executor: &Executor, session: &Session) -> u64 {
    let request = GetSessionRequest { session_id: session.id.clone() };
    executor.client.clone().get_session(request).await.unwrap().into_inner().kv_bytes
}

#[tokio::test]
async fn generations_that_do_not_fit_together_all_give_what_each_gives_alone() {
    const GENERATIONS: u32 = 6;
    // Each comes to need three blocks, and five are there.
    let (executor, engine, gate) = gated(8, |config| config.kv_memory_bytes = blocks(5)).await;
    let request = |index: u32| tokens(&prompt(index * 31, 20 + index), 150);
    let mut alone = Vec::new();
    for index in 0..GENERATIONS {
        alone.push(engine.generate(request(index)).await.unwrap().token_ids);
    }
    assert_eq!(executor.get_load().await.unwrap().preemptions, 0);
    // All are there before the first one has had more than a step.
    gate.close();
    let all_are_there = async {
        loop {
            let load = executor.get_load().await.unwrap();
            if load.running + load.waiting == GENERATIONS {
                break gate.open();
            }
        }
    };
    let generations = join_all((0..GENERATIONS).map(|index| engine.generate(request(index))));
    let (together, ()) = tokio::join!(generations, all_are_there);
    let together: Vec<_> = together.into_iter().map(|generated| generated.unwrap().token_ids).collect();
    assert_eq!(together, alone);
    assert!(executor.get_load().await.unwrap().preemptions > 0);
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn an_idle_session_gives_its_memory_and_goes_on_as_if_it_had_not() {
    let (executor, engine, _gate) = gated(8, |config| config.kv_memory_bytes = blocks(4)).await;
    let [older, newer] = [session(&executor).await, session(&executor).await];
    let in_session = |session: &Session, request: GenerateRequest| GenerateRequest {
        session_id: Some(session.id.clone()),
        ..request
    };
    let turn = prompt(3, 100);
    let first = engine.generate(in_session(&older, tokens(&turn, 10))).await.unwrap();
    engine.generate(in_session(&newer, tokens(&turn, 10))).await.unwrap();
    assert_eq!((held(&executor, &older).await, held(&executor, &newer).await), (blocks(2), blocks(2)));

    // One block: of the session that was used longer ago, and all that it has.
    engine.generate(tokens(&prompt(9, 10), 10)).await.unwrap();
    assert_eq!((held(&executor, &older).await, held(&executor, &newer).await), (0, blocks(2)));
    assert_eq!(executor.get_load().await.unwrap().preemptions, 0);

    let further = prompt(5, 20);
    let second = engine.generate(in_session(&older, tokens(&further, 10))).await.unwrap();
    let history = [turn, first.token_ids, further].concat();
    let at_once = engine.generate(tokens(&history, 10)).await.unwrap();
    assert_eq!(second.token_ids, at_once.token_ids);
    // Its whole blocks are in the prefix cache.
    assert_eq!((second.usage.prompt_tokens as usize, second.usage.cached_tokens), (history.len(), 96));
}

#[tokio::test]
async fn one_that_waits_for_memory_is_cancelled_with_what_it_has_said() {
    let (executor, engine, gate) = gated(8, |config| config.kv_memory_bytes = blocks(4)).await;
    gate.close();
    let mut elder = engine.stream(tokens(&prompt(3, 60), 190)).await.unwrap();
    gate.step_waits().await;
    let request = GenerateRequest { request_id: Some("younger".to_owned()), ..tokens(&prompt(5, 30), 200) };
    let mut younger = engine.stream(request).await.unwrap();
    let mut messages = Vec::new();
    while executor.get_load().await.unwrap().preemptions == 0 {
        gate.pass_one().await;
        let before = tokio::time::timeout(std::time::Duration::ZERO, younger.message()).await;
        messages.extend(before.ok().and_then(|message| message.unwrap()));
        let read = tokio::time::timeout(std::time::Duration::ZERO, elder.message()).await;
        assert!(read.is_err() || read.unwrap().unwrap().is_some(), "the elder has ended");
    }
    executor.cancel("younger").await.unwrap();
    gate.pass_one().await;
    let ended = Generated::read_after(messages, &mut younger).await.unwrap();
    assert_eq!(ended.finish_reason, FinishReason::Cancelled);
    assert!(!ended.token_ids.is_empty());
    gate.open();
    while elder.message().await.unwrap().is_some() {}
    executor.becomes_idle().await.unwrap();
}
