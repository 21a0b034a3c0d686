//! Tiny models, the engines' options, and generation step by step through the reference interpreter.

#![expect(dead_code, reason = "each test binary uses a part")]

#[path = "../../../models/tests/support/mod.rs"]
mod checkpoints;

use std::collections::BTreeMap;

pub(crate) use checkpoints::difference;

use roundhouse_backend_conformance::{Interpreter, MemoryWeights, Rng, Tensor};
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapabilities, EngineOptions, Precision, WeightQuantization,
};
use roundhouse_graph::{Graph, Op, PassReport, Rewriter, ValueId};
use roundhouse_models::build_graph;
use serde_json::json;

/// Length of the caches.
pub(crate) const MAX_SEQ_LEN: usize = 24;

/// A model with the checkpoint it came from.
pub(crate) struct Model {
    pub(crate) graph: Graph,
    pub(crate) weights: MemoryWeights,
}

/// Two layers of Llama, four query heads over two key heads.
pub(crate) fn tiny_llama() -> Model {
    model("llama32_grouped_tied", 2)
}

/// The first `layers` layers of a golden checkpoint.
pub(crate) fn model(name: &str, layers: u32) -> Model {
    let mut golden = checkpoints::Golden::named(name);
    golden.config["num_hidden_layers"] = json!(layers);
    golden.tensors.retain(|name, _| {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        layer.is_none_or(|layer| layer.parse::<u32>().unwrap() < layers)
    });
    let weights = golden.weights();
    let graph = build_graph("tiny", &golden.config, &weights, MAX_SEQ_LEN as u32).unwrap().graph;
    Model { graph, weights }
}

/// The model with a sliding window in every attention.
pub(crate) fn with_window(model: Model, window: u32) -> Model {
    let mut rewriter = Rewriter::new(model.graph);
    for id in rewriter.nodes_where(|node| matches!(node.op, Op::ScaledDotProductAttention(_))) {
        let Op::ScaledDotProductAttention(mut attributes) = rewriter.node(id).op.clone() else {
            unreachable!()
        };
        attributes.window = Some(window);
        rewriter.set_op(id, Op::ScaledDotProductAttention(attributes)).unwrap();
    }
    Model { graph: rewriter.finish().unwrap(), weights: model.weights }
}

/// fp32, last logits only.
pub(crate) fn options(cache: CacheKind) -> EngineOptions {
    EngineOptions {
        precision: Precision::Fp32,
        cache,
        backend: BackendKind::Cpu,
        max_seq_len: u32::try_from(MAX_SEQ_LEN).unwrap(),
        max_batch_size: 4,
        all_logits: false,
        targets: ComputeCapabilities::NONE,
        quantization: WeightQuantization::None,
        tensorrt: None,
    }
}

/// `count` tokens of the tiny models' vocabulary.
pub(crate) fn tokens(seed: u64, count: usize) -> Vec<i64> {
    Rng::new(seed).tokens(count, 48).into_iter().map(i64::from).collect()
}

/// Integers as a tensor.
pub(crate) fn ints(shape: &[usize], values: impl IntoIterator<Item = usize>) -> Tensor {
    Tensor::int(shape, values.into_iter().map(|value| i64::try_from(value).unwrap()).collect())
}

/// Logits of every position, a row each, that a model's own graph computes for a whole sequence.
pub(crate) fn reference(model: &Model, tokens: &[i64]) -> Vec<Vec<f32>> {
    let seq = tokens.len();
    let interpreter = Interpreter::new(&model.graph, &model.weights).unwrap();
    let inputs =
        [("input_ids", Tensor::int(&[1, seq], tokens.to_vec())), ("position_ids", ints(&[1, seq], 0..seq))];
    rows(&interpreter.run(inputs).unwrap()["logits"])
}

/// The rows of `[…, columns]`.
pub(crate) fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.floats().chunks(*tensor.shape.last().unwrap()).map(<[f32]>::to_vec).collect()
}

/// Asserts that logits agree: the same fp32 values in another order of operations.
pub(crate) fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    let difference = difference(found, expected);
    assert!(difference < 1e-5, "{what}: {difference}");
}

