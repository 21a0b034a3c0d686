//! Tiny models, from their own text to the logits that their rounded weights give.

use roundhouse_backend_conformance::Rng;
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_graph::{NodeId, Quantization};
use roundhouse_lowering::{calibrated_quantization, lower};

use super::*;
use crate::engine::options;

const TOKENS: u32 = 32;
const ATTRIBUTES: QuantizedLinearAttributes = QuantizedLinearAttributes {
    quantization: Quantization { format: WeightFormat::Int4, group_size: 16 },
    has_offsets: true,
};

/// Cancelled, or not.
struct Watch(bool);

impl Progress for Watch {
    fn is_cancelled(&self) -> bool {
        self.0
    }

    fn done(&self, parts: usize, all: usize) {
        assert!(parts > 0 && parts <= all);
    }
}

fn plain() -> EngineOptions {
    EngineOptions { all_logits: true, ..options(Precision::Fp32, CacheKind::None, TOKENS) }
}

fn text() -> Text {
    Text { sequences: 24, tokens: TOKENS, first: 1 }
}

fn is_product(graph: &Graph) -> impl Fn(NodeId) -> bool + '_ {
    |id| graph.node(id).op == Op::Linear
}

#[test]
fn stages_one_after_the_other_are_the_whole_model() {
    let directory = tempfile::tempdir().unwrap();
    let engines = Engines::new(directory.path(), &Watch(false));
    for model in [TinyModel::llama(), TinyModel::gemma2()] {
        let weights = model.weights().unwrap();
        let graph = lower(model.graph().unwrap(), &plain()).unwrap().0;
        let stages = stages(&graph, is_product(&graph));
        // Two a layer, and the output layer's.
        assert_eq!(stages.len(), 2 * model.num_hidden_layers + 1, "{}", model.name);
        let tokens = Rng::new(7).tokens(TOKENS as usize, model.vocab_size);
        let mut source = Overlay { source: &weights, tables: BTreeMap::new() };
        let (mut ids, mut found, mut rows) = (tokens.clone(), Vec::new(), 0);
        for stage in &stages {
            let Some(exit) = stage.exit else { break };
            let part = stage.graph(&graph, &[exit], rows, &[]).unwrap();
            found = engines.load(part, &plain(), &source).unwrap().run(&ids).unwrap();
            let columns = found.len() / tokens.len();
            source.tables.insert(HIDDEN_STATES.to_owned(), Table { columns, numbers: found.clone() });
            (ids, rows) = ((0..TOKENS).collect(), tokens.len());
        }
        let last = stages[stages.len() - 1].entry.unwrap();
        let whole = Stage { entry: None, exit: None, products: Vec::new() };
        let whole = whole.graph(&graph, &[last], 0, &[]).unwrap();
        let expected = engines.load(whole, &plain(), &weights).unwrap().run(&tokens).unwrap();
        assert!(found == expected, "{}", model.name);
    }
}

#[test]
fn a_calibrated_model_is_nearer_to_its_own_logits() {
    let directory = tempfile::tempdir().unwrap();
    let watch = Watch(false);
    let engines = Engines::new(directory.path(), &watch);
    for model in [TinyModel::llama(), TinyModel::gemma2()] {
        let weights = model.weights().unwrap();
        let source = model.graph().unwrap();
        let exact = lower(source.clone(), &plain()).unwrap().0;
        let rounded = calibrated_quantization(exact.clone(), ATTRIBUTES).unwrap().0;
        let targets = targets(&rounded);
        let eight = targets.iter().filter(|(_, how)| how.quantization.format == WeightFormat::Int8).count();
        // Keys, values, and what takes the activations.
        assert_eq!(eight, 3 * model.num_hidden_layers, "{}", model.name);
        let subject = Subject { graph: &source, source: &weights, targets: &targets };
        let calibrated = calibrate(subject, text(), directory.path(), &watch).unwrap();
        assert_eq!(calibrated.count(), targets.len() - eight, "{}", model.name);

        let tokens = Rng::new(11).tokens(TOKENS as usize, model.vocab_size);
        let logits = |graph: &Graph, source: &dyn WeightSource| {
            engines.load(graph.clone(), &plain(), source).unwrap().run(&tokens).unwrap()
        };
        let exact = logits(&exact, &weights);
        let lost = |found: &[f32]| -> f32 { found.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum() };
        let alone = lost(&logits(&rounded, &weights));
        let together = lost(&logits(&rounded, &calibrated.weights(&weights)));
        assert!(together < 0.9 * alone, "{}: {together} {alone}", model.name);
    }
}

#[test]
fn a_calibration_can_be_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let model = TinyModel::llama();
    let (source, weights) = (model.graph().unwrap(), model.weights().unwrap());
    let subject = Subject { graph: &source, source: &weights, targets: &[] };
    let error = calibrate(subject, text(), directory.path(), &Watch(true)).unwrap_err();
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
}
