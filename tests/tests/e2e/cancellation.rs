//! However a generation is stopped, what it held is free at once, and its client is told in the typed way.

use std::time::Duration;

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_executor::ExecutorConfig;
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{FinishReason, GenerateRequest};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::golden::{self, GoldenPrompt};
use roundhouse_tests::harness::{
    Executor, Generated, LoadedEngine, PATIENCE, eventually, reason, shared, smollm2_request,
    tiny_llama_request, tokens,
};
use tonic::{Code, Request};

/// More than a test waits for: whoever ends before this was stopped.
const ENDLESS: u32 = 2000;
/// Tokens in a step: a long prompt takes many, so that there is a time before its first token.
const STEP_TOKENS: usize = 32;

/// SmolLM2 in an executor of its own, whose load is this test's only.
async fn alone(change: impl FnOnce(&mut ExecutorConfig)) -> (Executor, LoadedEngine) {
    let shared = shared().await.unwrap();
    let request = smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap();
    let key = shared.compiler.key(request).await.unwrap();
    let executor = shared.executor_alone(|config| {
        config.step_token_budget = STEP_TOKENS;
        change(config);
    });
    let executor = executor.await.unwrap();
    let engine = executor.engine(&key).await.unwrap();
    (executor, engine)
}

fn golden_prompt(name: &str) -> GoldenPrompt {
    golden::smollm2().unwrap().prompts.into_iter().find(|prompt| prompt.name == name).unwrap()
}

fn named(id: &str, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { request_id: Some(id.to_owned()), ..request }
}

#[tokio::test]
async fn cancel_before_the_first_token() {
    let (executor, engine) = &alone(|_| {}).await;
    let prompt = golden_prompt("chat_long_document").prompt_token_ids;
    let mut stream = engine.stream(named("early", tokens(&prompt, 500))).await.unwrap();
    executor.cancel("early").await.unwrap();
    let generated = Generated::read(&mut stream).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::Cancelled);
    assert_eq!((generated.text().as_str(), generated.usage.output_tokens), ("", 0));
    assert_eq!(generated.usage.prompt_tokens as usize, prompt.len());
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn cancel_while_decoding_keeps_the_text_so_far() {
    let (executor, engine) = &alone(|_| {}).await;
    let golden = golden_prompt("plain_story");
    let mut stream = engine.stream(named("mid", tokens(&golden.prompt_token_ids, ENDLESS))).await.unwrap();
    let mut messages = Vec::new();
    for _ in 0..3 {
        messages.push(stream.message().await.unwrap().unwrap());
    }
    executor.cancel("mid").await.unwrap();
    let generated = Generated::read_after(messages, &mut stream).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::Cancelled);
    let found = &generated.token_ids;
    assert!((3..ENDLESS as usize).contains(&found.len()), "{}", found.len());
    let common = found.len().min(golden.output_token_ids.len());
    assert_eq!(found[..common], golden.output_token_ids[..common]);
    assert_eq!(generated.text(), engine.detokenize(found, true).await.unwrap());
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn cancelling_nothing_is_no_error() {
    let (executor, _) = &alone(|_| {}).await;
    executor.cancel("never was").await.unwrap();
}

#[tokio::test]
async fn a_client_that_drops_its_stream_frees_its_place() {
    let (executor, engine) = &alone(|_| {}).await;
    let decoding = golden_prompt("plain_story").prompt_token_ids;
    let mut stream = engine.stream(tokens(&decoding, ENDLESS)).await.unwrap();
    stream.message().await.unwrap().unwrap();
    assert!(executor.get_load().await.unwrap().kv_bytes_used > 0);
    drop(stream);
    executor.becomes_idle().await.unwrap();

    // One that still reads its prompt.
    let prefilling = golden_prompt("chat_long_document").prompt_token_ids;
    drop(engine.stream(tokens(&prefilling, 500)).await.unwrap());
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn a_client_whose_connection_breaks_frees_its_place() {
    let (executor, engine) = &alone(|_| {}).await;
    let channel = executor.node().unwrap().connect().await.unwrap();
    let request = GenerateRequest {
        engine: Some(engine.key.clone()),
        ..tokens(&golden_prompt("plain_story").prompt_token_ids, ENDLESS)
    };
    let mut stream = ExecutorClient::new(channel).generate(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    // The only user of its connection, which closes with it.
    drop(stream);
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn a_deadline_ends_a_generation_while_it_decodes() {
    let (executor, engine) = &alone(|_| {}).await;
    let mut request = Request::new(GenerateRequest {
        engine: Some(engine.key.clone()),
        ..tokens(&golden_prompt("plain_story").prompt_token_ids, ENDLESS)
    });
    request.set_timeout(Duration::from_secs(2));
    let mut stream = executor.stream(request).await.unwrap();
    stream.message().await.unwrap().unwrap();
    let status = Generated::read(&mut stream).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::DeadlineExceeded, reasons::DEADLINE_EXCEEDED)
    );
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn a_deadline_ends_a_generation_before_its_first_token() {
    // As slow as can be: a token of the prompt a step.
    let (executor, engine) = &alone(|config| config.step_token_budget = 1).await;
    let prompt = golden_prompt("chat_long_document").prompt_token_ids;
    let mut request =
        Request::new(GenerateRequest { engine: Some(engine.key.clone()), ..tokens(&prompt, 1) });
    request.set_timeout(Duration::from_secs(1));
    let status = executor.generate(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::DeadlineExceeded, reasons::DEADLINE_EXCEEDED)
    );
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_and_is_ended() {
    let shared = shared().await.unwrap();
    let request = tiny_llama_request("tiny-llama-3.1", Precision::Fp32, CacheKind::InPlace);
    let key = shared.compiler.key(request).await.unwrap();
    let executor =
        shared.executor_alone(|config| config.stall_timeout = Duration::from_secs(2)).await.unwrap();
    let engine = executor.engine(&key).await.unwrap();

    // The connection's window is what the server can send unread: made small, so that it soon can send no more.
    let endpoint = executor.node().unwrap().endpoint().unwrap();
    let channel = endpoint.initial_stream_window_size(1024).connect().await.unwrap();
    let request = GenerateRequest { engine: Some(key.clone()), ..named("unread", tokens(&[5, 6, 7], 500)) };
    let mut unread = ExecutorClient::new(channel).generate(request).await.unwrap().into_inner();
    eventually("the server to have no room", async || {
        let load = executor.get_load().await?;
        Ok((load.running == 0 && load.waiting == 1).then_some(()))
    })
    .await
    .unwrap();

    // Meanwhile another one gets everything.
    let other = engine.generate(tokens(&[8, 9], 100)).await.unwrap();
    assert_eq!(other.token_ids.len(), 100);
    executor.becomes_idle().await.unwrap();
    let end = tokio::time::timeout(PATIENCE, Generated::read(&mut unread)).await.unwrap();
    let status = end.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, reasons::CLIENT_STALLED));
}
