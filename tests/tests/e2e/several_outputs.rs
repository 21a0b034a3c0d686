//! Several outputs of one prompt, in one stream.

use std::collections::BTreeSet;

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::CompileEngineRequest;
use roundhouse_proto::executor::{
    CreateSessionRequest, FinishReason, GenerateRequest, ResponseOptions, SamplingOptions,
};
use roundhouse_tests::golden;
use roundhouse_tests::harness::{
    LoadedEngine, field, shared, smollm2, smollm2_request, tiny_llama_request, tokens,
};
use tonic::Code;

const STEPS: u32 = 16;

async fn engine() -> LoadedEngine {
    smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap()
}

fn request(sampling: SamplingOptions) -> GenerateRequest {
    let golden = golden::smollm2().unwrap();
    GenerateRequest { sampling: Some(sampling), ..tokens(&golden.prompts[0].prompt_token_ids, STEPS) }
}

fn warm(seed: u64) -> SamplingOptions {
    SamplingOptions { temperature: Some(1.0), seed: Some(seed), ..SamplingOptions::default() }
}

#[tokio::test]
async fn each_output_is_what_its_seed_gives_alone() {
    let engine = engine().await;
    let mut several = request(SamplingOptions { n: Some(3), ..warm(u64::MAX) });
    several.bypass_prefix_cache = Some(true);
    several.response = Some(ResponseOptions { echo: Some(true), ..ResponseOptions::default() });
    let outputs = engine.generate_all(several.clone()).await.unwrap();
    assert_eq!(outputs.iter().map(|output| output.index).collect::<Vec<_>>(), [0, 1, 2]);
    let prompt_tokens = outputs[0].echo.as_ref().unwrap().token_ids.len() as u32;
    for (output, seed) in outputs.iter().zip([u64::MAX, 0, 1]) {
        let alone = GenerateRequest { sampling: Some(warm(seed)), ..several.clone() };
        let alone = engine.generate(alone).await.unwrap();
        assert_eq!((&output.token_ids, output.text()), (&alone.token_ids, alone.text()), "seed {seed}");
        assert_eq!((output.usage.output_tokens, output.usage.prompt_tokens), (STEPS, prompt_tokens));
        // The first one computes the prompt; the others only its last token, for their own first choice.
        let cached = if output.index == 0 { 0 } else { prompt_tokens - 1 };
        assert_eq!(output.usage.cached_tokens, cached, "output {}", output.index);
        assert_eq!(output.finish_reason, FinishReason::MaxTokens);
        // The prompt comes once.
        assert_eq!(output.echo.is_some(), output.index == 0);
    }
    assert!(outputs[1].token_ids != outputs[2].token_ids);
}

/// The outputs of a request, and the tokens of each that it found in the cache, are as expected, and those that each gives
/// alone.
async fn check_forks(request: CompileEngineRequest, step_tokens: usize) {
    let shared = shared().await.unwrap();
    let key = shared.compiler.key(request).await.unwrap();
    let executor = shared.executor_alone(|config| config.step_token_budget = step_tokens).await.unwrap();
    let engine = executor.engine(&key).await.unwrap();
    for prompt_tokens in [1, 2, 83] {
        let prompt: Vec<u32> = (0..prompt_tokens).map(|place| 3 + place * place % 91).collect();
        let request = GenerateRequest { bypass_prefix_cache: Some(true), ..tokens(&prompt, STEPS) };
        let several = SamplingOptions { n: Some(4), ..warm(3) };
        let outputs = engine.generate_all(GenerateRequest { sampling: Some(several), ..request.clone() });
        for output in outputs.await.unwrap() {
            let alone =
                GenerateRequest { sampling: Some(warm(3 + u64::from(output.index))), ..request.clone() };
            assert_eq!(output.token_ids, engine.generate(alone).await.unwrap().token_ids);
            let cached = if output.index == 0 { 0 } else { prompt_tokens - 1 };
            assert_eq!(output.usage.cached_tokens, cached, "{prompt_tokens} tokens, output {}", output.index);
        }
    }
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn the_prompt_is_computed_once_in_one_step_or_many() {
    for step_tokens in [512, 10] {
        let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
        check_forks(request, step_tokens).await;
    }
}

#[tokio::test]
async fn layers_that_keep_their_latest_tokens_fork_too() {
    let request = tiny_llama_request("tiny-gemma-3", Precision::Fp32, CacheKind::InPlace);
    check_forks(request, 8).await;
}

#[tokio::test]
async fn what_the_first_one_found_in_the_prefix_cache_the_others_have_too() {
    let shared = shared().await.unwrap();
    let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
    let key = shared.compiler.key(request).await.unwrap();
    let executor = shared.executor_alone(|_| {}).await.unwrap();
    let engine = executor.engine(&key).await.unwrap();
    let prompt: Vec<u32> = (0..83).map(|place| 3 + place * place % 91).collect();
    let expected = engine.generate(tokens(&prompt, STEPS)).await.unwrap();
    let several = SamplingOptions { n: Some(3), ..SamplingOptions::default() };
    let request = GenerateRequest { sampling: Some(several), ..tokens(&prompt, STEPS) };
    let outputs = engine.generate_all(request).await.unwrap();
    assert_eq!(outputs.iter().map(|output| output.usage.cached_tokens).collect::<Vec<_>>(), [80, 82, 82]);
    assert!(outputs.iter().all(|output| output.token_ids == expected.token_ids));
}

#[tokio::test]
async fn one_cancellation_ends_them_all_and_returns_everything() {
    let shared = shared().await.unwrap();
    let key =
        shared.compiler.key(smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap()).await.unwrap();
    let executor = shared.executor_alone(|_| {}).await.unwrap();
    let engine = executor.engine(&key).await.unwrap();
    let request = GenerateRequest {
        request_id: Some("several".to_owned()),
        sampling: Some(SamplingOptions { n: Some(4), ..warm(1) }),
        ..tokens(&[1, 2, 3], 1500)
    };
    let mut stream = engine.stream(request.clone()).await.unwrap();
    stream.message().await.unwrap().unwrap();
    executor.cancel("several").await.unwrap();
    let mut ended = BTreeSet::new();
    while let Some(message) = stream.message().await.unwrap() {
        if message.finish_reason.is_some() {
            assert_eq!(message.finish_reason(), FinishReason::Cancelled);
            assert!(ended.insert(message.index));
        }
    }
    assert_eq!(ended, BTreeSet::from([0, 1, 2, 3]));
    executor.becomes_idle().await.unwrap();
    // So does a client that goes away.
    let mut stream = engine.stream(request).await.unwrap();
    stream.message().await.unwrap().unwrap();
    drop(stream);
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn a_session_goes_on_with_one_output() {
    let engine = engine().await;
    let create = CreateSessionRequest { engine: Some(engine.key.clone()), ..CreateSessionRequest::default() };
    let session = engine.executor.client.clone().create_session(create).await.unwrap().into_inner();
    let request = GenerateRequest {
        session_id: Some(session.id),
        ..request(SamplingOptions { n: Some(2), ..warm(1) })
    };
    let status = engine.generate(request).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "sampling.n"));
}
