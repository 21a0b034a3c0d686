//! Caches of layers with a sliding window hold only what the window can still see.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

mod support;

use roundhouse_backend::LogitsRequest::{self, Last, None as NoLogits};
use roundhouse_backend::{Cache, Model, Runtime as _, Sequence};
use roundhouse_backend_conformance::Rng;
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_engine::{CacheKind, EngineOptions, Precision};
use support::{Built, build, options, runtime};

const MAX_SEQ_LEN: usize = 6000;
/// Of every other layer of the model, the first included.
const WINDOW: usize = 5;
/// New tokens of a step.
const CHUNK: usize = 512;
const ROWS: usize = WINDOW + CHUNK - 1;

/// A loaded engine. The model goes before the folder whose files it has mapped.
struct Engine {
    model: Box<dyn Model>,
    _built: Built,
}

fn engine(layers: usize, precision: Precision, cache: CacheKind) -> Engine {
    let model =
        TinyModel { num_hidden_layers: layers, max_position_embeddings: MAX_SEQ_LEN, ..TinyModel::mistral() };
    let options = EngineOptions { max_seq_len: MAX_SEQ_LEN as u32, ..options(precision, cache) };
    let (graph, _) = roundhouse_lowering::lower(model.graph().unwrap(), &options).unwrap();
    let built = build(graph, &model.weights().unwrap(), &options);
    Engine { model: runtime().load(&built.files).unwrap(), _built: built }
}

impl Engine {
    fn cache(&self) -> Box<dyn Cache> {
        self.model.new_cache(MAX_SEQ_LEN).unwrap()
    }

    fn step(&self, cache: &mut dyn Cache, tokens: &[u32], request: LogitsRequest) -> Vec<f32> {
        let mut logits = Vec::new();
        self.model.forward(&mut [Sequence { cache, tokens, request, logits: &mut logits }]).unwrap();
        logits
    }

    /// The last logits of a sequence that is computed in small steps from the beginning.
    fn fresh(&self, tokens: &[u32]) -> Vec<f32> {
        let mut cache = self.cache();
        tokens.chunks(50).map(|chunk| self.step(&mut *cache, chunk, Last)).last().unwrap()
    }
}

/// Sums run in another order where the rows of a step are others.
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-4, "logit {at}: {found}, expected {expected}");
    }
}

#[test]
fn a_sliding_layers_cache_stops_growing() {
    for (precision, element) in [(Precision::Fp32, 4), (Precision::Bf16, 2)] {
        let engine = engine(2, precision, CacheKind::InPlace);
        let plan = engine.model.memory_plan();
        // Keys and values, two heads of 16 dimensions.
        let row = 2 * 2 * 16 * element;
        assert_eq!(plan.kv_bytes_per_token, 2 * row);
        for capacity in [1, 100, ROWS, ROWS + 1, MAX_SEQ_LEN] {
            let bytes = engine.model.new_cache(capacity).unwrap().bytes();
            assert_eq!(bytes, row * (capacity + capacity.min(ROWS)) as u64, "{precision} {capacity}");
            assert_eq!(bytes, plan.kv_bytes(capacity as u64), "{precision} {capacity}");
        }
    }
}

#[test]
fn a_sequence_many_times_as_long_as_its_ring_takes_no_more_memory() {
    let engine = engine(1, Precision::Fp32, CacheKind::InPlace);
    let reference = engine_without_cache();
    let tokens = Rng::new(31).tokens(MAX_SEQ_LEN, engine.model.vocab_size());
    let mut cache = engine.cache();
    let bytes = 2 * 2 * 16 * 4 * ROWS as u64;
    assert_eq!(cache.bytes(), bytes);
    // Through the ring's end in steps of many tokens, of few and of one.
    let mut done = 0;
    for size in [3000, 517, 511, 1, 1, 700, 64, 3, 1, 1100, 1, 1] {
        let logits = engine.step(&mut *cache, &tokens[done..done + size], Last);
        done += size;
        // What the only layer sees, the reference sees too.
        let seen = &tokens[done - WINDOW..done];
        let expected = reference.step(&mut *reference.cache(), seen, Last);
        // Rotations by larger angles round differently.
        assert_eq!(logits.len(), expected.len());
        for (found, expected) in logits.iter().zip(&expected) {
            assert!((found - expected).abs() < 2e-3, "after {done}: {found}, expected {expected}");
        }
    }
    assert_eq!((cache.len(), cache.bytes()), (done, bytes));
}

