//! What one request computed of a prompt's beginning others do not compute again, and answer the same.

use std::time::Duration;

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_executor::ExecutorConfig;
use roundhouse_executor::prefix_cache::BLOCK_TOKENS;
use roundhouse_proto::executor::{
    CreateSessionRequest, GenerateRequest, GetSessionRequest, ResponseOptions, SamplingOptions,
};
use roundhouse_tests::harness::{Executor, LoadedEngine, eventually, shared, tiny_llama_request, tokens};
use tonic::Request;

/// Tokens of a block.
const BLOCK: u32 = BLOCK_TOKENS as u32;

async fn executor(change: impl FnOnce(&mut ExecutorConfig)) -> (Executor, LoadedEngine) {
    let shared = shared().await.unwrap();
    let executor = shared.executor_alone(change).await.unwrap();
    let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
    let engine = executor.engine(&shared.compiler.key(request).await.unwrap()).await.unwrap();
    (executor, engine)
}

/// A prompt of its own for each seed.
fn prompt(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|place| 3 + (place * 31 + seed * 17 + place * place * seed) % 90).collect()
}

/// Ten tokens with their log-probabilities.
fn scored(prompt: &[u32]) -> GenerateRequest {
    let response = ResponseOptions { logprobs: Some(5), ..ResponseOptions::default() };
    GenerateRequest { response: Some(response), ..tokens(prompt, 10) }
}

fn of_tenant(tenant: &str, request: GenerateRequest) -> Request<GenerateRequest> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("roundhouse-tenant", tenant.parse().unwrap());
    request
}

