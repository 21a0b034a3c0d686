//! Stored sessions belong to no executor: another one goes on with them, and of two at once one wins.

use std::path::Path;
use std::time::Duration;

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::executor::{
    CreateSessionRequest, DeleteSessionRequest, GenerateRequest, GetSessionRequest, Session,
    TruncateSessionRequest,
};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::golden::Message;
use roundhouse_tests::harness::{
    Executor, Generated, chat, eventually, reason, shared, smollm2_request, tiny_llama_request, tokens,
};
use tonic::{Code, Request, Status};

use crate::gated::gated;

/// An executor of its own that stores its sessions in `folder`. It has no engine yet.
async fn executor(folder: &Path) -> Executor {
    let place = folder.display().to_string();
    shared().await.unwrap().executor_alone(|config| config.session_store = Some(place)).await.unwrap()
}

async fn tiny_key() -> String {
    let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
    shared().await.unwrap().compiler.key(request).await.unwrap()
}

async fn create(executor: &Executor, key: &str) -> Session {
    executor.load(key).await.unwrap();
    let request = CreateSessionRequest { engine: Some(key.to_owned()), ..CreateSessionRequest::default() };
    executor.client.clone().create_session(request).await.unwrap().into_inner()
}

async fn get(executor: &Executor, id: &str) -> Result<Session, Status> {
    let request = GetSessionRequest { session_id: id.to_owned() };
    Ok(executor.client.clone().get_session(request).await?.into_inner())
}

fn in_session(session: &Session, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { session_id: Some(session.id.clone()), ..request }
}

fn some_tokens(first: u32, count: u32) -> Vec<u32> {
    (first..first + count).map(|place| 3 + place * place % 91).collect()
}

#[tokio::test]
async fn turns_in_two_executors_by_turns_answer_as_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (executor(folder.path()).await, executor(folder.path()).await);
    let key = tiny_key().await;
    let (session, alone) = (create(&first, &key).await, create(&first, &key).await);
    for turn in 0..4 {
        let more = some_tokens(40 * turn, 30);
        let expected = first.generate(in_session(&alone, tokens(&more, 8))).await.unwrap();
        let executor = if turn % 2 == 0 { &first } else { &second };
        let answer = executor.generate(in_session(&session, tokens(&more, 8))).await.unwrap();
        assert_eq!(answer.token_ids, expected.token_ids, "turn {turn}");
        assert_eq!(answer.usage.prompt_tokens, expected.usage.prompt_tokens, "turn {turn}");
    }
    let found = get(&first, &session.id).await.unwrap();
    assert_eq!((found.num_tokens, found.create_time), (4 * 38, session.create_time));
}

#[tokio::test]
async fn a_conversation_goes_on_in_another_executor_with_its_messages() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (executor(folder.path()).await, executor(folder.path()).await);
    let request = smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap();
    let key = shared().await.unwrap().compiler.key(request).await.unwrap();
    let (session, alone) = (create(&first, &key).await, create(&first, &key).await);
    let say = |content: &str| [Message { role: "user".to_owned(), content: content.to_owned() }];
    let mut answers = Vec::new();
    for (executor, session) in [(&first, &session), (&second, &session), (&first, &alone), (&first, &alone)] {
        let message = if answers.len() % 2 == 0 { "My name is Ada." } else { "What is my name?" };
        let answer = executor.generate(in_session(session, chat(&say(message), 16))).await.unwrap();
        answers.push((answer.token_ids, answer.usage.prompt_tokens));
    }
    assert_eq!(answers[..2], answers[2..]);
}

