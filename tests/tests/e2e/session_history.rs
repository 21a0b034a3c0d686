//! A session's history can be copied, cut and told apart by whose it is.

use std::time::Duration;

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::executor::{
    CancelRequest, CreateSessionRequest, DeleteSessionRequest, ForkSessionRequest, GenerateRequest,
    GetSessionRequest, ListSessionsRequest, Session, TruncateSessionRequest,
};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::golden::Message;
use roundhouse_tests::harness::{
    Executor, Generated, LoadedEngine, chat, eventually, field, reason, shared, smollm2, tiny_llama_request,
    tokens,
};
use tonic::{Code, Request, Status};

async fn tiny() -> (Executor, LoadedEngine) {
    let shared = shared().await.unwrap();
    let executor = shared.executor_alone(|_| {}).await.unwrap();
    let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
    let engine = executor.engine(&shared.compiler.key(request).await.unwrap()).await.unwrap();
    (executor, engine)
}

/// A request of a tenant.
fn of<T>(tenant: &str, request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("roundhouse-tenant", tenant.parse().unwrap());
    request
}

async fn create(engine: &LoadedEngine, tenant: &str) -> Session {
    let request =
        CreateSessionRequest { engine: Some(engine.key.clone()), ..CreateSessionRequest::default() };
    engine.executor.client.clone().create_session(of(tenant, request)).await.unwrap().into_inner()
}

async fn fork(engine: &LoadedEngine, session: &Session, num_tokens: Option<u32>) -> Result<Session, Status> {
    let request =
        ForkSessionRequest { session_id: session.id.clone(), num_tokens, ..ForkSessionRequest::default() };
    Ok(engine.executor.client.clone().fork_session(request).await?.into_inner())
}

async fn truncate(engine: &LoadedEngine, session: &Session, num_tokens: u32) -> Result<Session, Status> {
    let request = TruncateSessionRequest { session_id: session.id.clone(), num_tokens };
    Ok(engine.executor.client.clone().truncate_session(request).await?.into_inner())
}

fn in_session(session: &Session, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { session_id: Some(session.id.clone()), ..request }
}

fn alone(request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { bypass_prefix_cache: Some(true), ..request }
}

fn some_tokens(first: u32, count: u32) -> Vec<u32> {
    (first..first + count).map(|place| 3 + place * place % 91).collect()
}

#[tokio::test]
async fn forks_go_on_from_one_history_each_its_own_way() {
    let (_executor, engine) = tiny().await;
    let session = create(&engine, "").await;
    let history = some_tokens(0, 130);
    let first = engine.generate(in_session(&session, tokens(&history, 5))).await.unwrap();
    let so_far = [&history[..], &first.token_ids].concat();

    let whole = fork(&engine, &session, None).await.unwrap();
    let part = fork(&engine, &session, Some(100)).await.unwrap();
    assert_eq!((whole.num_tokens, part.num_tokens, whole.kv_bytes), (135, 100, 0));
    assert_eq!((whole.max_seq_len, &whole.engine_key), (session.max_seq_len, &session.engine_key));
    assert!(whole.id != session.id && part.id != whole.id);
    // The blocks of what both have are not computed again.
    for (session, history, cached) in
        [(&whole, &so_far[..], 128), (&part, &so_far[..100], 96), (&session, &so_far[..], 134)]
    {
        let more = some_tokens(200 + cached, 7);
        let answer = engine.generate(in_session(session, tokens(&more, 8))).await.unwrap();
        assert_eq!(answer.usage.cached_tokens, cached);
        let expected = engine.generate(alone(tokens(&[history, &more].concat(), 8))).await.unwrap();
        assert_eq!(answer.token_ids, expected.token_ids);
    }
    // A fork of one in which nothing ran since, and of one that is gone.
    let again = fork(&engine, &fork(&engine, &whole, None).await.unwrap(), Some(0)).await.unwrap();
    assert_eq!(again.num_tokens, 0);
    let beyond = fork(&engine, &session, Some(1000)).await.unwrap_err();
    assert_eq!((beyond.code(), field(&beyond).as_str()), (Code::InvalidArgument, "num_tokens"));
}

#[tokio::test]
async fn a_session_cut_back_goes_on_as_if_the_rest_had_never_been() {
    let (_executor, engine) = tiny().await;
    let session = create(&engine, "").await;
    let history = some_tokens(7, 120);
    engine.generate(in_session(&session, tokens(&history, 20))).await.unwrap();
    for kept in [90, 64, 1, 0] {
        let cut = truncate(&engine, &session, kept).await.unwrap();
        assert_eq!((cut.num_tokens, cut.busy), (kept, false));
        let more = some_tokens(300 + kept, 6);
        let answer = engine.generate(in_session(&session, tokens(&more, 4))).await.unwrap();
        let whole = [&history[..kept as usize], &more].concat();
        let expected = engine.generate(alone(tokens(&whole, 4))).await.unwrap();
        assert_eq!(answer.token_ids, expected.token_ids, "cut to {kept}");
        assert!(answer.usage.cached_tokens >= kept.saturating_sub(1), "cut to {kept}: {:?}", answer.usage);
        truncate(&engine, &session, kept).await.unwrap();
    }
    let beyond = truncate(&engine, &session, 1).await.unwrap_err();
    assert_eq!((beyond.code(), field(&beyond).as_str()), (Code::InvalidArgument, "num_tokens"));
}

