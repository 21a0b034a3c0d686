//! Sampling: repeatable with a seed, greedy where its parameters leave one token, and checked before it begins.

use std::collections::HashSet;

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::executor::{GenerateRequest, ResponseOptions, SamplingOptions};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::golden::{self, GoldenPrompt};
use roundhouse_tests::harness::{LoadedEngine, field, reason, smollm2, tokens};
use tonic::Code;

const STEPS: u32 = 24;

async fn engine() -> LoadedEngine {
    smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap()
}

fn story() -> GoldenPrompt {
    golden::smollm2().unwrap().prompts.into_iter().find(|prompt| prompt.name == "plain_story").unwrap()
}

async fn sample(engine: &LoadedEngine, sampling: SamplingOptions) -> Vec<u32> {
    let request = GenerateRequest { sampling: Some(sampling), ..tokens(&story().prompt_token_ids, STEPS) };
    engine.generate(request).await.unwrap().token_ids
}

fn warm(seed: Option<u64>) -> SamplingOptions {
    SamplingOptions { temperature: Some(1.0), seed, ..SamplingOptions::default() }
}

#[tokio::test]
async fn a_seed_makes_sampling_repeatable_and_another_one_makes_it_different() {
    let engine = engine().await;
    let mut outputs = HashSet::new();
    for seed in [0, 1, u64::MAX] {
        let first = sample(&engine, warm(Some(seed))).await;
        assert_eq!(sample(&engine, warm(Some(seed))).await, first, "seed {seed}");
        outputs.insert(first);
    }
    assert_eq!(outputs.len(), 3, "{outputs:?}");
}

#[tokio::test]
async fn without_a_seed_outputs_differ() {
    let engine = engine().await;
    let first = sample(&engine, warm(None)).await;
    assert_ne!(sample(&engine, warm(None)).await, first);
}

#[tokio::test]
async fn parameters_that_leave_one_token_are_greedy() {
    let engine = engine().await;
    let greedy = &story().output_token_ids[..STEPS as usize];
    for sampling in [
        SamplingOptions::default(),
        SamplingOptions { temperature: Some(0.0), seed: Some(3), ..SamplingOptions::default() },
        SamplingOptions {
            temperature: Some(0.0),
            top_k: Some(40),
            top_p: Some(0.9),
            ..SamplingOptions::default()
        },
        SamplingOptions { top_k: Some(1), ..warm(Some(3)) },
        SamplingOptions { top_p: Some(1e-6), ..warm(Some(3)) },
        SamplingOptions { min_p: Some(1.0), ..warm(Some(3)) },
        SamplingOptions { temperature: Some(1e-4), ..warm(Some(3)) },
    ] {
        assert_eq!(sample(&engine, sampling).await, greedy, "{sampling:?}");
    }
}

#[tokio::test]
async fn filters_keep_the_tokens_that_they_promise() {
    let engine = engine().await;
    let request = GenerateRequest {
        sampling: Some(SamplingOptions { temperature: Some(2.0), top_k: Some(4), ..warm(Some(11)) }),
        response: Some(ResponseOptions { logprobs: Some(4), ..ResponseOptions::default() }),
        ..tokens(&story().prompt_token_ids, STEPS)
    };
    let generated = engine.generate(request).await.unwrap();
    for (token, logprobs) in generated.token_ids.iter().zip(&generated.logprobs) {
        assert!(logprobs.top.iter().any(|top| top.token_id == *token), "{token} is not in {logprobs:?}");
    }
    assert!(
        generated.logprobs.iter().any(|logprobs| logprobs.logprob < logprobs.top[0].logprob),
        "never sampled"
    );
}

#[tokio::test]
async fn penalties_stop_repetition() {
    let engine = engine().await;
    // Every token of the output once is the most that a penalty can ask for.
    let sampling = SamplingOptions {
        presence_penalty: Some(2.0),
        frequency_penalty: Some(2.0),
        repetition_penalty: Some(2.0),
        ..SamplingOptions::default()
    };
    let penalised = sample(&engine, sampling).await;
    let distinct = |tokens: &[u32]| tokens.iter().collect::<HashSet<_>>().len();
    assert!(distinct(&penalised) > distinct(&story().output_token_ids[..STEPS as usize]), "{penalised:?}");
}

#[tokio::test]
async fn a_parameter_that_cannot_be_is_named() {
    let engine = engine().await;
    let unset = SamplingOptions::default;
    for (name, sampling) in [
        ("temperature", SamplingOptions { temperature: Some(-0.5), ..unset() }),
        ("temperature", SamplingOptions { temperature: Some(f32::NAN), ..unset() }),
        ("temperature", SamplingOptions { temperature: Some(f32::INFINITY), ..unset() }),
        ("top_p", SamplingOptions { top_p: Some(0.0), ..unset() }),
        ("top_p", SamplingOptions { top_p: Some(1.5), ..unset() }),
        ("min_p", SamplingOptions { min_p: Some(-0.1), ..unset() }),
        ("min_p", SamplingOptions { min_p: Some(2.0), ..unset() }),
        ("repetition_penalty", SamplingOptions { repetition_penalty: Some(0.0), ..unset() }),
        ("presence_penalty", SamplingOptions { presence_penalty: Some(3.0), ..unset() }),
        ("frequency_penalty", SamplingOptions { frequency_penalty: Some(f32::NAN), ..unset() }),
    ] {
        let request = GenerateRequest { sampling: Some(sampling), ..tokens(&[1], 1) };
        let status = engine.generate(request).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, reasons::INVALID_FIELD)
        );
        assert_eq!(field(&status), format!("sampling.{name}"), "{status}");
        assert!(status.message().contains(name), "{status}");
    }
}
