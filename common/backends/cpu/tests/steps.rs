//! Inputs longer than one step of the executor.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

mod support;

use roundhouse_backend::LogitsRequest::{self, All, Last, None as NoLogits};
use roundhouse_backend::{Cache, Model, Runtime as _, Sequence, WeightSource};
use roundhouse_backend_conformance::Rng;
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_engine::{CacheKind, EngineOptions, Precision};
use roundhouse_graph::Graph;
use support::{Built, build, options, runtime};

const MAX_SEQ_LEN: u32 = 1400;

/// A loaded engine. The model goes before the folder whose files it has mapped.
struct Engine {
    model: Box<dyn Model>,
    _built: Built,
}

impl Engine {
    /// Lowers, builds and loads a model's graph.
    fn new(graph: Graph, weights: &dyn WeightSource, options: &EngineOptions) -> Self {
        let (graph, _) = roundhouse_lowering::lower(graph, options).unwrap();
        let built = build(graph, weights, options);
        Self { model: runtime().load(&built.files).unwrap(), _built: built }
    }

    /// An empty cache.
    fn cache(&self, capacity: usize) -> Box<dyn Cache> {
        self.model.new_cache(capacity).unwrap()
    }

    /// Appends tokens to one sequence; the logits asked for.
    fn step(&self, cache: &mut dyn Cache, tokens: &[u32], request: LogitsRequest) -> Vec<f32> {
        let mut logits = Vec::new();
        self.model.forward(&mut [Sequence { cache, tokens, request, logits: &mut logits }]).unwrap();
        logits
    }
}

fn model() -> TinyModel {
    TinyModel { max_position_embeddings: MAX_SEQ_LEN as usize, ..TinyModel::mistral() }
}

fn engine(cache: CacheKind, all_logits: bool) -> Engine {
    let options = EngineOptions { max_seq_len: MAX_SEQ_LEN, all_logits, ..options(Precision::Fp32, cache) };
    Engine::new(model().graph().unwrap(), &model().weights().unwrap(), &options)
}

/// Sums run in another order where the rows of a step are others.
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-4, "logit {at}: {found}, expected {expected}");
    }
}

/// All logits of a sequence, a few tokens a call.
fn in_small_steps(engine: &Engine, tokens: &[u32]) -> Vec<f32> {
    let mut cache = engine.cache(tokens.len());
    tokens.chunks(50).flat_map(|chunk| engine.step(&mut *cache, chunk, All)).collect()
}

#[test]
fn a_prompt_longer_than_a_step_gives_the_logits_of_its_parts() {
    for cache in [CacheKind::InPlace, CacheKind::StaticV2] {
        for all_logits in [false, true] {
            let engine = engine(cache, all_logits);
            let vocab_size = engine.model.vocab_size();
            let tokens = Rng::new(3).tokens(1300, vocab_size);
            let expected = in_small_steps(&engine, &tokens);
            let mut cache = engine.cache(tokens.len());
            assert_close(&engine.step(&mut *cache, &tokens, All), &expected);
            assert_eq!(cache.len(), tokens.len());
            let mut cache = engine.cache(tokens.len());
            assert_close(&engine.step(&mut *cache, &tokens, Last), &expected[1299 * vocab_size..]);
        }
    }
}

#[test]
fn long_and_short_sequences_mix_in_one_call() {
    let engine = engine(CacheKind::InPlace, false);
    let vocab_size = engine.model.vocab_size();
    let mut rng = Rng::new(4);
    let cases: [(usize, usize, LogitsRequest); 6] =
        [(0, 700, Last), (30, 1, Last), (0, 130, All), (5, 900, NoLogits), (200, 1, All), (0, 3, All)];
    let prompts = cases.map(|(past, new, _)| rng.tokens(past + new, vocab_size));
    let mut caches = cases.map(|_| engine.cache(MAX_SEQ_LEN as usize));
    for ((past, ..), (prompt, cache)) in cases.iter().zip(prompts.iter().zip(&mut caches)) {
        if *past > 0 {
            engine.step(&mut **cache, &prompt[..*past], NoLogits);
        }
    }
    let mut logits = cases.map(|_| vec![f32::NAN]);
    let mut batch: Vec<Sequence<'_>> = cases
        .iter()
        .zip(&prompts)
        .zip(caches.iter_mut().zip(&mut logits))
        .map(|(((past, _, request), prompt), (cache, logits))| Sequence {
            cache: &mut **cache,
            tokens: &prompt[*past..],
            request: *request,
            logits,
        })
        .collect();
    engine.model.forward(&mut batch).unwrap();

    for ((_, new, request), (prompt, logits)) in cases.iter().zip(prompts.iter().zip(&logits)) {
        let expected = in_small_steps(&engine, prompt);
        let rows = match request {
            NoLogits => 0,
            Last => 1,
            All => *new,
        };
        assert_close(logits, &expected[expected.len() - rows * vocab_size..]);
    }
}

#[test]
fn caches_take_the_bytes_that_the_memory_plan_says() {
    for precision in [Precision::Fp32, Precision::Bf16] {
        for cache in CacheKind::ALL {
            let options = options(precision, *cache);
            let engine = Engine::new(model().graph().unwrap(), &model().weights().unwrap(), &options);
            let per_token = engine.model.memory_plan().kv_bytes_per_token;
            let capacity = options.max_seq_len as usize;
            assert_eq!(engine.cache(capacity).bytes(), per_token * capacity as u64, "{precision} {cache}");
        }
    }
}

#[test]
fn the_largest_step_stays_within_the_planned_workspace() {
    for cache in CacheKind::ALL {
        let engine = engine(*cache, false);
        let planned = engine.model.memory_plan().workspace_bytes;
        let tokens = Rng::new(5).tokens(MAX_SEQ_LEN as usize, engine.model.vocab_size());
        engine.step(&mut *engine.cache(tokens.len()), &tokens, Last);
        assert_eq!(engine.model.memory_plan().workspace_bytes, planned, "{cache}");
    }
}