#[tokio::test]
async fn a_conversation_cut_at_a_turn_forgets_the_messages_after_it() {
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let say = |content: &str| [Message { role: "user".to_owned(), content: content.to_owned() }];
    let session = create(&engine, "").await;
    let first = engine.generate(in_session(&session, chat(&say("My name is Ada."), 12))).await.unwrap();
    let turn = first.usage.prompt_tokens + first.usage.output_tokens;
    engine.generate(in_session(&session, chat(&say("No, it is Grace."), 12))).await.unwrap();
    truncate(&engine, &session, turn).await.unwrap();
    let question = say("What is my name?");
    let answer = engine.generate(in_session(&session, chat(&question, 12))).await.unwrap();
    let said = Message { role: "assistant".to_owned(), content: first.text() };
    let conversation = [say("My name is Ada.").to_vec(), vec![said], question.to_vec()].concat();
    let expected = engine.generate(alone(chat(&conversation, 12))).await.unwrap();
    assert_eq!(answer.usage.prompt_tokens, expected.usage.prompt_tokens);
    assert_eq!(answer.token_ids, expected.token_ids);
}

#[tokio::test]
async fn another_tenants_session_is_not_found_and_its_generation_not_stopped() {
    let (executor, engine) = tiny().await;
    let session = create(&engine, "blue").await;
    let mut client = executor.client.clone();
    let id = || session.id.clone();
    for tenant in ["red", ""] {
        let generate =
            GenerateRequest { engine: Some(engine.key.clone()), ..in_session(&session, tokens(&[5], 1)) };
        let refused = [
            client.get_session(of(tenant, GetSessionRequest { session_id: id() })).await.unwrap_err(),
            client.delete_session(of(tenant, DeleteSessionRequest { session_id: id() })).await.unwrap_err(),
            client
                .fork_session(of(tenant, ForkSessionRequest { session_id: id(), ..Default::default() }))
                .await
                .unwrap_err(),
            client
                .truncate_session(of(tenant, TruncateSessionRequest { session_id: id(), num_tokens: 0 }))
                .await
                .unwrap_err(),
            executor.generate(of(tenant, generate)).await.unwrap_err(),
        ];
        for status in refused {
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (Code::NotFound, reasons::SESSION_NOT_FOUND)
            );
        }
        let listed = client.list_sessions(of(tenant, ListSessionsRequest::default())).await.unwrap();
        assert_eq!(listed.into_inner().sessions, []);
    }
    let running =
        GenerateRequest { request_id: Some("r".to_owned()), ..in_session(&session, tokens(&[5], 200)) };
    let mut stream = executor.stream(of("blue", running)).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    let cancel = CancelRequest { request_id: "r".to_owned(), keep_session: Some(false) };
    client.cancel(of("red", cancel)).await.unwrap();
    let generated = Generated::read_after(vec![first], &mut stream).await.unwrap();
    assert_eq!(generated.token_ids.len(), 200);
    let listed = client.list_sessions(of("blue", ListSessionsRequest::default())).await.unwrap().into_inner();
    assert_eq!(listed.sessions.iter().map(|session| &session.id).collect::<Vec<_>>(), [&session.id]);
}

#[tokio::test]
async fn sessions_are_listed_by_engine_and_by_whether_they_are_busy() {
    let (executor, engine) = tiny().await;
    let session = create(&engine, "").await;
    let count = async |request: ListSessionsRequest| {
        executor.client.clone().list_sessions(request).await.unwrap().into_inner().sessions.len()
    };
    let by_engine =
        |key: &str| ListSessionsRequest { engine_key: Some(key.to_owned()), ..Default::default() };
    assert_eq!(count(by_engine(&session.engine_key)).await, 1);
    assert_eq!(count(by_engine(&"0".repeat(64))).await, 0);
    for (busy, expected) in [(true, 0), (false, 1)] {
        assert_eq!(count(ListSessionsRequest { busy: Some(busy), ..Default::default() }).await, expected);
    }
    let status = executor.client.clone().list_sessions(by_engine("none")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_session_ends_after_its_ttl_however_it_is_used() {
    let (executor, engine) = tiny().await;
    let ttl = Duration::from_millis(300);
    let request = CreateSessionRequest {
        engine: Some(engine.key.clone()),
        ttl: Some(ttl.try_into().unwrap()),
        ..CreateSessionRequest::default()
    };
    let session = executor.client.clone().create_session(request).await.unwrap().into_inner();
    let ended = eventually("the session to end", async || {
        Ok(engine
            .generate(in_session(&session, tokens(&[], 1)))
            .await
            .err()
            .filter(|status| status.code() == Code::NotFound))
    });
    engine.generate(in_session(&session, tokens(&[5, 6], 1))).await.unwrap();
    assert_eq!(reason(&ended.await.unwrap()), reasons::SESSION_NOT_FOUND);
}