/// The counts of the report of a pass.
pub(crate) fn counts<'a>(reports: &'a [PassReport], pass: &str) -> BTreeMap<&'a str, u64> {
    let report = reports.iter().find(|report| report.pass == pass).unwrap();
    report.counts.iter().map(|(name, &count)| (name.as_str(), count)).collect()
}

/// Names of values, in order.
pub(crate) fn names(graph: &Graph, ids: &[ValueId]) -> Vec<String> {
    ids.iter().map(|&id| graph.value(id).name.clone()).collect()
}

/// What the cache inputs of a lowered graph are after a step, by input: the name of the output that holds it.
pub(crate) type CacheOutputs = BTreeMap<String, String>;

/// Makes the updated caches of an in-place graph outputs, so that a test can carry them to the next step.
pub(crate) fn expose_caches(graph: Graph) -> (Graph, CacheOutputs) {
    let mut rewriter = Rewriter::new(graph);
    let mut outputs = CacheOutputs::new();
    for id in rewriter.nodes_where(|node| matches!(node.op, Op::KvCacheUpdate)) {
        let node = rewriter.node(id).clone();
        let cache = rewriter.value(node.inputs[0]).name.clone();
        let name = format!("{cache}_out");
        rewriter.add_output(&name, node.output).unwrap();
        outputs.insert(cache, name);
    }
    (rewriter.finish().unwrap(), outputs)
}

/// A lowered graph with caches, run step by step.
pub(crate) struct Stepper {
    interpreter: Interpreter,
    caches: BTreeMap<String, Tensor>,
    outputs: CacheOutputs,
}

impl Stepper {
    /// With caches of zeros for `batch` sequences.
    pub(crate) fn new(graph: &Graph, weights: &MemoryWeights, outputs: CacheOutputs, batch: usize) -> Self {
        let zeros = |name: &String| {
            let value = graph.value(graph.find(name).unwrap());
            let size = |dim: &roundhouse_graph::Dim| dim.as_constant().map_or(batch, |dim| dim as usize);
            let shape: Vec<usize> = value.shape.iter().map(size).collect();
            (name.clone(), Tensor::zeros(&shape))
        };
        let caches = outputs.keys().map(zeros).collect();
        Self { interpreter: Interpreter::new(graph, weights).unwrap(), caches, outputs }
    }

    /// Runs a step and keeps its caches; its logits, a row each.
    pub(crate) fn step(&mut self, inputs: Vec<(&str, Tensor)>) -> Vec<Vec<f32>> {
        let caches = self.caches.iter().map(|(name, cache)| (name.as_str(), cache.clone()));
        let mut results = self.interpreter.run(inputs.into_iter().chain(caches)).unwrap();
        let logits = rows(&results["logits"]);
        for (input, output) in &self.outputs {
            self.caches.insert(input.clone(), results.remove(output).unwrap());
        }
        logits
    }

    /// A cache as it is.
    pub(crate) fn cache(&self, name: &str) -> &Tensor {
        &self.caches[name]
    }
}

/// Runs the pass of this name alone.
pub(crate) fn run_pass(name: &str, graph: Graph) -> (Graph, BTreeMap<String, u64>) {
    let pass = roundhouse_lowering::PASSES.iter().find(|pass| pass.name == name).unwrap();
    let (graph, report) = (pass.run)(graph, &options(CacheKind::None)).unwrap();
    assert_eq!(report.pass, name);
    (graph, report.counts)
}

/// What a graph without checkpoint tensors computes of these inputs.
pub(crate) fn run(graph: &Graph, inputs: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
    let interpreter = Interpreter::new(graph, &MemoryWeights::new()).unwrap();
    interpreter.run(inputs.iter().map(|(name, tensor)| (*name, tensor.clone()))).unwrap()
}

/// The names of a graph's ops, in execution order.
pub(crate) fn ops(graph: &Graph) -> Vec<&'static str> {
    graph.nodes().map(|(_, node)| node.op.name()).collect()
}
