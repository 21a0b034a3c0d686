//! A prompt's tokens have the log-probabilities that Transformers gives them, however the prompt is cut into chunks, in
//! whichever company and turn.

use futures::future::join_all;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_executor::ExecutorConfig;
use roundhouse_proto::compiler::{CompileEngineRequest, CompileOptions};
use roundhouse_proto::executor::{
    CreateSessionRequest, FinishReason, GenerateRequest, ResponseOptions, TokenLogprobs,
};
use roundhouse_tests::golden::{self, TinyCase, TinyModel};
use roundhouse_tests::harness::{
    Executor, Generated, LoadedEngine, Shared, compile_options, compile_request, field, shared,
    smollm2_request, tokens,
};
use tonic::Code;

/// Logits are within 1e-4 of Transformers'; a log-probability is a difference of two quantities as exact as they are.
const LOGPROB_ERROR: f64 = 1e-3;

fn request(golden: &TinyModel, cache: CacheKind, all_logits: bool) -> CompileEngineRequest {
    let options = CompileOptions {
        all_logits: Some(all_logits),
        max_seq_len: golden.max_seq_len,
        ..compile_options(Precision::Fp32, cache)
    };
    compile_request(&golden.checkpoint, options)
}

fn tiny(name: &str) -> TinyModel {
    golden::tiny_models().unwrap().into_iter().find(|golden| golden.name == name).unwrap()
}

/// An executor of the caller's own whose steps have at most so many tokens.
async fn executor_of_steps(shared: &Shared, tokens: usize) -> Executor {
    let small_steps = |config: &mut ExecutorConfig| config.step_token_budget = tokens;
    shared.executor_alone(small_steps).await.unwrap()
}

async fn load(shared: &Shared, executor: &Executor, golden: &TinyModel, cache: CacheKind) -> LoadedEngine {
    let key = shared.compiler.key(request(golden, cache, true)).await.unwrap();
    executor.engine(&key).await.unwrap()
}

fn scored(prompt: &[u32], max_tokens: u32, top: u32) -> GenerateRequest {
    let response = ResponseOptions { prompt_logprobs: Some(top), ..ResponseOptions::default() };
    GenerateRequest { response: Some(response), ..tokens(prompt, max_tokens) }
}

/// A golden prompt and the reference's output after it but for the last token.
fn sequence(case: &TinyCase) -> Vec<u32> {
    let (_, fed) = case.output_token_ids.split_last().unwrap();
    [&case.prompt_token_ids, fed].concat()
}

/// The reference's log-probabilities of all tokens after this position; `None` where the golden file leaves them out.
fn expected(case: &TinyCase, position: usize) -> Option<Vec<f64>> {
    let last_of_prompt = case.prompt_token_ids.len() - 1;
    let row = match position.checked_sub(last_of_prompt) {
        Some(step) => case.step_logits.rows().nth(step),
        None => case.prompt_logits.as_ref()?.rows().nth(position),
    }?;
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    Some(row.iter().map(|&logit| f64::from(logit - max) - sum.ln()).collect())
}

/// Compares the scores of a sequence's tokens from the second on. Returns how many there was a reference for.
fn compare(case: &TinyCase, found: &[TokenLogprobs], top: usize, context: &str) -> usize {
    let sequence = sequence(case);
    assert_eq!(found.len(), sequence.len() - 1, "{context}");
    let mut compared = 0;
    for (position, (score, &token)) in found.iter().zip(&sequence[1..]).enumerate() {
        let Some(expected) = expected(case, position) else { continue };
        let close = |token: u32, logprob: f32| {
            let error = (f64::from(logprob) - expected[token as usize]).abs();
            // Not `error > LOGPROB_ERROR`, which NaN is not.
            assert!(error <= LOGPROB_ERROR, "{context}, after position {position}: token {token} by {error}");
        };
        close(token, score.logprob);
        assert_eq!(score.top.len(), top, "{context}");
        score.top.iter().for_each(|top| close(top.token_id, top.logprob));
        // The most probable ones are those: none that is left out is above the last of them.
        if let Some(last) = score.top.last() {
            let above = expected.iter().filter(|&&logprob| logprob > f64::from(last.logprob) + LOGPROB_ERROR);
            assert!(above.count() < top, "{context}, after position {position}");
        }
        compared += 1;
    }
    compared
}

