//! Graphs, their inputs, and what both interpreters make of them.

use std::collections::BTreeMap;

use roundhouse_backend::{WeightSource, evaluate_rows};
use roundhouse_backend_conformance::suite::MAX_SEQ_LEN;
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_backend_conformance::{Interpreter, Rng, Rounding, Tensor, round_to};
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapabilities, EngineOptions, Precision, WeightQuantization,
};
use roundhouse_graph::Graph;
use roundhouse_tensorrt_converters::{Converted, coverage};
use roundhouse_tensorrt_interpreter::InterpreterError;
use roundhouse_tensorrt_network::Network;

/// Inputs by name.
pub(crate) type Inputs = Vec<(String, Tensor)>;
/// Outputs by name; an input that is changed in place as `{name}_out`.
pub(crate) type Outputs = BTreeMap<String, Tensor>;

pub(crate) fn options(precision: Precision, cache: CacheKind) -> EngineOptions {
    EngineOptions {
        precision,
        cache,
        backend: BackendKind::TensorRt,
        max_seq_len: MAX_SEQ_LEN,
        max_batch_size: 4,
        all_logits: false,
        targets: ComputeCapabilities::NONE,
        quantization: WeightQuantization::None,
        tensorrt: None,
    }
}

pub(crate) fn lowered(model: &TinyModel, options: &EngineOptions) -> Graph {
    lower(model.graph().unwrap(), options)
}

pub(crate) fn lower(graph: Graph, options: &EngineOptions) -> Graph {
    roundhouse_lowering::lower(graph, options).unwrap().0
}

pub(crate) fn lowered_llama(options: &EngineOptions) -> Graph {
    lowered(&TinyModel::llama(), options)
}

#[track_caller]
pub(crate) fn convert(graph: &Graph, options: &EngineOptions) -> Converted {
    roundhouse_tensorrt_converters::convert(graph, options)
        .unwrap_or_else(|error| panic!("{} {}: {error}", graph.name, options.cache))
}

#[track_caller]
pub(crate) fn coverage_is_full(graph: &Graph, options: &EngineOptions) {
    assert_eq!(coverage(graph, options), []);
}

/// Uniform in ±1.
pub(crate) fn random(rng: &mut Rng, shape: &[usize]) -> Tensor {
    Tensor::float(shape, rng.uniform_vec(shape.iter().product(), 0.0, 1.0))
}

/// A step of a model: how many tokens each sequence has in its cache and gets. Sequences with fewer new ones than others
/// are padded on the right.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) past: Vec<usize>,
    pub(crate) new: Vec<usize>,
}

impl Step {
    pub(crate) fn new(past: &[usize], new: &[usize]) -> Self {
        Self { past: past.to_vec(), new: new.to_vec() }
    }

    /// The inputs of a lowered graph for this step, with `caches` where it has some, and random tokens.
    pub(crate) fn inputs(&self, graph: &Graph, vocab_size: usize, caches: &Outputs, rng: &mut Rng) -> Inputs {
        let batch = self.past.len();
        let seq = self.new.iter().copied().max().unwrap_or(0);
        let each = |number: &dyn Fn(usize) -> usize| {
            Tensor::int(&[batch], (0..batch).map(|b| number(b) as i64).collect())
        };
        let scalar = |number: usize| Tensor::int(&[], vec![number as i64]);
        let inputs = graph.inputs().iter().map(|&id| {
            let name = graph.value(id).name.clone();
            let tensor = match name.as_str() {
                "input_ids" => {
                    let tokens = (0..batch * seq).map(|_| rng.below(vocab_size) as i64);
                    Tensor::int(&[batch, seq], tokens.collect())
                }
                "position_ids" => {
                    let positions =
                        self.past.iter().flat_map(|past| (0..seq).map(move |s| (past + s) as i64));
                    Tensor::int(&[batch, seq], positions.collect())
                }
                "write_indices" => each(&|b| self.past[b]),
                "kv_lengths" => each(&|b| self.past[b] + seq),
                "query_lengths" => each(&|b| self.new[b]),
                "start_idx" => scalar(self.past[0]),
                "end_idx" => scalar(self.past[0] + seq),
                cache => caches[&format!("{cache}_out")].clone(),
            };
            (name, tensor)
        });
        inputs.collect()
    }
}

/// Caches full of random numbers of the graph's dtype, under the names of outputs.
pub(crate) fn random_caches(graph: &Graph, batch: usize, rng: &mut Rng) -> Outputs {
    let values = graph.inputs().iter().map(|&id| graph.value(id));
    let caches = values.filter(|value| value.name.contains("_cache_"));
    let caches = caches.map(|value| {
        let mut shape: Vec<usize> =
            value.shape.iter().map(|dim| dim.as_constant().unwrap_or(0) as usize).collect();
        shape[0] = batch;
        let numbers = random(rng, &shape).floats().iter().map(|&x| round_to(value.dtype, x)).collect();
        (format!("{}_out", value.name), Tensor::float(&shape, numbers))
    });
    caches.collect()
}

