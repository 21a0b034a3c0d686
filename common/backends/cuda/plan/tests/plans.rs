//! What becomes of models.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::HashSet;

use roundhouse_backend::BackendError;
use roundhouse_backend_conformance::MemoryWeights;
use roundhouse_backend_conformance::quantized_models::quantize;
use roundhouse_backend_conformance::suite::op_cases;
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_cuda_kernels::Kernel;
use roundhouse_cuda_plan::{Attended, LaunchContext, Plan, Step, StepShape, kernels, launches};
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapabilities, ComputeCapability, EngineOptions, Precision,
    WeightQuantization,
};
use roundhouse_graph::{DType, Graph, Quantization, QuantizedLinearAttributes, WeightFormat};

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

/// With the weights of the model's products of the form that `of` has for them.
fn quantized_plan(
    model: &TinyModel,
    options: &EngineOptions,
    of: &dyn Fn(&str) -> Option<QuantizedLinearAttributes>,
) -> Plan {
    let (graph, _) = roundhouse_lowering::lower(model.graph().unwrap(), options).unwrap();
    Plan::new(&quantize(graph, &mut MemoryWeights::new(), of).unwrap(), options).unwrap()
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
fn has_every_kernel(name: &str, plan: &dyn Fn(&EngineOptions) -> Plan) {
    for &precision in Precision::ALL {
        let options = EngineOptions { max_batch_size: 80, ..options(precision, CacheKind::InPlace) };
        let plan = plan(&options);
        let all: HashSet<String> = kernels(&plan, H100).unwrap().iter().map(Kernel::name).collect();
        let real = LaunchContext { multiprocessors: 7, ..LaunchContext::nominal(H100) };
        for tokens in 1..=plan.limits.tokens {
            for (selected, tiles) in [(0, 1), (1, 2), (tokens.min(plan.limits.rows), 0)] {
                let attended = Attended { single: true, tiles };
                let shape = StepShape { tokens, selected, selects_all: selected == tokens, attended };
                for launch in launches(&plan, shape, real).unwrap() {
                    let kernel = launch.kernel.name();
                    assert!(all.contains(&kernel), "{name}: {kernel} for {shape:?}");
                    assert_eq!(launch.arguments.len(), launch.kernel.parameters().len(), "{kernel}");
                }
            }
        }
    }
}

#[test]
fn an_engine_has_every_kernel_that_its_steps_launch() {
    for model in TinyModel::all() {
        has_every_kernel(model.name, &|options| plan(model.graph().unwrap(), options).unwrap());
    }
}

const fn form(format: WeightFormat, group_size: u32, has_offsets: bool) -> QuantizedLinearAttributes {
    QuantizedLinearAttributes { quantization: Quantization { format, group_size }, has_offsets }
}

const FORMS: [QuantizedLinearAttributes; 4] = [
    form(WeightFormat::Int8, 16, false),
    form(WeightFormat::Int4, 32, true),
    form(WeightFormat::Int4, 8, false),
    form(WeightFormat::Fp8, 32, false),
];

#[test]
fn quantized_layers_are_the_steps_of_plain_ones_and_their_bytes_are_counted() {
    for model in TinyModel::all() {
        for &precision in Precision::ALL {
            let options = options(precision, CacheKind::InPlace);
            let plain = plan(model.graph().unwrap(), &options).unwrap();
            for form in FORMS {
                let layers = |name: &str| Some(form).filter(|_| name.contains("layers"));
                let found = quantized_plan(&model, &options, &layers);
                assert_eq!(names(&found), names(&plain), "{}", model.name);
                let pairs = found.steps.iter().zip(&plain.steps).filter_map(|pair| match pair {
                    (Step::Linear(found), Step::Linear(plain)) => Some((found, plain)),
                    _ => None,
                });
                let mut saved = 0;
                for (linear, before) in pairs {
                    let before = plain.weight(before.weight);
                    assert_eq!(linear.columns(&found), before.columns);
                    let Some(weight) = linear.quantized else { continue };
                    let (bytes, scales) = (found.weight(linear.weight), found.weight(weight.scales));
                    assert_eq!((bytes.rows, bytes.dtype), (before.rows, DType::U8));
                    let groups = before.columns / form.quantization.group_size as usize;
                    assert_eq!((scales.rows, scales.columns), (before.rows, groups));
                    assert_eq!(weight.offsets.is_some(), form.has_offsets);
                    let of_groups = scales.bytes() * if form.has_offsets { 2 } else { 1 };
                    let packed = before.rows * before.columns * form.quantization.format.bits() as usize / 8;
                    saved += before.bytes() - packed - of_groups;
                }
                assert!(saved > 0);
                assert_eq!(plain.memory(0).weight_bytes - found.memory(0).weight_bytes, saved as u64);
                assert_eq!(plain.step_weight_bytes() - found.step_weight_bytes(), saved as u64);
            }
        }
    }
}

/// Keys in another format than queries and values: three products of a norm of its own, into one buffer that attention reads
/// where it is. A gate in another format than what it gates: two products and what is made of them.
#[test]
fn formats_are_mixed_in_a_layer_without_copies_of_heads() {
    let (int4, int8) = (form(WeightFormat::Int4, 16, true), form(WeightFormat::Int8, 16, false));
    let of = |name: &str| match name.split('.').rev().nth(1)? {
        "k_proj" | "gate_proj" => Some(int8),
        "lm_head" => None,
        _ => Some(int4),
    };
    let plan = quantized_plan(&TinyModel::llama(), &options(Precision::Fp16, CacheKind::InPlace), &of);
    let attention = "norm linear linear linear prepare attend linear";
    let layer = format!("{attention} norm linear linear binary linear");
    assert_eq!(names(&plan), format!("embed {layer} {layer} select norm+linear"));
}

#[test]
fn an_engine_of_quantized_weights_has_every_kernel_that_its_steps_launch() {
    let model = TinyModel { hidden_size: 256, intermediate_size: 512, ..TinyModel::llama() };
    for form in FORMS {
        has_every_kernel(model.name, &|options| quantized_plan(&model, options, &|_| Some(form)));
    }
}
