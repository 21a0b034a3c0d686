//! A tiny model of every family on the emulated device, against Transformers' logits and, with quantised weights, those of the
//! interpreter.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

#[path = "../examples/bench/engine.rs"]
mod engine;
#[path = "../examples/bench/goldens.rs"]
mod goldens;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use roundhouse_backend::{BackendError, Cache, GreedySequence, LogitsRequest, Model, Sequence};
use roundhouse_cuda_builder::CudaBuilder;
use roundhouse_cuda_emulation::{EmulatedDevice, EmulationCompiler};
use roundhouse_cuda_runtime::CudaRuntime;
use roundhouse_engine::{CacheKind, EngineOptions, Precision, WeightQuantization};

const GOLDENS: &str = include_str!("../../../../../compiler-svc/models/tests/golden/families.json");

fn backend() -> (CudaBuilder, CudaRuntime) {
    let builder = CudaBuilder::new(Arc::new(EmulationCompiler), None);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("cuda-emulation");
    (builder, CudaRuntime::on(Arc::new(EmulatedDevice::new(folder))))
}

fn every_family(precision: Precision, quantizations: &[WeightQuantization], allowed: f32) {
    families_where(|_| true, precision, quantizations, allowed);
}

fn families_where(
    wanted: impl Fn(&str) -> bool,
    precision: Precision,
    quantizations: &[WeightQuantization],
    allowed: f32,
) {
    let goldens: Vec<goldens::Golden> = serde_json::from_str(GOLDENS).unwrap();
    let (builder, runtime) = backend();
    for golden in goldens.into_iter().filter(|golden| wanted(&golden.name)) {
        for &quantization in quantizations {
            let options = goldens::Golden::options(precision, CacheKind::InPlace, quantization);
            let difference = golden.difference(&builder, &runtime, &options).unwrap();
            assert!(difference < allowed, "{} {quantization}: {difference:e}", golden.name);
        }
    }
}

const PLAIN: &[WeightQuantization] = &[WeightQuantization::None];

/// Sums of some 30 products, made in another order.
#[test]
fn fp32_logits_are_those_of_transformers() {
    every_family(Precision::Fp32, PLAIN, 2e-5);
}

/// Twice what the suite allows for rounding activations: here the engine's weights are rounded too, Transformers' are not.
#[test]
fn fp16_logits_are_those_of_transformers_but_for_rounding() {
    every_family(Precision::Fp16, PLAIN, 32.0 / 2048.0);
}

#[test]
fn bf16_logits_are_those_of_transformers_but_for_rounding() {
    every_family(Precision::Bf16, PLAIN, 32.0 / 256.0);
}

/// The same bytes, scales and offsets: only the order of sums differs.
#[test]
fn quantized_weights_give_the_logits_of_the_interpreter() {
    every_family(Precision::Fp32, &goldens::QUANTIZATIONS, 2e-5);
}

/// As for plain weights; but where a mixture's router is between two experts, rounding may choose the other one.
#[test]
fn quantized_weights_in_half_precision_give_the_logits_of_the_interpreter_but_for_rounding() {
    let [int8, _, int4, _] = goldens::QUANTIZATIONS;
    let dense = |name: &str| !name.contains("moe") && !name.starts_with("mixtral");
    families_where(dense, Precision::Fp16, &[int4], 32.0 / 2048.0);
    families_where(dense, Precision::Bf16, &[int8], 32.0 / 256.0);
}

/// A step of a sequence by itself; its likeliest next token.
fn next_token(model: &dyn Model, cache: &mut dyn Cache, tokens: &[u32]) -> u32 {
    let mut logits = Vec::new();
    let sequence = Sequence { cache, tokens, request: LogitsRequest::Last, logits: &mut logits };
    model.forward(&mut [sequence]).unwrap();
    let largest = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    u32::try_from(largest.unwrap()).unwrap()
}

/// In steps that find several tokens, of sequences of different lengths, in the middle of which one is cut back.
#[test]
fn tokens_found_on_the_device_are_those_of_the_largest_logits() {
    const PROMPTS: [&[u32]; 3] = [&[3, 1, 4, 1, 5], &[9], &[2, 6, 5]];
    let goldens: Vec<goldens::Golden> = serde_json::from_str(GOLDENS).unwrap();
    let (builder, runtime) = backend();
    // One with a window, whose layers are rings.
    let golden = goldens.iter().find(|golden| golden.name == "mistral/window").unwrap();
    let options = goldens::Golden::options(Precision::Fp32, CacheKind::InPlace, WeightQuantization::None);
    let options = EngineOptions { max_seq_len: 60, ..options };
    let (model, _files) = golden.engine(&builder, &runtime, &options).unwrap();
    let mut expected = Vec::new();
    for prompt in PROMPTS {
        let mut cache = model.new_cache(60).unwrap();
        let mut tokens = vec![next_token(&*model, &mut *cache, prompt)];
        for at in 0..20 {
            tokens.push(next_token(&*model, &mut *cache, &[tokens[at]]));
        }
        expected.push(tokens);
    }
    let mut caches: Vec<_> = PROMPTS.iter().map(|_| model.new_cache(60).unwrap()).collect();
    let first = |(cache, prompt): (&mut Box<dyn Cache>, &&[u32])| next_token(&*model, &mut **cache, prompt);
    let mut tokens: Vec<Vec<u32>> =
        caches.iter_mut().zip(&PROMPTS).map(first).map(|token| vec![token]).collect();
    for (turn, steps) in [1, 4, 1, 6, 3, 5].into_iter().enumerate() {
        if turn == 3 {
            // As after a token that ends a turn early.
            let length = caches[1].len();
            assert_eq!(caches[1].truncate(length - 2), length - 2);
            let kept = tokens[1].len() - 2;
            tokens[1].truncate(kept);
        }
        let parts = caches.iter_mut().zip(&tokens);
        let mut batch: Vec<GreedySequence<'_>> = parts
            .map(|(cache, tokens)| GreedySequence { cache: &mut **cache, token: *tokens.last().unwrap() })
            .collect();
        let mut found: Vec<Vec<u32>> = Vec::new();
        let mut each = |tokens: &[u32]| {
            found.push(tokens.to_vec());
            ControlFlow::Continue(())
        };
        assert!(model.decode_greedily(&mut batch, steps, &mut each).unwrap());
        drop(batch);
        assert_eq!(found.len(), steps);
        for (index, tokens) in tokens.iter_mut().enumerate() {
            tokens.extend(found.iter().map(|found| found[index]));
        }
    }
    for (tokens, expected) in tokens.iter().zip(&expected) {
        assert_eq!(tokens[..], expected[..tokens.len()]);
    }
    let mut full = model.new_cache(3).unwrap();
    let mut batch = [GreedySequence { cache: &mut *full, token: 1 }];
    let refused = model.decode_greedily(&mut batch, 4, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(BackendError::CacheFull { tokens: 4, .. })));
}
