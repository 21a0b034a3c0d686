//! TensorRT engines of every family, built by the real library through the compiler service. Where no GPU runs their
//! plans, the network that each was built from runs in host memory, under the real runtime: it gives Transformers' logits
//! in fp32, and its greedy tokens in half precision.

use std::path::PathBuf;

use roundhouse_backend::{LogitsRequest, Model, Runtime as _};
use roundhouse_engine::{CacheKind, Precision, blob_names};
use roundhouse_proto::compiler::{self, Backend, CompileEngineRequest, CompileOptions, WeightPlacement};
use roundhouse_store::PulledEngine;
use roundhouse_tensorrt_host_device::{HostMachine, NetworkBuilder};
use roundhouse_tensorrt_runtime::TensorRtRuntime;
use roundhouse_tests::golden::TinyModel;
use roundhouse_tests::harness::{
    Shared, compile_options, compile_request, engine_files, shared, smollm2_request,
};
use roundhouse_tests::support::{Cell, cells};

use crate::tiny_model_logits::{Feed, ROUNDINGS, half_precision, rounding};

/// The same engine for TensorRT, its weights beside the plan or in it.
fn for_tensorrt(request: CompileEngineRequest, weights: WeightPlacement) -> CompileEngineRequest {
    let options = CompileOptions {
        backend: Some(Backend::Tensorrt.into()),
        targets: vec!["sm_89".to_owned()],
        tensorrt: Some(compiler::TensorRtOptions { weights: Some(weights.into()), ..Default::default() }),
        ..request.options.unwrap()
    };
    CompileEngineRequest { options: Some(options), ..request }
}

/// An engine of a tiny model with its weights beside the plan.
async fn build(
    shared: &Shared,
    golden: &TinyModel,
    precision: Precision,
    cache: CacheKind,
    all_logits: bool,
) -> PulledEngine {
    let options = CompileOptions {
        all_logits: Some(all_logits),
        max_seq_len: golden.max_seq_len,
        ..compile_options(precision, cache)
    };
    let request = for_tensorrt(compile_request(&golden.checkpoint, options), WeightPlacement::Separate);
    let key = shared.compiler.key(request).await.unwrap();
    engine_files(shared, &key).await.unwrap()
}

/// The engine's network, with its weights, in host memory.
fn interpret(engine: &PulledEngine) -> Box<dyn Model> {
    let mut files = engine.files().clone();
    // The machine knows no other version; what it loads is told by the files.
    files.manifest.backend_version = NetworkBuilder::VERSION.to_owned();
    TensorRtRuntime::on(HostMachine::default(), None).load(&files).unwrap()
}

/// Steps after the prompt: enough to read what the prompt and a step before left in a cache.
const DECODED: usize = 3;

/// Each model has its cells in a row, one for each of four caches: so many further on is another model's, in another cache.
const SOME: usize = 5;
/// The same of two precisions.
const FEWER: usize = 13;

#[tokio::test]
async fn engines_give_transformers_logits() {
    logits_are_equal(SOME).await;
}

#[tokio::test]
#[ignore = "minutes of building: `make test-tensorrt`"]
async fn engines_of_every_family_give_transformers_logits_in_every_cache() {
    logits_are_equal(1).await;
}

#[tokio::test]
async fn half_precision_engines_give_transformers_tokens_where_margins_allow() {
    half_precision_tokens_are_equal(FEWER).await;
}

#[tokio::test]
#[ignore = "minutes of building: `make test-tensorrt`"]
async fn half_precision_engines_of_every_family_give_transformers_tokens_where_margins_allow() {
    half_precision_tokens_are_equal(1).await;
}

/// Every so many cells of the table.
async fn logits_are_equal(every: usize) {
    let shared = shared().await.unwrap();
    let cells = cells(&shared, Backend::Tensorrt, &[Precision::Fp32]).await.unwrap();
    for Cell { golden, cache, .. } in cells.into_iter().step_by(every) {
        let engine = build(&shared, &golden, Precision::Fp32, cache, true).await;
        let model = interpret(&engine);
        let context = format!("{} {cache} for TensorRT", golden.name);
        for case in &golden.cases {
            let mut feed = Feed::new(&*model, case);
            let mut compared = 0;
            let mut step = case.prompt_token_ids.len();
            for _ in 0..=DECODED {
                model.forward(&mut [feed.sequence(step, LogitsRequest::All)]).unwrap();
                compared += feed.compare(&context);
                step = 1;
            }
            assert!(compared > DECODED, "{context}: {compared} positions");
        }
    }
}

/// Every so many cells of the table.
async fn half_precision_tokens_are_equal(every: usize) {
    let shared = shared().await.unwrap();
    let mut required = 0;
    let cells = half_precision(&shared, Backend::Tensorrt).await;
    for Cell { golden, precision, cache } in cells.into_iter().step_by(every) {
        let engine = build(&shared, &golden, precision, cache, false).await;
        let model = interpret(&engine);
        let context = format!("{} {precision} {cache} for TensorRT", golden.name);
        required += check_next_tokens(&*model, &golden, rounding(precision), &context);
    }
    assert!(required > 0, "nothing had to be equal");
}

/// Compares the token after each prompt wherever its margin is above what rounding can move. Returns how many were
/// compared.
fn check_next_tokens(model: &dyn Model, golden: &TinyModel, rounding: f32, context: &str) -> usize {
    let mut compared = 0;
    for case in &golden.cases {
        let largest = case.step_logits.rows().flatten().fold(0.0_f32, |max, logit| max.max(logit.abs()));
        let bound = ROUNDINGS * rounding * largest;
        let mut feed = Feed::new(model, case);
        model.forward(&mut [feed.sequence(case.prompt_token_ids.len(), LogitsRequest::Last)]).unwrap();
        let best = feed.logits().iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
        if case.step_logits.margins()[0] > 2.0 * bound {
            assert_eq!(best.map(|(id, _)| id as u32), Some(case.output_token_ids[0]), "{context}");
            compared += 1;
        }
    }
    compared
}

#[tokio::test]
async fn smollm2_builds_in_every_cache_with_its_weights_in_the_plan() {
    let shared = shared().await.unwrap();
    for &cache in CacheKind::ALL {
        let request =
            for_tensorrt(smollm2_request(Precision::Fp16, cache).unwrap(), WeightPlacement::Embedded);
        let compiled = shared.compiler.compile(request).await.unwrap();
        let engine = compiled.engine.unwrap();
        let size = |name: &str| engine.blobs.iter().find(|blob| blob.name == name).map(|blob| blob.size);
        let weights = compiled.memory_plan.unwrap().weight_bytes;
        let plan = size(blob_names::PLAN).unwrap();
        assert!(plan > weights && plan < weights * 17 / 10, "{cache}: {plan} bytes for {weights} of weights");
        assert_eq!(size(blob_names::WEIGHTS), None, "{cache}: the weights are in the plan");
    }
}

#[tokio::test]
async fn weights_beside_a_plan_are_the_blob_of_the_cpu_engine() {
    let shared = shared().await.unwrap();
    let checkpoint = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/tiny-llama-2");
    let request = compile_request(&checkpoint, compile_options(Precision::Fp16, CacheKind::InPlace));
    let digest = async |request| {
        let engine = shared.compiler.compile(request).await.unwrap().engine.unwrap();
        engine.blobs.into_iter().find(|blob| blob.name == blob_names::WEIGHTS).unwrap().sha256
    };
    let of_cpu = digest(request.clone()).await;
    assert_eq!(digest(for_tensorrt(request, WeightPlacement::Separate)).await, of_cpu);
}