/// What a graph computes, nothing but weights rounded.
pub(crate) fn run_graph(interpreter: &Interpreter, inputs: &Inputs) -> Outputs {
    let graph = interpreter.graph();
    let given = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.clone()));
    let outputs = interpreter.run(given).unwrap();
    let rename = |name: String| {
        if graph.outputs().iter().any(|&id| graph.value(id).name == name) {
            name
        } else {
            format!("{name}_out")
        }
    };
    outputs.into_iter().map(|(name, tensor)| (rename(name), tensor)).collect()
}

pub(crate) fn interpreter(graph: &Graph, weights: &dyn WeightSource) -> Interpreter {
    Interpreter::new(graph, weights).unwrap()
}

/// Runs a network.
pub(crate) struct Runner {
    interpreter: roundhouse_tensorrt_interpreter::Interpreter,
}

impl Runner {
    /// A network with the weights that a graph's recipes make of a checkpoint.
    pub(crate) fn new(
        network: &Network,
        graph: &Graph,
        weights: &dyn WeightSource,
        rounding: Rounding,
    ) -> Result<Self, InterpreterError> {
        let weight = |name: &str| {
            let (_, value, expr) = graph.weights().find(|(_, value, _)| value.name == name)?;
            let sizes: Vec<u64> =
                value.shape.iter().map(|dim| dim.as_constant().unwrap_or(0) as u64).collect();
            let mut numbers = vec![0.0; sizes.iter().product::<u64>() as usize];
            let rows = sizes.first().copied().unwrap_or(1);
            evaluate_rows(weights, expr, 0..rows, &mut numbers).unwrap();
            Some(numbers)
        };
        let interpreter = roundhouse_tensorrt_interpreter::Interpreter::new(network, rounding, weight)?;
        Ok(Self { interpreter })
    }

    pub(crate) fn run(&self, inputs: &Inputs) -> Result<Outputs, InterpreterError> {
        self.interpreter.run(inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())))
    }
}

/// How far two sets of outputs are apart at most, relative to the largest number of the output; infinite where a number
/// is no number or shapes differ.
pub(crate) fn distance(found: &Outputs, expected: &Outputs) -> (f32, String) {
    let names = |outputs: &Outputs| outputs.keys().cloned().collect::<Vec<_>>();
    if names(found) != names(expected) {
        return (f32::INFINITY, format!("outputs {:?} and {:?}", names(found), names(expected)));
    }
    let mut worst = (0.0, String::new());
    for (name, expected) in expected {
        let found = &found[name];
        if found.shape != expected.shape {
            return (f32::INFINITY, format!("{name} {:?} and {:?}", found.shape, expected.shape));
        }
        if found.ints() != expected.ints() {
            return (f32::INFINITY, format!("{name} {:?} and {:?}", found.ints(), expected.ints()));
        }
        let largest = expected.floats().iter().fold(1.0_f32, |largest, x| largest.max(x.abs()));
        for (at, (a, b)) in found.floats().iter().zip(expected.floats()).enumerate() {
            let difference = (a - b).abs() / largest;
            let difference = if difference.is_nan() { f32::INFINITY } else { difference };
            if difference > worst.0 {
                worst = (difference, format!("{name}[{at}] {a} and {b}"));
            }
        }
    }
    worst
}

/// The network of a graph computes what the graph does.
#[track_caller]
pub(crate) fn close(
    case: &str,
    graph: &Graph,
    weights: &dyn WeightSource,
    options: &EngineOptions,
    inputs: &Inputs,
    tolerance: f32,
) {
    close_rounded(case, Rounding::Weights, graph, weights, options, inputs, tolerance);
}

/// As [`close`], with both rounding alike.
#[track_caller]
pub(crate) fn close_rounded(
    case: &str,
    rounding: Rounding,
    graph: &Graph,
    weights: &dyn WeightSource,
    options: &EngineOptions,
    inputs: &Inputs,
    tolerance: f32,
) {
    let network = convert(graph, options).network;
    let expected = run_graph(&interpreter(graph, weights).with_rounding(rounding), inputs);
    let runner = Runner::new(&network, graph, weights, rounding).unwrap();
    let found = runner.run(inputs).unwrap_or_else(|error| panic!("{case}: {error}"));
    let (distance, at) = distance(&found, &expected);
    assert!(distance <= tolerance, "{case}: {at}, off by {distance:e}");
}
