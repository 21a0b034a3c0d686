//! Whole models: every cache kind, precision and attention form, prompts and decode steps.

use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_backend_conformance::{Interpreter, MemoryWeights, Rng, RoundedWeights, Rounding};
use roundhouse_engine::{AttentionForm, CacheKind, EngineOptions, Precision, TensorRtOptions};
use roundhouse_graph::Graph;
use roundhouse_tensorrt_network::Network;

use crate::support::{
    Outputs, Runner, Step, convert, coverage_is_full, distance, interpreter, lowered, options, random_caches,
    run_graph,
};

/// Steps of one run: prompts of one sequence and of several, ragged where the cache allows, and decode.
fn steps(cache: CacheKind) -> Vec<Step> {
    match cache {
        CacheKind::None => {
            vec![Step::new(&[0], &[1]), Step::new(&[0, 0], &[5, 5]), Step::new(&[0; 3], &[17; 3])]
        }
        // Every sequence of a batch is at the same place.
        CacheKind::StaticV1 | CacheKind::StaticV2 => vec![
            Step::new(&[0; 2], &[7; 2]),
            Step::new(&[7; 2], &[1; 2]),
            Step::new(&[8; 2], &[4; 2]),
            Step::new(&[12; 2], &[28; 2]),
            Step::new(&[39; 2], &[1; 2]),
        ],
        CacheKind::InPlace => vec![
            Step::new(&[0; 3], &[7, 2, 5]),
            Step::new(&[7, 2, 5], &[1; 3]),
            Step::new(&[8, 3, 6], &[3, 1, 2]),
            Step::new(&[11, 4, 8], &[1; 3]),
            Step::new(&[39, 0, 20], &[1; 3]),
        ],
    }
}

/// A model's graph and network, and what runs them.
struct Pair {
    case: String,
    graph: Graph,
    network: Network,
    reference: Interpreter,
    options: EngineOptions,
    weights: MemoryWeights,
    vocab_size: usize,
}

impl Pair {
    fn new(model: &TinyModel, options: EngineOptions) -> Self {
        let graph = lowered(model, &options);
        coverage_is_full(&graph, &options);
        let weights = model.weights().unwrap();
        let rounded = RoundedWeights::new(&weights, options.precision.dtype());
        let reference = interpreter(&graph, &rounded);
        let network = convert(&graph, &options).network;
        let tensorrt = options.tensorrt.unwrap_or_default();
        let (precision, cache) = (options.precision, options.cache);
        let case = format!("{} {precision} {cache} {}", model.name, tensorrt.attention);
        Self { case, graph, network, reference, options, weights, vocab_size: model.vocab_size }
    }

    /// Runs the steps on both, each on the caches that the graph's last step left; the first on random ones.
    #[track_caller]
    fn check(&self, rounding: Rounding, tolerance: f32) {
        let runner = Runner::new(&self.network, &self.graph, &self.weights, rounding).unwrap();
        let mut rng = Rng::new(21);
        let mut caches: Option<Outputs> = None;
        for step in steps(self.options.cache) {
            let batch = step.past.len();
            // What is in a cache beyond a sequence's length must not matter, so it is not zero.
            let before = caches.take().unwrap_or_else(|| random_caches(&self.graph, batch, &mut rng));
            let inputs = step.inputs(&self.graph, self.vocab_size, &before, &mut rng);
            let expected = run_graph(&self.reference, &inputs);
            let found = runner.run(&inputs).unwrap_or_else(|error| panic!("{} {step:?}: {error}", self.case));
            let (distance, at) = distance(&found, &expected);
            assert!(distance <= tolerance, "{} {step:?}: {at}, off by {distance:e}", self.case);
            caches = Some(expected);
        }
    }
}

fn with(options: EngineOptions, attention: AttentionForm, fp32_accumulation: bool) -> EngineOptions {
    let tensorrt = TensorRtOptions { attention, fp32_accumulation, ..TensorRtOptions::default() };
    EngineOptions { tensorrt: Some(tensorrt), ..options }
}

fn forms(model: &TinyModel) -> &'static [AttentionForm] {
    match model.attention_soft_cap {
        Some(_) => &[AttentionForm::Decomposed],
        None => &[AttentionForm::Decomposed, AttentionForm::Fused],
    }
}

/// Every model, cache kind and form of a precision.
#[track_caller]
fn each(precision: Precision, check: impl Fn(&Pair)) {
    for model in TinyModel::all() {
        for &cache in CacheKind::ALL {
            for &form in forms(&model) {
                check(&Pair::new(&model, with(options(precision, cache), form, true)));
            }
        }
    }
}

#[test]
fn fp32_networks_compute_what_their_graphs_do() {
    each(Precision::Fp32, |pair| pair.check(Rounding::Weights, 1e-5));
}

#[test]
fn all_logits_are_those_of_the_graph() {
    for &cache in CacheKind::ALL {
        let options = EngineOptions { all_logits: true, ..options(Precision::Fp32, cache) };
        Pair::new(&TinyModel::llama(), options).check(Rounding::Weights, 1e-5);
    }
}

/// Without rounding of what is stored, a half-precision network is held to the same tolerance: casts change nothing but
/// dtypes.
#[test]
fn half_precision_networks_compute_what_their_graphs_do() {
    each(Precision::Fp16, |pair| pair.check(Rounding::Weights, 1e-5));
    each(Precision::Bf16, |pair| pair.check(Rounding::Weights, 1e-5));
}

#[test]
fn products_in_half_precision_compute_what_their_graphs_do() {
    for &cache in CacheKind::ALL {
        for form in [AttentionForm::Decomposed, AttentionForm::Fused] {
            let options = with(options(Precision::Fp16, cache), form, false);
            Pair::new(&TinyModel::qwen2(), options).check(Rounding::Weights, 1e-5);
        }
    }
}

/// Every value rounded when it is stored: some 30 values one after another, each off by at most half the spacing of
/// numbers near 1, as the backends' conformance suite has it.
#[test]
fn rounding_stays_within_the_precision() {
    each(Precision::Fp16, |pair| pair.check(Rounding::Stored, 16.0 / 2048.0));
    each(Precision::Bf16, |pair| pair.check(Rounding::Stored, 16.0 / 256.0));
}

/// Accumulating in fp32 is not more wrong than the graph itself, which rounds only what it stores.
#[test]
fn fp32_accumulation_rounds_as_little_as_the_graph_does() {
    for &cache in CacheKind::ALL {
        let pair = Pair::new(&TinyModel::llama(), options(Precision::Fp16, cache));
        let mut rng = Rng::new(4);
        let step = steps(cache).remove(0);
        let caches = random_caches(&pair.graph, step.past.len(), &mut rng);
        let inputs = step.inputs(&pair.graph, pair.vocab_size, &caches, &mut rng);
        let exact = run_graph(&pair.reference, &inputs);
        let weights = RoundedWeights::new(&pair.weights, pair.options.precision.dtype());
        let rounding = interpreter(&pair.graph, &weights).with_rounding(Rounding::Stored);
        let (ideal, _) = distance(&run_graph(&rounding, &inputs), &exact);
        let runner = Runner::new(&pair.network, &pair.graph, &pair.weights, Rounding::Stored).unwrap();
        let (found, at) = distance(&runner.run(&inputs).unwrap(), &exact);
        // The network rounds the scaled query and the rotary tables, too.
        assert!(found <= 2.0 * ideal, "{}: {at}, off by {found:e}, the graph itself by {ideal:e}", pair.case);
    }
}