fn engine_without_cache() -> Engine {
    engine(1, Precision::Fp32, CacheKind::None)
}

#[test]
fn a_ring_gives_what_a_cache_of_all_positions_gives() {
    let (ring, full) =
        (engine(2, Precision::Fp32, CacheKind::InPlace), engine(2, Precision::Fp32, CacheKind::StaticV2));
    let tokens = Rng::new(32).tokens(1500, ring.model.vocab_size());
    let (mut a, mut b) = (ring.cache(), full.cache());
    let mut done = 0;
    for size in [1201, 1, 1, 297] {
        let part = &tokens[done..done + size];
        assert_close(&ring.step(&mut *a, part, Last), &full.step(&mut *b, part, Last));
        done += size;
    }
}

#[test]
fn a_cut_within_the_ring_is_kept_and_one_beyond_it_says_that_nothing_is() {
    let engine = engine(2, Precision::Fp32, CacheKind::InPlace);
    let tokens = Rng::new(33).tokens(1200, engine.model.vocab_size());
    let next = Rng::new(34).tokens(3, engine.model.vocab_size());
    for (len, reached) in [(5000, 1200), (1199, 1199), (688, 688), (687, 0), (1, 0), (0, 0)] {
        let mut cache = engine.cache();
        engine.step(&mut *cache, &tokens, NoLogits);
        assert_eq!(cache.truncate(len), reached, "to {len}");
        assert_eq!((cache.len(), cache.is_empty()), (reached, reached == 0), "to {len}");
        if reached > 0 {
            let whole = [&tokens[..reached], &next].concat();
            assert_close(&engine.step(&mut *cache, &next, Last), &engine.fresh(&whole));
            // What was cut off counts as written: its rows are lost.
            assert_eq!(cache.truncate(687), 0);
        }
        // Empty, it is as new.
        cache.truncate(0);
        assert_close(&engine.step(&mut *cache, &tokens[..700], Last), &engine.fresh(&tokens[..700]));
        assert_eq!(cache.truncate(188), 188);
    }
    let full = self::engine(2, Precision::Fp32, CacheKind::StaticV2);
    let mut cache = full.cache();
    full.step(&mut *cache, &tokens, NoLogits);
    assert_eq!(cache.truncate(3), 3, "a cache of all positions keeps every prefix");
}

#[test]
fn more_sequences_than_tokens_of_a_step_do_not_lengthen_the_pieces_of_one() {
    let engine = engine(2, Precision::Fp32, CacheKind::InPlace);
    let tokens = Rng::new(35).tokens(1100, engine.model.vocab_size());
    let mut long = engine.cache();
    let mut short: Vec<_> = (0..700).map(|_| engine.model.new_cache(1).unwrap()).collect();
    let (mut logits, mut others) = (Vec::new(), vec![Vec::new(); short.len()]);
    let mut batch = vec![Sequence { cache: &mut *long, tokens: &tokens, request: Last, logits: &mut logits }];
    batch.extend(short.iter_mut().zip(&mut others).map(|(cache, logits)| Sequence {
        cache: &mut **cache,
        tokens: &tokens[..1],
        request: Last,
        logits,
    }));
    engine.model.forward(&mut batch).unwrap();
    assert_close(&logits, &engine.fresh(&tokens));
    assert_close(&others[699], &engine.fresh(&tokens[..1]));
}