fn flat(generated: &Generated) -> Vec<TokenLogprobs> {
    generated.prompt_logprobs.concat()
}

#[tokio::test]
async fn every_family_in_every_cache_gives_transformers_log_probabilities() {
    let shared = shared().await.unwrap();
    // Chunks that divide nothing, and prompts in one piece; all prompts at once share each step.
    for (cache, budget, top) in [
        (CacheKind::InPlace, 7, 0),
        (CacheKind::InPlace, 37, 3),
        (CacheKind::InPlace, 512, 20),
        (CacheKind::StaticV1, 29, 1),
        (CacheKind::StaticV2, 53, 1),
        (CacheKind::None, 101, 1),
    ] {
        let executor = executor_of_steps(&shared, budget).await;
        for golden in golden::tiny_models().unwrap() {
            let engine = load(&shared, &executor, &golden, cache).await;
            let context = format!("{} {cache} in steps of {budget}", golden.name);
            let score = async |case: &TinyCase| {
                let generated = engine.generate(scored(&sequence(case), 0, top)).await.unwrap();
                assert_eq!(generated.finish_reason, FinishReason::MaxTokens, "{context}");
                assert!(generated.token_ids.is_empty() && generated.text().is_empty(), "{context}");
                compare(case, &flat(&generated), top as usize, &context)
            };
            let compared: usize = join_all(golden.cases.iter().map(score)).await.into_iter().sum();
            assert!(compared >= golden.cases.len() * 31, "{context}: {compared}");
        }
    }
}

#[tokio::test]
async fn scores_come_as_chunks_are_done_and_with_the_first_token_at_the_latest() {
    let shared = shared().await.unwrap();
    let golden = tiny("tiny-llama-2");
    let case = golden.cases.last().unwrap();
    // More messages than are kept for a client that does not read yet.
    for budget in [1, 5] {
        let executor = executor_of_steps(&shared, budget).await;
        let engine = load(&shared, &executor, &golden, CacheKind::InPlace).await;
        let sequence = sequence(case);
        let scores = engine.generate(scored(&sequence, 0, 1)).await.unwrap();
        let sizes: Vec<_> = scores.prompt_logprobs.iter().map(Vec::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), sequence.len() - 1);
        assert!(sizes.iter().all(|&size| size <= budget), "{sizes:?}");
        compare(case, &flat(&scores), 1, "token by token");

        let prompt = &case.prompt_token_ids;
        let generated = engine.generate(scored(prompt, 32, 1)).await.unwrap();
        assert_eq!(generated.token_ids, case.output_token_ids);
        assert_eq!(flat(&generated), flat(&scores)[..prompt.len() - 1]);
    }
}

#[tokio::test]
async fn output_is_the_same_with_scores_as_without() {
    let shared = shared().await.unwrap();
    let golden = tiny("tiny-qwen-3");
    let engine = load(&shared, &shared.executor, &golden, CacheKind::InPlace).await;
    for case in &golden.cases {
        let plain = engine.generate(tokens(&case.prompt_token_ids, 32)).await.unwrap();
        let scored = engine.generate(scored(&case.prompt_token_ids, 32, 2)).await.unwrap();
        assert_eq!(plain.token_ids, case.output_token_ids);
        assert_eq!((&plain.token_ids, &plain.deltas.concat()), (&scored.token_ids, &scored.deltas.concat()));
        assert!(flat(&plain).is_empty());
        assert_eq!(flat(&scored).len(), case.prompt_token_ids.len() - 1);
    }
}