#[tokio::test]
async fn of_two_turns_at_once_in_two_executors_one_is_aborted() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display().to_string();
    let (first, engine, gate) = gated(4, |config| config.session_store = Some(place)).await;
    let second = executor(folder.path()).await;
    let session = create(&first, &engine.key).await;
    get(&second, &session.id).await.unwrap();
    // Both have begun before either ends.
    gate.close();
    let mut slow = first.stream(in_session(&session, tokens(&some_tokens(0, 20), 50))).await.unwrap();
    gate.step_waits().await;
    second.load(&engine.key).await.unwrap();
    let fast = second.generate(in_session(&session, tokens(&some_tokens(100, 20), 2))).await.unwrap();
    gate.open();
    let status = Generated::read(&mut slow).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, reasons::SESSION_CONFLICT));
    assert!(status.message().contains(&session.id), "{status}");
    // Both go on from the turn that won.
    let so_far = 20 + u32::try_from(fast.token_ids.len()).unwrap();
    for executor in [&first, &second] {
        assert_eq!(get(executor, &session.id).await.unwrap().num_tokens, so_far);
    }
    let answer = first.generate(in_session(&session, tokens(&some_tokens(50, 3), 4))).await.unwrap();
    let whole = [some_tokens(100, 20), fast.token_ids, some_tokens(50, 3)].concat();
    let expected = second.generate(tokens(&whole, 4)).await.unwrap();
    assert_eq!(answer.token_ids, expected.token_ids);
}

#[tokio::test]
async fn what_is_cut_deleted_or_another_tenants_is_so_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (executor(folder.path()).await, executor(folder.path()).await);
    let session = create(&first, &tiny_key().await).await;
    first.generate(in_session(&session, tokens(&some_tokens(0, 20), 4))).await.unwrap();
    let cut = TruncateSessionRequest { session_id: session.id.clone(), num_tokens: 10 };
    second.client.clone().truncate_session(cut).await.unwrap();
    assert_eq!(get(&first, &session.id).await.unwrap().num_tokens, 10);

    let mut foreign = Request::new(GetSessionRequest { session_id: session.id.clone() });
    foreign.metadata_mut().insert("roundhouse-tenant", "red".parse().unwrap());
    let status = second.client.clone().get_session(foreign).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, reasons::SESSION_NOT_FOUND));
    // The third executor has never seen it.
    let third = executor(folder.path()).await;
    let mut foreign = Request::new(DeleteSessionRequest { session_id: session.id.clone() });
    foreign.metadata_mut().insert("roundhouse-tenant", "red".parse().unwrap());
    assert_eq!(third.client.clone().delete_session(foreign).await.unwrap_err().code(), Code::NotFound);

    let request = DeleteSessionRequest { session_id: session.id.clone() };
    third.client.clone().delete_session(request).await.unwrap();
    for executor in [&first, &second, &third] {
        assert_eq!(get(executor, &session.id).await.unwrap_err().code(), Code::NotFound);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    for name in ["..", "a/b", "0123456789abcdef0123456789abcdef"] {
        assert_eq!(get(&first, name).await.unwrap_err().code(), Code::NotFound, "{name}");
    }
}

#[tokio::test]
async fn an_expired_session_is_not_stored_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let executor = executor(folder.path()).await;
    let key = tiny_key().await;
    executor.load(&key).await.unwrap();
    let request = CreateSessionRequest {
        engine: Some(key),
        idle_timeout: Some(Duration::from_millis(100).try_into().unwrap()),
        ..CreateSessionRequest::default()
    };
    executor.client.clone().create_session(request).await.unwrap();
    let gone = eventually("the stored session to go", async || {
        Ok((std::fs::read_dir(folder.path())?.count() == 0).then_some(()))
    });
    gone.await.unwrap();
}

#[tokio::test]
async fn an_executor_that_stops_in_a_turn_leaves_what_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let first = executor(folder.path()).await;
    let session = create(&first, &tiny_key().await).await;
    let answer = first.generate(in_session(&session, tokens(&some_tokens(0, 20), 4))).await.unwrap();
    drop(first);
    let second = executor(folder.path()).await;
    let more = some_tokens(60, 10);
    let next = second.generate(in_session(&session, tokens(&more, 6))).await.unwrap();
    let whole = [some_tokens(0, 20), answer.token_ids, more].concat();
    assert_eq!(next.token_ids, second.generate(tokens(&whole, 6)).await.unwrap().token_ids);
}
