//! A session is a conversation: what was computed in a turn is not computed again in the next, and the tokens are those
//! of the whole conversation at once.

use std::time::{Duration, Instant};

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::executor::{
    CreateSessionRequest, DeleteSessionRequest, FinishReason, GenerateRequest, GetSessionRequest,
    ListSessionsRequest, Session, StoppingOptions,
};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::golden::{self, GoldenPrompt, Message};
use roundhouse_tests::harness::{
    Executor, Generated, LoadedEngine, PATIENCE, chat, eventually, field, reason, shared, smollm2,
    tiny_llama_request, tokens,
};
use tonic::{Code, Status};

async fn create(engine: &LoadedEngine, idle_timeout: Option<Duration>) -> Session {
    let request = CreateSessionRequest {
        engine: Some(engine.key.clone()),
        idle_timeout: idle_timeout.map(|timeout| timeout.try_into().unwrap()),
        ..CreateSessionRequest::default()
    };
    engine.executor.client.clone().create_session(request).await.unwrap().into_inner()
}

async fn get(executor: &Executor, id: &str) -> Result<Session, Status> {
    let request = GetSessionRequest { session_id: id.to_owned() };
    Ok(executor.client.clone().get_session(request).await?.into_inner())
}

async fn delete(executor: &Executor, id: &str) -> Result<(), Status> {
    executor
        .client
        .clone()
        .delete_session(DeleteSessionRequest { session_id: id.to_owned() })
        .await
        .map(|_| ())
}

fn in_session(session: &Session, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { session_id: Some(session.id.clone()), ..request }
}

/// Up to the end of the sequence.
fn whole_answer(request: GenerateRequest) -> GenerateRequest {
    let stopping = StoppingOptions { max_tokens: Some(64), ..StoppingOptions::default() };
    GenerateRequest { stopping: Some(stopping), ..request }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

fn golden_prompt(name: &str) -> GoldenPrompt {
    golden::smollm2().unwrap().prompts.into_iter().find(|prompt| prompt.name == name).unwrap()
}

async fn tiny(executor: &Executor) -> LoadedEngine {
    let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
    let key = shared().await.unwrap().compiler.key(request).await.unwrap();
    executor.engine(&key).await.unwrap()
}

#[tokio::test]
async fn a_conversation_that_goes_on_from_its_beginning_gives_transformers_tokens() {
    let golden = golden_prompt("chat_multi_turn");
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let session = create(&engine, None).await;
    // The conversation's first tokens, as an earlier turn would have left them, with one token that does not belong to
    // it and has to go again.
    let beginning = &golden.prompt_token_ids[..40];
    let request = GenerateRequest { bypass_prefix_cache: Some(true), ..tokens(beginning, 1) };
    let first = engine.generate(in_session(&session, request)).await.unwrap();
    assert_eq!((first.usage.prompt_tokens, first.usage.cached_tokens), (40, 0));

    let messages = golden.messages.unwrap();
    let request = GenerateRequest { bypass_prefix_cache: Some(true), ..chat(&messages, 64) };
    let second = engine.generate(in_session(&session, request)).await.unwrap();
    assert_eq!(second.token_ids, golden.output_token_ids);
    assert_eq!(second.usage.prompt_tokens as usize, golden.prompt_token_ids.len());
    assert_eq!(second.usage.cached_tokens, 40);
    delete(&engine.executor, &session.id).await.unwrap();
}

#[tokio::test]
async fn a_second_turn_computes_only_what_is_new_and_answers_as_to_the_whole_conversation() {
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let session = create(&engine, None).await;
    let question = message("user", "What is the capital of France?");
    let first_turn = whole_answer(chat(std::slice::from_ref(&question), 1));
    let first = engine.generate(in_session(&session, first_turn)).await.unwrap();
    assert_eq!(first.finish_reason, FinishReason::StopToken);
    let held = get(&engine.executor, &session.id).await.unwrap();
    assert_eq!(held.num_tokens, first.usage.prompt_tokens + first.usage.output_tokens);

    let further = message("user", "And of Italy?");
    let second_turn = whole_answer(chat(std::slice::from_ref(&further), 1));
    let second = engine.generate(in_session(&session, second_turn)).await.unwrap();

    let conversation = [question, message("assistant", &first.text()), further];
    let whole = GenerateRequest { bypass_prefix_cache: Some(true), ..chat(&conversation, 1) };
    let at_once = engine.generate(whole_answer(whole)).await.unwrap();
    assert_eq!(second.token_ids, at_once.token_ids);
    assert_eq!(second.text(), at_once.text());
    assert_eq!(second.usage.prompt_tokens, at_once.usage.prompt_tokens);
    assert_eq!(at_once.usage.cached_tokens, 0);
    // Everything but the last token of the answer, whose keys and values nothing had needed yet.
    assert_eq!(second.usage.cached_tokens, held.num_tokens - 1);
    delete(&engine.executor, &session.id).await.unwrap();
}

#[tokio::test]
async fn sessions_are_created_found_listed_and_deleted() {
    let shared = shared().await.unwrap();
    let executor = shared.executor_alone(|_| {}).await.unwrap();
    let engine = tiny(&executor).await;
    let mut created = Vec::new();
    for _ in 0..3 {
        created.push(create(&engine, None).await);
    }
    let [first, second, third] = &created[..] else { unreachable!() };
    assert_eq!((first.num_tokens, first.max_seq_len, first.busy), (0, 256, false));
    assert_eq!(first.engine_key, engine.key);
    assert!(first.kv_bytes == 0 && first.expire_time.is_some() && first.create_time.is_some());
    let found = get(&executor, &second.id).await.unwrap();
    assert_eq!(
        (&found.id, found.kv_bytes, found.create_time),
        (&second.id, second.kv_bytes, second.create_time)
    );
    assert_eq!(executor.get_load().await.unwrap().sessions, 3);

    let list = |page_token: Option<String>| {
        let mut client = executor.client.clone();
        async move {
            let request =
                ListSessionsRequest { page_size: Some(2), page_token, ..ListSessionsRequest::default() };
            client.list_sessions(request).await.unwrap().into_inner()
        }
    };
    let page = list(None).await;
    let ids = |sessions: &[Session]| sessions.iter().map(|session| session.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&page.sessions), [first.id.clone(), second.id.clone()]);
    let rest = list(Some(page.next_page_token)).await;
    assert_eq!((ids(&rest.sessions), rest.next_page_token.as_str()), (vec![third.id.clone()], ""));

    for session in &created {
        delete(&executor, &session.id).await.unwrap();
    }
    executor.becomes_idle().await.unwrap();
    assert_eq!(list(None).await.sessions, []);
}

