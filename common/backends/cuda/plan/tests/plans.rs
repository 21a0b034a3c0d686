//! What becomes of models.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::HashSet;

use roundhouse_backend::BackendError;
use roundhouse_backend_conformance::suite::op_cases;
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_cuda_kernels::Kernel;
use roundhouse_cuda_plan::{Attended, LaunchContext, Plan, Step, StepShape, kernels, launches};
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapabilities, ComputeCapability, EngineOptions, Precision,
    WeightQuantization,
};
use roundhouse_graph::Graph;

const H100: ComputeCapability = ComputeCapability::new(9, 0);

fn options(precision: Precision, cache: CacheKind) -> EngineOptions {
    EngineOptions {
        precision,
        cache,
        backend: BackendKind::Cuda,
        max_seq_len: 40,
        max_batch_size: 4,
        all_logits: false,
        quantization: WeightQuantization::None,
        targets: ComputeCapabilities::NONE,
        tensorrt: None,
    }
}

fn plan(graph: Graph, options: &EngineOptions) -> Result<Plan, BackendError> {
    let (graph, _) = roundhouse_lowering::lower(graph, options).unwrap();
    Plan::new(&graph, options)
}

fn names(plan: &Plan) -> String {
    let name = |step: &Step| match step {
        Step::Embed(_) => "embed",
        Step::Norm(_) => "norm",
        Step::Linear(linear) if linear.norm.is_some() => "norm+linear",
        Step::Linear(_) => "linear",
        Step::Rotate { .. } => "rotate",
        Step::Prepare(_) => "prepare",
        Step::Attend(_) => "attend",
        Step::Select { .. } => "select",
        Step::Map { .. } => "map",
        Step::Binary { .. } => "binary",
        Step::Numbers { .. } => "numbers",
        Step::Softmax { .. } => "softmax",
        Step::Experts(_) => "experts",
    };
    plan.steps.iter().map(name).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_layer_is_six_steps_with_every_cache() {
    let layer = "norm+linear prepare attend linear norm+linear linear";
    let expected = format!("embed {layer} {layer} select norm+linear");
    for &precision in Precision::ALL {
        for &cache in CacheKind::ALL {
            let plan = plan(TinyModel::llama().graph().unwrap(), &options(precision, cache)).unwrap();
            assert_eq!(names(&plan), expected, "{precision} {cache}");
            let parts: Vec<usize> = plan.weights.iter().map(|weight| weight.parts.len()).collect();
            assert_eq!(parts.iter().filter(|&&parts| parts == 3).count(), 2, "queries, keys and values");
            assert_eq!(parts.iter().filter(|&&parts| parts == 2).count(), 2, "gate and up");
        }
    }
}

#[test]
fn every_tiny_model_has_a_plan_and_no_copies() {
    for model in TinyModel::all() {
        let plan = plan(model.graph().unwrap(), &options(Precision::Fp16, CacheKind::InPlace)).unwrap();
        let steps = names(&plan);
        assert!(!steps.contains("map") && !steps.contains("binary"), "{}: {steps}", model.name);
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    }
}

#[test]
fn ops_that_mix_tokens_and_no_others_are_refused() {
    let mut refused = Vec::new();
    for case in op_cases(Precision::Fp16.dtype()).unwrap() {
        let options =
            EngineOptions { all_logits: !case.last_token, ..options(Precision::Fp16, CacheKind::None) };
        match plan(case.source.graph, &options) {
            Ok(_) => {}
            Err(BackendError::Unsupported { .. }) => refused.push(case.name),
            Err(error) => {
                assert!(matches!(error, BackendError::Unsupported { .. }), "{}: {error}", case.name)
            }
        }
    }
    let expected = [
        "matmul",
        "matmul_transposed",
        "rotary_embedding_sections",
        "attention_not_causal",
        "attention_segments",
        "attention_float_mask",
        "attention_bool_mask",
        "replace_rows",
    ];
    assert_eq!(refused, expected);
}

#[test]
fn sliding_layers_are_rings_and_the_others_are_not() {
    let model = TinyModel { sliding_window: Some(5), max_position_embeddings: 4096, ..TinyModel::mistral() };
    let options = EngineOptions { max_seq_len: 4096, ..options(Precision::Fp16, CacheKind::InPlace) };
    let plan = plan(model.graph().unwrap(), &options).unwrap();
    let rings: Vec<bool> = plan.cache.tensors.iter().map(|tensor| tensor.ring).collect();
    assert_eq!(rings, [true, true, false, false]);
    assert_eq!(plan.cache.ring_rows, 5 + plan.limits.chunk - 1);
    let row = 2 * 16 * 2;
    assert_eq!(plan.cache.bytes(4096), 2 * row * (4096 + plan.cache.ring_rows));
    // Full tensors come first.
    assert_eq!((plan.cache.offset(2).full, plan.cache.offset(2).ring), (0, 0));
    assert_eq!((plan.cache.offset(1).full, plan.cache.offset(1).ring), (64, 32));
}

/// Every step's launches are of kernels that the engine has, and have the arguments that they take.
#[test]
fn an_engine_has_every_kernel_that_its_steps_launch() {
    for model in TinyModel::all() {
        for &precision in Precision::ALL {
            let options = EngineOptions { max_batch_size: 80, ..options(precision, CacheKind::InPlace) };
            let plan = plan(model.graph().unwrap(), &options).unwrap();
            let all: HashSet<String> = kernels(&plan, H100).unwrap().iter().map(Kernel::name).collect();
            let real = LaunchContext { multiprocessors: 7, ..LaunchContext::nominal(H100) };
            for tokens in 1..=plan.limits.tokens {
                for (selected, tiles) in [(0, 1), (1, 2), (tokens.min(plan.limits.rows), 0)] {
                    let attended = Attended { single: true, tiles };
                    let shape = StepShape { tokens, selected, selects_all: selected == tokens, attended };
                    for launch in launches(&plan, shape, real).unwrap() {
                        let name = launch.kernel.name();
                        assert!(all.contains(&name), "{}: {name} for {shape:?}", model.name);
                        assert_eq!(launch.arguments.len(), launch.kernel.parameters().len(), "{name}");
                    }
                }
            }
        }
    }
}
