//! Every op in every form of the conformance suite.

use roundhouse_backend_conformance::suite::{OpCase, op_cases};
use roundhouse_backend_conformance::{Rng, RoundedWeights, Rounding};
use roundhouse_engine::{AttentionForm, CacheKind, EngineOptions, Precision, TensorRtOptions};
use roundhouse_graph::Op;

use roundhouse_tensorrt_converters::UNSUPPORTED_OPS;

use crate::support::{
    Outputs, Runner, Step, convert, coverage_is_full, distance, interpreter, lower, options, run_graph,
};

pub(crate) fn has_soft_cap(case: &OpCase) -> bool {
    let is_capped = |op: &Op| matches!(op, Op::ScaledDotProductAttention(a) if a.soft_cap.is_some());
    case.source.graph.nodes().any(|(_, node)| is_capped(&node.op))
}

/// Whether the mask hides everything from a token: the second token of each sequence is 0.
pub(crate) fn step_inputs(
    step: &Step,
    graph: &roundhouse_graph::Graph,
    rng: &mut Rng,
) -> crate::support::Inputs {
    let mut inputs = step.inputs(graph, 33, &Outputs::new(), rng);
    for (name, tensor) in &mut inputs {
        if name == "input_ids" {
            let seq = tensor.shape[1];
            let ids = tensor.ints().iter().enumerate();
            let ids = ids.map(|(at, &id)| if at % seq == 1 { 0 } else { id }).collect();
            *tensor = roundhouse_backend_conformance::Tensor::int(&tensor.shape, ids);
        }
    }
    inputs
}

fn check(precision: Precision, rounding: Rounding, tolerance: f32) {
    for case in op_cases(precision.dtype()).unwrap() {
        if UNSUPPORTED_OPS.contains(&case.name) {
            continue;
        }
        if case.name == "cast" && rounding == Rounding::Weights && precision != Precision::Fp32 {
            // To the graph's interpreter a cast is the rounding itself; to the network's it is one of storing.
            continue;
        }
        for attention in [AttentionForm::Decomposed, AttentionForm::Fused] {
            if attention == AttentionForm::Fused && has_soft_cap(&case) {
                continue;
            }
            let tensorrt = TensorRtOptions { attention, ..TensorRtOptions::default() };
            let options = options(precision, CacheKind::None);
            let options = EngineOptions { all_logits: !case.last_token, tensorrt: Some(tensorrt), ..options };
            let graph = lower(case.source.graph.clone(), &options);
            coverage_is_full(&graph, &options);
            let network = convert(&graph, &options).network;
            let weights = RoundedWeights::new(&case.source.weights, precision.dtype());
            let reference = interpreter(&graph, &weights);
            let runner = Runner::new(&network, &graph, &case.source.weights, rounding).unwrap();
            let mut rng = Rng::new(5);
            for step in [
                Step::new(&[0], &[1]),
                Step::new(&[3], &[2]),
                Step::new(&[0, 4], &[5, 5]),
                Step::new(&[0, 7, 2], &[7, 7, 7]),
            ] {
                let inputs = step_inputs(&step, &graph, &mut rng);
                let expected = run_graph(&reference, &inputs);
                let name = format!("{} {precision} {attention} {step:?}", case.name);
                let found = runner.run(&inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
                let (distance, at) = distance(&found, &expected);
                assert!(distance <= tolerance, "{name}: {at}, off by {distance:e}");
            }
        }
    }
}

#[test]
fn every_op_in_fp32() {
    check(Precision::Fp32, Rounding::Weights, 1e-5);
}

#[test]
fn every_op_in_half_precision() {
    check(Precision::Fp16, Rounding::Weights, 1e-5);
    check(Precision::Bf16, Rounding::Weights, 1e-5);
}

#[test]
fn every_op_rounded_when_it_stores() {
    check(Precision::Fp16, Rounding::Stored, 16.0 / 2048.0);
    check(Precision::Bf16, Rounding::Stored, 16.0 / 256.0);
}
