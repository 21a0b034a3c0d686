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
        SamplingOptions { typical_p: Some(1e-6), top_k: Some(1), ..warm(Some(3)) },
        SamplingOptions { temperature: Some(1e-4), ..warm(Some(3)) },
    ] {
        assert_eq!(sample(&engine, sampling.clone()).await, greedy, "{sampling:?}");
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
        ("typical_p", SamplingOptions { typical_p: Some(0.0), ..unset() }),
        ("no_repeat_ngram_size", SamplingOptions { no_repeat_ngram_size: Some(257), ..unset() }),
        ("logit_bias", SamplingOptions { logit_bias: [(1, 100.5)].into(), ..unset() }),
        ("logit_bias", SamplingOptions { logit_bias: [(1, f32::NAN)].into(), ..unset() }),
        ("logit_bias", SamplingOptions { logit_bias: [(49_152, 1.0)].into(), ..unset() }),
        ("logit_bias", SamplingOptions { logit_bias: (0..1025).map(|t| (t, 1.0)).collect(), ..unset() }),
        ("bad_words", SamplingOptions { bad_words: vec![String::new()], ..unset() }),
        ("bad_words", SamplingOptions { bad_words: vec!["x".repeat(257)], ..unset() }),
        ("bad_words", SamplingOptions { bad_words: vec!["x".to_owned(); 129], ..unset() }),
        ("n", SamplingOptions { n: Some(0), ..unset() }),
        ("n", SamplingOptions { n: Some(17), ..unset() }),
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

#[tokio::test]
async fn a_bias_forces_a_token_and_bans_another() {
    let engine = engine().await;
    let banned = story().output_token_ids[0];
    let biased = SamplingOptions { logit_bias: [(7, 100.0)].into(), ..SamplingOptions::default() };
    assert_eq!(sample(&engine, biased).await, [7; STEPS as usize]);
    let without = SamplingOptions { logit_bias: [(banned, -100.0)].into(), ..warm(Some(1)) };
    assert!(!sample(&engine, without).await.contains(&banned));
}

#[tokio::test]
async fn bad_words_are_not_written() {
    let engine = engine().await;
    let text = |tokens: Vec<u32>| {
        let engine = &engine;
        async move { engine.detokenize(&tokens, true).await.unwrap() }
    };
    let greedy = text(sample(&engine, SamplingOptions::default()).await).await;
    // Words of one token and of several, at their beginning and within.
    for word in ["wise", "kind woman", "Elara"] {
        assert!(greedy.contains(word), "{greedy:?}");
        let sampling = SamplingOptions { bad_words: vec![word.to_owned()], ..SamplingOptions::default() };
        let without = text(sample(&engine, sampling).await).await;
        assert!(!without.contains(word), "{word}: {without:?}");
    }
}

#[tokio::test]
async fn an_ngram_does_not_come_again() {
    let engine = engine().await;
    let loops = GenerateRequest {
        sampling: Some(SamplingOptions { no_repeat_ngram_size: Some(3), ..SamplingOptions::default() }),
        ..roundhouse_tests::harness::prompt("one two three one two three one two three one two", 64)
    };
    let repeated = |tokens: &[u32]| {
        let mut seen = HashSet::new();
        tokens.windows(3).any(|ngram| !seen.insert(ngram.to_vec()))
    };
    let free = GenerateRequest { sampling: None, ..loops.clone() };
    assert!(repeated(&engine.generate(free).await.unwrap().token_ids), "the prompt makes no loop any more");
    assert!(!repeated(&engine.generate(loops).await.unwrap().token_ids));
}
