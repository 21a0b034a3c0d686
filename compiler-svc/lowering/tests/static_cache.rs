//! Static caches: prefill in chunks of any size and decode compute what the model computes over the whole sequence.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod support;

use roundhouse_backend_conformance::Tensor;
use roundhouse_engine::{CacheKind, EngineOptions};
use roundhouse_graph::{DType, Graph};
use roundhouse_lowering::lower;
use support::{
    CacheOutputs, MAX_SEQ_LEN, Model, Stepper, assert_close, counts, difference, ints, names, options,
    reference, rows, tiny_llama, tokens, with_window,
};

const BOTH: [CacheKind; 2] = [CacheKind::StaticV1, CacheKind::StaticV2];

/// Odd prefill chunks, decode steps between them, until the cache is full.
const CHUNKS: [usize; 7] = [5, 1, 7, 1, 1, 3, 6];

fn cache_outputs(layers: usize) -> CacheOutputs {
    let caches = (0..layers).flat_map(|layer| ["key", "value"].map(|what| format!("{what}_cache_{layer}")));
    caches.map(|cache| (cache.clone(), format!("{cache}_out"))).collect()
}

/// Runs `chunks` of two sequences; for each step, the sequences' logits and how many tokens there were at its end.
fn run_chunks(
    graph: &Graph,
    model: &Model,
    sequences: [&[i64]; 2],
    chunks: &[usize],
) -> Vec<(Vec<Vec<f32>>, usize)> {
    let mut stepper = Stepper::new(graph, &model.weights, cache_outputs(2), 2);
    let mut start = 0;
    let mut steps = Vec::new();
    for &seq in chunks {
        let end = start + seq;
        let logits = stepper.step(vec![
            (
                "input_ids",
                Tensor::int(&[2, seq], sequences.map(|tokens| tokens[start..end].to_vec()).concat()),
            ),
            ("position_ids", ints(&[2, seq], (start..end).chain(start..end))),
            ("start_idx", ints(&[], [start])),
            ("end_idx", ints(&[], [end])),
        ]);
        assert_eq!(stepper.cache("key_cache_1").shape, [2, 2, MAX_SEQ_LEN, 6], "the cache keeps its shape");
        steps.push((logits, end));
        start = end;
    }
    steps
}

fn check_last_logits(model: &Model, cache: CacheKind) {
    let (graph, _) = lower(model.graph.clone(), &options(cache)).unwrap();
    let sequences = [tokens(1, MAX_SEQ_LEN), tokens(2, MAX_SEQ_LEN)];
    let expected = [0, 1].map(|sequence| reference(model, &sequences[sequence]));
    for (logits, end) in run_chunks(&graph, model, [&sequences[0], &sequences[1]], &CHUNKS) {
        assert_eq!(logits.len(), 2, "one row a sequence");
        for sequence in 0..2 {
            assert_close(&logits[sequence], &expected[sequence][end - 1], &format!("{cache}, {end} tokens"));
        }
    }
}

#[test]
fn chunked_prefill_and_decode_compute_the_whole_sequence() {
    for cache in BOTH {
        check_last_logits(&tiny_llama(), cache);
    }
}

#[test]
fn sliding_windows_hold_across_the_cache() {
    let sequence = tokens(1, MAX_SEQ_LEN);
    let [plain, windowed] =
        [tiny_llama(), with_window(tiny_llama(), 4)].map(|model| reference(&model, &sequence));
    assert!(difference(&plain.concat(), &windowed.concat()) > 0.1, "the window matters");
    for cache in BOTH {
        check_last_logits(&with_window(tiny_llama(), 4), cache);
    }
}

#[test]
fn all_logits_are_those_of_every_position() {
    let model = tiny_llama();
    let sequences = [tokens(3, MAX_SEQ_LEN), tokens(4, MAX_SEQ_LEN)];
    let expected = [0, 1].map(|sequence| reference(&model, &sequences[sequence]));
    for cache in BOTH {
        let all = EngineOptions { all_logits: true, ..options(cache) };
        let (graph, _) = lower(model.graph.clone(), &all).unwrap();
        let mut start = 0;
        for (logits, end) in run_chunks(&graph, &model, [&sequences[0], &sequences[1]], &CHUNKS) {
            let expected: Vec<&[f32]> =
                expected.iter().flat_map(|rows| rows[start..end].iter().map(Vec::as_slice)).collect();
            assert_close(&logits.concat(), &expected.concat(), &format!("{cache}, {start}..{end}"));
            start = end;
        }
    }
}

#[test]
fn the_cache_holds_the_keys_of_the_tokens_so_far_and_leaves_the_rest_alone() {
    let model = tiny_llama();
    for cache in BOTH {
        let (graph, _) = lower(model.graph.clone(), &options(cache)).unwrap();
        let sequence = tokens(5, 9);
        let mut whole = Stepper::new(&graph, &model.weights, cache_outputs(2), 1);
        let step = |stepper: &mut Stepper, start: usize, end: usize| {
            stepper.step(vec![
                ("input_ids", Tensor::int(&[1, end - start], sequence[start..end].to_vec())),
                ("position_ids", ints(&[1, end - start], start..end)),
                ("start_idx", ints(&[], [start])),
                ("end_idx", ints(&[], [end])),
            ])
        };
        step(&mut whole, 0, 9);
        let mut parts = Stepper::new(&graph, &model.weights, cache_outputs(2), 1);
        step(&mut parts, 0, 4);
        step(&mut parts, 4, 9);
        for name in cache_outputs(2).keys() {
            let (whole, parts) = (whole.cache(name), parts.cache(name));
            assert_close(whole.floats(), parts.floats(), name);
            let positions = rows(whole);
            let written = |position: &[f32]| position.iter().any(|&number| number != 0.0);
            for (index, position) in positions.iter().enumerate() {
                assert_eq!(written(position), index % MAX_SEQ_LEN < 9, "{name}, position {index}");
            }
        }
    }
}

#[test]
fn the_signature_is_that_of_a_static_cache() {
    for (cache, pass) in BOTH.into_iter().zip(["static_cache_v1", "static_cache_v2"]) {
        let (graph, reports) = lower(tiny_llama().graph, &options(cache)).unwrap();
        assert_eq!(
            names(&graph, graph.inputs()),
            [
                "input_ids",
                "position_ids",
                "key_cache_0",
                "value_cache_0",
                "key_cache_1",
                "value_cache_1",
                "start_idx",
                "end_idx"
            ]
        );
        assert_eq!(
            names(&graph, graph.outputs()),
            ["logits", "key_cache_0_out", "value_cache_0_out", "key_cache_1_out", "value_cache_1_out"]
        );
        assert_eq!(counts(&reports, pass), [("attention_nodes", 2), ("caches", 4)].into());
        for &id in graph.outputs() {
            assert_eq!(graph.value(id).dtype, DType::F32);
        }
    }
}
