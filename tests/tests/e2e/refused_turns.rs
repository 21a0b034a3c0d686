//! A turn that never had a step leaves its session as it was before.

use std::time::Duration;

use roundhouse_proto::executor::{
    CreateSessionRequest, FinishReason, GenerateRequest, GetSessionRequest, Session,
};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::golden::Message;
use roundhouse_tests::harness::{Executor, Gate, Generated, LoadedEngine, chat, eventually, reason, tokens};
use tonic::{Code, Request};

use crate::gated::gated;

/// Of the executor whose queue is what ends the turn.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a turn with a deadline has.
const DEADLINE: Duration = Duration::from_millis(300);

/// Tokens of the generation that has the place.
const LONG: u32 = 200;

/// How a turn ends before its first step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    QueueFull,
    QueueTimeout,
    Deadline,
    Cancelled,
    ClientGone,
}

async fn create(engine: &LoadedEngine) -> Session {
    let request =
        CreateSessionRequest { engine: Some(engine.key.clone()), ..CreateSessionRequest::default() };
    engine.executor.client.clone().create_session(request).await.unwrap().into_inner()
}

async fn get(engine: &LoadedEngine, session: &Session) -> Session {
    let request = GetSessionRequest { session_id: session.id.clone() };
    engine.executor.client.clone().get_session(request).await.unwrap().into_inner()
}

fn turn(session: &Session, text: &str) -> GenerateRequest {
    let message = Message { role: "user".to_owned(), content: text.to_owned() };
    GenerateRequest { session_id: Some(session.id.clone()), ..chat(&[message], 6) }
}

/// Sends a turn that never has a step, for another generation has the only place, and sees it end. The gate is open
/// before and after.
async fn end_before_the_first_step(
    end: End,
    (executor, engine, gate): &(Executor, LoadedEngine, Gate),
    session: &Session,
) {
    gate.close();
    let mut running = engine.stream(tokens(&[5, 6], LONG)).await.unwrap();
    gate.step_waits().await;
    let refused = GenerateRequest { request_id: Some("refused".to_owned()), ..turn(session, "never said") };
    match end {
        End::QueueFull => {
            let mut waiting = engine.stream(tokens(&[7, 8], 1)).await.unwrap();
            let status = engine.stream(refused).await.unwrap_err();
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (Code::ResourceExhausted, reasons::QUEUE_FULL)
            );
            gate.open();
            Generated::read(&mut waiting).await.unwrap();
        }
        End::QueueTimeout => {
            let mut stream = engine.stream(refused).await.unwrap();
            tokio::time::sleep(QUEUE_TIMEOUT).await;
            gate.open();
            let status = Generated::read(&mut stream).await.unwrap_err();
            assert_eq!(reason(&status), reasons::QUEUE_TIMEOUT);
        }
        End::Deadline => {
            let mut late = Request::new(GenerateRequest { engine: Some(engine.key.clone()), ..refused });
            late.set_timeout(DEADLINE);
            let status = executor.generate(late).await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded);
            gate.open();
        }
        End::Cancelled => {
            let mut stream = engine.stream(refused).await.unwrap();
            executor.cancel("refused").await.unwrap();
            gate.open();
            let ended = Generated::read(&mut stream).await.unwrap();
            assert_eq!((ended.finish_reason, ended.usage.output_tokens), (FinishReason::Cancelled, 0));
        }
        End::ClientGone => {
            drop(engine.stream(refused).await.unwrap());
            // The server hears of it while the other generation still has its place.
            eventually("the turn to end", async || {
                gate.pass_one().await;
                Ok((!get(engine, session).await.busy).then_some(()))
            })
            .await
            .unwrap();
            gate.open();
        }
    }
    assert_eq!(Generated::read(&mut running).await.unwrap().token_ids.len(), LONG as usize);
}

#[tokio::test]
async fn a_turn_that_never_had_a_step_leaves_its_session_as_it_was() {
    for end in [End::QueueFull, End::QueueTimeout, End::Deadline, End::Cancelled, End::ClientGone] {
        let gated = gated(1, |config| {
            config.max_generations = 2;
            if end == End::QueueTimeout {
                config.queue_timeout = QUEUE_TIMEOUT;
            }
        })
        .await;
        let (_, engine, _) = &gated;
        let (session, untouched) = (create(engine).await, create(engine).await);
        for texts in [["a first turn", "a second"], ["a third", "a fourth"]] {
            end_before_the_first_step(end, &gated, &session).await;
            let before = get(engine, &untouched).await.num_tokens;
            eventually(&format!("{end:?}: the session to be as it was"), async || {
                let found = get(engine, &session).await;
                Ok((!found.busy && found.num_tokens == before).then_some(()))
            })
            .await
            .unwrap();
            for text in texts {
                let answer = engine.generate(turn(&session, text)).await.unwrap();
                let expected = engine.generate(turn(&untouched, text)).await.unwrap();
                assert_eq!(answer.token_ids, expected.token_ids, "{end:?}: {text}");
                assert_eq!(answer.usage.prompt_tokens, expected.usage.prompt_tokens, "{end:?}: {text}");
            }
        }
    }
}