#[tokio::test]
async fn the_turns_of_a_session_score_their_own_tokens_after_those_before() {
    let shared = shared().await.unwrap();
    // A cache of all tokens, and one that keeps a window's.
    for name in ["tiny-llama-3.1", "tiny-gemma-3"] {
        let golden = tiny(name);
        let engine = load(&shared, &shared.executor, &golden, CacheKind::InPlace).await;
        let case = golden.cases.iter().rfind(|case| case.prompt_logits.is_some()).unwrap();
        let sequence = sequence(case);
        let (prompt, output) = (case.prompt_token_ids.len(), &case.output_token_ids);
        assert!(prompt > 16, "the window is outgrown");
        let request = CreateSessionRequest { engine: Some(engine.key.clone()), ..Default::default() };
        let session = engine.executor.client.clone().create_session(request).await.unwrap().into_inner();
        let mut found = Vec::new();
        let mut turn = async |from: usize, to: usize, max_tokens: u32| {
            let request = scored(&sequence[from..to], max_tokens, 2);
            let request = GenerateRequest { session_id: Some(session.id.clone()), ..request };
            let generated = engine.generate(request).await.unwrap();
            let scores = flat(&generated);
            assert_eq!(scores.len(), to - from - usize::from(from == 0), "{name}: turn at {from}");
            found.extend(scores);
            generated
        };
        turn(0, 1, 0).await;
        turn(1, 9, 0).await;
        let generated = turn(9, prompt, 3).await;
        assert_eq!(generated.token_ids, output[..3], "{name}");
        assert!(generated.usage.cached_tokens >= 7 || name == "tiny-gemma-3", "{:?}", generated.usage);
        turn(prompt + 3, prompt + 10, 0).await;
        turn(prompt + 10, sequence.len(), 0).await;
        // The three tokens that it chose were not of a prompt: their scores are the reference's.
        let whole = engine.generate(scored(&sequence, 0, 2)).await.unwrap();
        let whole = flat(&whole);
        assert_eq!(compare(case, &whole, 2, name), sequence.len() - 1);
        let chosen = whole[prompt - 1..prompt + 2].to_vec();
        found.splice(prompt - 1..prompt - 1, chosen);
        compare(case, &found, 2, &format!("{name} in turns"));
    }
}

#[tokio::test]
async fn a_score_is_stopped_as_a_generation_is() {
    let shared = shared().await.unwrap();
    let executor = executor_of_steps(&shared, 1).await;
    // A model that is slow enough for a long prompt to be running still.
    let mut request = smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap();
    request.options.as_mut().unwrap().all_logits = Some(true);
    let engine = executor.engine(&shared.compiler.key(request).await.unwrap()).await.unwrap();
    let prompt = vec![5; 2000];
    let named = GenerateRequest { request_id: Some("score".to_owned()), ..scored(&prompt, 0, 20) };
    let mut stream = engine.stream(named.clone()).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.prompt_logprobs.len(), 1);
    executor.cancel("score").await.unwrap();
    let cancelled = Generated::read_after(vec![first], &mut stream).await.unwrap();
    assert_eq!(cancelled.finish_reason, FinishReason::Cancelled);
    assert!(flat(&cancelled).len() < prompt.len() - 1);
    executor.becomes_idle().await.unwrap();

    let mut stream = engine.stream(named).await.unwrap();
    stream.message().await.unwrap().unwrap();
    drop(stream);
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn prompts_as_long_as_the_cache_can_be_scored_but_not_continued() {
    let shared = shared().await.unwrap();
    let golden = TinyModel { max_seq_len: Some(48), ..tiny("tiny-llama-2") };
    let engine = load(&shared, &shared.executor, &golden, CacheKind::InPlace).await;
    let full = engine.generate(scored(&[7; 48], 0, 0)).await.unwrap();
    assert_eq!((flat(&full).len(), full.usage.prompt_tokens), (47, 48));
    let one = engine.generate(scored(&[7], 0, 0)).await.unwrap();
    assert_eq!((flat(&one).len(), one.finish_reason), (0, FinishReason::MaxTokens));
    for (request, what) in [(scored(&[7; 48], 1, 0), "48 tokens"), (scored(&[7; 49], 0, 0), "49 tokens")] {
        let status = engine.stream(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(what), "{status}");
    }
}

#[tokio::test]
async fn what_an_engine_cannot_score_is_refused() {
    let shared = shared().await.unwrap();
    let golden = tiny("tiny-llama-2");
    let with = load(&shared, &shared.executor, &golden, CacheKind::InPlace).await;
    let key = shared.compiler.key(request(&golden, CacheKind::InPlace, false)).await.unwrap();
    let without = shared.executor.engine(&key).await.unwrap();
    for (engine, request, name, what) in [
        (&with, scored(&[1, 2], 1, 21), "response.prompt_logprobs", "prompt_logprobs is 21"),
        (&without, scored(&[1, 2], 1, 0), "response.prompt_logprobs", "all_logits"),
        (&without, scored(&[1, 2], 0, 20), "response.prompt_logprobs", "all_logits"),
        (&with, tokens(&[1, 2], 0), "stopping.max_tokens", "max_tokens is 0"),
    ] {
        let status = engine.stream(request).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, name));
        assert!(status.message().contains(what), "{status}");
    }
}