#[tokio::test]
async fn a_session_holds_the_memory_of_its_tokens_in_whole_blocks() {
    let shared = shared().await.unwrap();
    // A static cache is as long as its engine's.
    for (cache, few, many) in
        [(CacheKind::InPlace, 64, 150), (CacheKind::StaticV1, 256, 256), (CacheKind::StaticV2, 256, 256)]
    {
        let key =
            shared.compiler.key(tiny_llama_request("tiny-llama-2", Precision::Fp32, cache)).await.unwrap();
        let executor = shared.executor_alone(|_| {}).await.unwrap();
        let per_token = executor.load(&key).await.unwrap().engine.unwrap().kv_bytes_per_token;
        let request = CreateSessionRequest { max_seq_len: Some(150), ..CreateSessionRequest::default() };
        let session = executor.client.clone().create_session(request).await.unwrap().into_inner();
        assert_eq!((session.max_seq_len, session.kv_bytes), (150, 0), "{cache}");
        // 50 tokens in one block, and 140 in as much as there can be.
        for (length, blocks) in [(40, few), (80, many)] {
            let prompt: Vec<u32> = (5..5 + length).collect();
            executor.generate(in_session(&session, tokens(&prompt, 10))).await.unwrap();
            let held = get(&executor, &session.id).await.unwrap().kv_bytes;
            assert_eq!(held, blocks * per_token, "{cache} {length}");
            let load = executor.get_load().await.unwrap();
            assert_eq!((load.kv_bytes_used, load.kv_bytes_idle), (held, held), "{cache} {length}");
        }
    }
}

#[tokio::test]
async fn an_idle_session_expires_and_returns_its_memory() {
    let shared = shared().await.unwrap();
    let executor = shared.executor_alone(|_| {}).await.unwrap();
    let engine = tiny(&executor).await;
    let lasting = create(&engine, None).await;
    let session = create(&engine, Some(Duration::from_secs(1))).await;
    for session in [&session, &lasting] {
        engine.generate(in_session(session, tokens(&[5, 6, 7], 1))).await.unwrap();
    }
    let held = get(&executor, &lasting.id).await.unwrap().kv_bytes;
    let status = eventually("the session to expire", async || Ok(get(&executor, &session.id).await.err()))
        .await
        .unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, reasons::SESSION_NOT_FOUND));
    assert!(status.message().contains(&session.id), "{status}");
    let load = executor.get_load().await.unwrap();
    assert!(held > 0);
    assert_eq!((load.sessions, load.kv_bytes_used), (1, held));
    get(&executor, &lasting.id).await.unwrap();
}

