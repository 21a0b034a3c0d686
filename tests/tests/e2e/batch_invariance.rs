//! In fp32 on the CPU a request gives the same tokens and log-probabilities, bit for bit, alone and in any batch, and however
//! its prompt is cut into steps.

use futures::future::join_all;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::{CompileEngineRequest, CompileOptions, WeightFormat, WeightQuantization};
use roundhouse_proto::executor::{GenerateRequest, ResponseOptions, SamplingOptions};
use roundhouse_tests::harness::{Generated, smollm2_request, tiny_llama_request, tokens};

use crate::gated::gated_engine;

/// Requests beside the ones that are looked at: more rows in a step than any kernel calls few.
const OTHERS: u32 = 30;
/// Tokens of each of them: they run until the ones that are looked at have ended.
const OTHERS_TOKENS: u32 = 30;
const PROMPT_TOKENS: u32 = 83;
const OUTPUT_TOKENS: u32 = 24;
/// Tokens in a step: with the default there is room for everyone; with fewer a prompt is cut, here and there beside others.
const STEP_TOKENS: [Option<usize>; 3] = [None, Some(19), Some(2)];
/// Tokens of each request to a model that takes longer.
const FEW_TOKENS: u32 = 10;

fn some_tokens(first: u32, count: u32) -> Vec<u32> {
    (first..first + count).map(|place| 3 + place * place % 91).collect()
}

/// A greedy request and a sampled one, which find nothing in the prefix cache.
fn subjects(output_tokens: u32) -> [GenerateRequest; 2] {
    let prompt = some_tokens(0, PROMPT_TOKENS);
    let greedy = GenerateRequest {
        response: Some(ResponseOptions { logprobs: Some(3), ..ResponseOptions::default() }),
        bypass_prefix_cache: Some(true),
        ..tokens(&prompt, output_tokens)
    };
    let sampling = SamplingOptions { temperature: Some(1.0), seed: Some(7), ..SamplingOptions::default() };
    [greedy.clone(), GenerateRequest { sampling: Some(sampling), ..greedy }]
}

/// Checks one engine.
async fn check(name: &str, request: CompileEngineRequest) {
    check_with(name, request, &STEP_TOKENS, OUTPUT_TOKENS, OTHERS_TOKENS).await;
}

async fn check_with(
    name: &str,
    request: CompileEngineRequest,
    step_tokens: &[Option<usize>],
    output_tokens: u32,
    others_tokens: u32,
) {
    let mut alone = Vec::new();
    for &step_tokens in step_tokens {
        let (_executor, engine, gate) = gated_engine(request.clone(), 64, |config| {
            config.step_token_budget = step_tokens.unwrap_or(config.step_token_budget);
        })
        .await;
        for (index, subject) in subjects(output_tokens).into_iter().enumerate() {
            let found = engine.generate(subject.clone()).await.unwrap();
            let found = (found.token_ids, found.logprobs);
            let what = format!("{name}, request {index}, {step_tokens:?} tokens a step");
            match alone.get(index) {
                None => alone.push(found),
                Some(expected) => assert!(found == *expected, "{what}: alone"),
            }
            // All begin before the first of them has a second step.
            gate.close();
            let mut others = Vec::new();
            for other in 1..=if step_tokens.is_none() { OTHERS } else { 3 } {
                let prompt = some_tokens(100 * other, 1 + other * 37 % 140);
                others.push(engine.stream(tokens(&prompt, others_tokens)).await.unwrap());
            }
            let mut subjects = Vec::new();
            for _ in 0..3 {
                subjects.push(engine.stream(subject.clone()).await.unwrap());
            }
            gate.open();
            let (subjects, others) = futures::join!(
                join_all(subjects.iter_mut().map(Generated::read)),
                join_all(others.iter_mut().map(Generated::read))
            );
            for other in others {
                assert_eq!(other.unwrap().token_ids.len(), others_tokens as usize);
            }
            for found in subjects {
                let found = found.unwrap();
                assert!((found.token_ids, found.logprobs) == alone[index], "{what}: in a batch");
            }
        }
    }
}

fn quantised(
    request: CompileEngineRequest,
    format: WeightFormat,
    group_size: Option<u32>,
) -> CompileEngineRequest {
    let quantization =
        Some(WeightQuantization { format: format.into(), group_size, ..WeightQuantization::default() });
    let options = CompileOptions { quantization, ..request.options.unwrap() };
    CompileEngineRequest { options: Some(options), ..request }
}

fn tiny(name: &str) -> CompileEngineRequest {
    tiny_llama_request(name, Precision::Fp32, CacheKind::InPlace)
}

#[tokio::test]
async fn of_dense_weights() {
    for name in ["tiny-llama-2", "tiny-mixtral", "tiny-gemma-3"] {
        check(name, tiny(name)).await;
    }
}

#[tokio::test]
async fn of_weights_of_eight_and_four_bits() {
    for format in [WeightFormat::Int8, WeightFormat::Int4, WeightFormat::Fp8] {
        for group_size in [16, 32] {
            let name = format!("{format:?} in groups of {group_size}");
            check(&name, quantised(tiny("tiny-llama-2"), format, Some(group_size))).await;
        }
    }
}

#[tokio::test]
async fn of_a_packed_gguf() {
    let request = smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap();
    let request = quantised(request, WeightFormat::Checkpoint, None);
    check_with("SmolLM2", request, &STEP_TOKENS[..2], FEW_TOKENS, FEW_TOKENS).await;
}