#[tokio::test]
async fn a_prompt_that_begins_as_another_one_is_computed_from_where_they_part() {
    let (executor, engine) = executor(|_| {}).await;
    let first = prompt(1, 200);
    let alone = engine.generate(scored(&first)).await.unwrap();
    assert_eq!(alone.usage.cached_tokens, 0);
    let again = engine.generate(scored(&first)).await.unwrap();
    assert_eq!(again.usage.cached_tokens, 12 * BLOCK);
    assert_eq!((&again.token_ids, &again.logprobs), (&alone.token_ids, &alone.logprobs));

    // Parts in the tenth block; exactly eight blocks; the whole answer as the beginning of a prompt.
    let parted = [&first[..150], &prompt(2, 40)].concat();
    let eight_blocks = first[..8 * BLOCK_TOKENS].to_vec();
    let answered = [&first[..], &alone.token_ids, &prompt(3, 5)].concat();
    for (prompt, cached) in [(parted, 9 * BLOCK), (eight_blocks, 8 * BLOCK - 1), (answered, 13 * BLOCK)] {
        let shared = engine.generate(scored(&prompt)).await.unwrap();
        assert_eq!(shared.usage.cached_tokens, cached);
        let bypassing = GenerateRequest { bypass_prefix_cache: Some(true), ..scored(&prompt) };
        let alone = engine.generate(bypassing).await.unwrap();
        assert_eq!(alone.usage.cached_tokens, 0);
        assert_eq!((&shared.token_ids, &shared.logprobs), (&alone.token_ids, &alone.logprobs));
    }
    let load = executor.get_load().await.unwrap();
    assert_eq!(load.prefix_cache_hit_tokens, u64::from(12 * BLOCK + 9 * BLOCK + 8 * BLOCK - 1 + 13 * BLOCK));
    assert!(load.prefix_cache_queried_tokens > load.prefix_cache_hit_tokens, "{load:?}");
    assert!(load.prefix_cache_bytes_used > 0, "{load:?}");
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn tenants_and_salts_share_nothing_and_a_bypass_gives_nothing() {
    let (_executor, engine) = executor(|_| {}).await;
    let prompt = prompt(4, 130);
    let named = |request: GenerateRequest| GenerateRequest { engine: Some(engine.key.clone()), ..request };
    let salted = |salt: &str| GenerateRequest { cache_salt: Some(salt.to_owned()), ..tokens(&prompt, 1) };
    let bypassing = GenerateRequest { bypass_prefix_cache: Some(true), ..tokens(&prompt, 1) };
    let requests = [
        ("", bypassing),
        ("", tokens(&prompt, 1)),
        ("", salted("a")),
        ("", salted("b")),
        ("blue", tokens(&prompt, 1)),
        ("blue", salted("a")),
        ("red", salted("a")),
    ];
    for (tenant, request) in requests.clone() {
        let first = engine.executor.generate(of_tenant(tenant, named(request.clone()))).await.unwrap();
        assert_eq!(first.usage.cached_tokens, 0, "{tenant:?} {request:?}");
    }
    for (tenant, request) in requests.into_iter().skip(1) {
        let second = engine.executor.generate(of_tenant(tenant, named(request))).await.unwrap();
        assert_eq!(second.usage.cached_tokens, 8 * BLOCK);
    }
}

#[tokio::test]
async fn what_leaves_memory_comes_back_from_disk() {
    const BUDGET: u64 = 68 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let (executor, engine) = executor(|config| {
        // Eight blocks of the tiny model, and no ninth one.
        config.prefix_cache_bytes = BUDGET;
        config.prefix_cache_dir = Some(folder.path().join("prefixes"));
    })
    .await;
    let per_token = executor.load(&engine.key).await.unwrap().engine.unwrap().kv_bytes_per_token;
    let block = per_token * u64::from(BLOCK);
    assert!((8 * block..9 * block).contains(&BUDGET), "a block has {block} bytes");
    let first = engine.generate(scored(&prompt(5, 130))).await.unwrap();
    engine.generate(scored(&prompt(6, 130))).await.unwrap();
    let load = executor.get_load().await.unwrap();
    assert_eq!((load.prefix_cache_bytes_used, load.prefix_cache_disk_bytes_used), (8 * block, 8 * block));
    let again = engine.generate(scored(&prompt(5, 130))).await.unwrap();
    assert_eq!(again.usage.cached_tokens, 8 * BLOCK);
    assert_eq!((again.token_ids, again.logprobs), (first.token_ids, first.logprobs));
}

#[tokio::test]
async fn without_memory_for_it_nothing_is_shared() {
    let (executor, engine) = executor(|config| config.prefix_cache_bytes = 0).await;
    for _ in 0..2 {
        assert_eq!(engine.generate(scored(&prompt(7, 130))).await.unwrap().usage.cached_tokens, 0);
    }
    assert_eq!(executor.get_load().await.unwrap().prefix_cache_bytes_used, 0);
}

#[tokio::test]
async fn an_idle_sessions_cache_is_dropped_and_comes_back_by_itself() {
    let (executor, engine) =
        executor(|config| config.session_cache_timeout = Duration::from_millis(20)).await;
    let create = CreateSessionRequest { engine: Some(engine.key.clone()), ..CreateSessionRequest::default() };
    let session = executor.client.clone().create_session(create).await.unwrap().into_inner();
    let in_session = |request| GenerateRequest { session_id: Some(session.id.clone()), ..request };
    let history = prompt(8, 140);
    let first = engine.generate(in_session(tokens(&history, 10))).await.unwrap();
    let dropped = eventually("the idle cache to be dropped", async || {
        Ok((executor.get_load().await?.kv_bytes_used == 0).then_some(()))
    });
    dropped.await.unwrap();
    let request = GetSessionRequest { session_id: session.id.clone() };
    let held = executor.client.clone().get_session(request).await.unwrap().into_inner();
    assert_eq!((held.num_tokens, held.kv_bytes), (150, 0));

    let second = engine.generate(in_session(scored(&prompt(9, 5)))).await.unwrap();
    assert_eq!((second.usage.prompt_tokens, second.usage.cached_tokens), (155, 9 * BLOCK));
    let whole = [&history[..], &first.token_ids, &prompt(9, 5)].concat();
    let bypassing = GenerateRequest { bypass_prefix_cache: Some(true), ..scored(&whole) };
    let at_once = engine.generate(bypassing).await.unwrap();
    assert_eq!((second.token_ids, second.logprobs), (at_once.token_ids, at_once.logprobs));
}

#[tokio::test]
async fn sampled_answers_are_the_same_with_a_prefix_and_without() {
    let (_executor, engine) = executor(|_| {}).await;
    let sampling = SamplingOptions {
        temperature: Some(0.9),
        seed: Some(11),
        repetition_penalty: Some(1.2),
        ..SamplingOptions::default()
    };
    let request = GenerateRequest { sampling: Some(sampling), ..tokens(&prompt(10, 180), 20) };
    let alone = engine.generate(request.clone()).await.unwrap();
    let shared = engine.generate(request).await.unwrap();
    assert_eq!((alone.usage.cached_tokens, shared.usage.cached_tokens), (0, 11 * BLOCK));
    assert_eq!(shared.token_ids, alone.token_ids);
}