#[tokio::test]
async fn a_session_does_not_expire_while_it_generates() {
    const IDLE_TIMEOUT: Duration = Duration::from_millis(500);
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let session = create(&engine, Some(IDLE_TIMEOUT)).await;
    let request = GenerateRequest { request_id: Some("keeps-alive".to_owned()), ..tokens(&[1, 2, 3], 1500) };
    let mut stream = engine.stream(in_session(&session, request)).await.unwrap();
    let begun = Instant::now();
    let mut messages = Vec::new();
    // Long enough for expiry to have come around more than once.
    while begun.elapsed() < 4 * IDLE_TIMEOUT {
        messages.push(stream.message().await.unwrap().unwrap());
    }
    assert!(get(&engine.executor, &session.id).await.unwrap().busy);
    engine.executor.cancel("keeps-alive").await.unwrap();
    let generated = Generated::read_after(messages, &mut stream).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::Cancelled);
    // From then on it is idle.
    let status =
        eventually("the session to expire", async || Ok(get(&engine.executor, &session.id).await.err()));
    assert_eq!(status.await.unwrap().code(), Code::NotFound);
}

#[tokio::test]
async fn a_busy_session_is_refused_to_others() {
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let session = create(&engine, None).await;
    let prompt = golden_prompt("plain_story").prompt_token_ids;
    let running = GenerateRequest { request_id: Some("keeps-busy".to_owned()), ..tokens(&prompt, 1500) };
    let mut stream = engine.stream(in_session(&session, running)).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    assert!(get(&engine.executor, &session.id).await.unwrap().busy);

    let status = engine.generate(in_session(&session, tokens(&prompt, 1))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, reasons::SESSION_BUSY));
    assert!(status.message().contains(&session.id), "{status}");

    engine.executor.cancel("keeps-busy").await.unwrap();
    let generated = Generated::read_after(vec![first], &mut stream).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::Cancelled);
    delete(&engine.executor, &session.id).await.unwrap();
}

#[tokio::test]
async fn an_unknown_session_is_not_found() {
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let unknown = "0123456789abcdef";
    let request = GenerateRequest { session_id: Some(unknown.to_owned()), ..tokens(&[1], 1) };
    for status in [
        engine.generate(request).await.unwrap_err(),
        get(&engine.executor, unknown).await.unwrap_err(),
        delete(&engine.executor, unknown).await.unwrap_err(),
    ] {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, reasons::SESSION_NOT_FOUND));
        assert!(status.message().contains(unknown), "{status}");
    }
}

#[tokio::test]
async fn a_session_cannot_be_longer_than_its_engine() {
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let request = CreateSessionRequest {
        engine: Some(engine.key.clone()),
        max_seq_len: Some(1 << 20),
        ..CreateSessionRequest::default()
    };
    let status = engine.executor.client.clone().create_session(request).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "max_seq_len"));
}

#[tokio::test]
async fn deleting_a_session_ends_the_generation_that_runs_in_it() {
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let session = create(&engine, None).await;
    let prompt = golden_prompt("plain_story").prompt_token_ids;
    let mut stream = engine.stream(in_session(&session, tokens(&prompt, 1500))).await.unwrap();
    stream.message().await.unwrap().unwrap();
    delete(&engine.executor, &session.id).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, Generated::read(&mut stream)).await.unwrap();
    let status = end.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, reasons::SESSION_NOT_FOUND));
    assert_eq!(get(&engine.executor, &session.id).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_cancelled_turn_stays_in_the_history_and_the_session_goes_on_from_it() {
    let golden = golden_prompt("plain_story");
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let session = create(&engine, None).await;
    let request = GenerateRequest {
        request_id: Some("is-cancelled".to_owned()),
        ..in_session(&session, tokens(&golden.prompt_token_ids, 60))
    };
    let mut stream = engine.stream(request).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    engine.executor.cancel("is-cancelled").await.unwrap();
    let cancelled = Generated::read_after(vec![first], &mut stream).await.unwrap();
    assert_eq!(cancelled.finish_reason, FinishReason::Cancelled);
    assert!(cancelled.token_ids.len() < 60);
    assert_eq!(cancelled.text(), engine.detokenize(&cancelled.token_ids, true).await.unwrap());

    let held = eventually("the session to be free", async || {
        let session = get(&engine.executor, &session.id).await?;
        Ok((!session.busy).then_some(session))
    });
    let so_far = golden.prompt_token_ids.len() + cancelled.token_ids.len();
    assert_eq!(held.await.unwrap().num_tokens as usize, so_far);
    // No new tokens: it goes on where it stopped.
    let left = u32::try_from(64 - cancelled.token_ids.len()).unwrap();
    let rest = engine.generate(in_session(&session, tokens(&[], left))).await.unwrap();
    assert_eq!([cancelled.token_ids, rest.token_ids].concat(), golden.output_token_ids);
    assert_eq!(rest.usage.cached_tokens as usize, so_far - 1);
    delete(&engine.executor, &session.id).await.unwrap();
}
