//! The in-place cache: sequences of different lengths in one batch compute what each computes alone.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod support;

use roundhouse_backend_conformance::Tensor;
use roundhouse_engine::{CacheKind, EngineOptions};
use roundhouse_graph::{DType, Op};
use roundhouse_lowering::lower;
use support::{
    MAX_SEQ_LEN, Model, Stepper, assert_close, counts, expose_caches, ints, names, options, reference,
    tiny_llama, tokens, with_window,
};

/// New tokens of each of three sequences, step by step: prefill chunks beside decode steps.
const STEPS: [[usize; 3]; 5] = [[7, 3, 1], [1, 5, 2], [1, 1, 1], [4, 2, 6], [1, 1, 3]];

/// Runs [`STEPS`] and hands each step's logits, tokens before and new tokens of every sequence to `check`.
fn run_steps(
    model: &Model,
    all_logits: bool,
    sequences: &[Vec<i64>; 3],
    mut check: impl FnMut(&[Vec<f32>], [usize; 3], [usize; 3]),
) {
    let options = EngineOptions { all_logits, ..options(CacheKind::InPlace) };
    let (graph, _) = lower(model.graph.clone(), &options).unwrap();
    let (graph, outputs) = expose_caches(graph);
    let mut stepper = Stepper::new(&graph, &model.weights, outputs, 3);
    let mut lengths = [0; 3];
    for new in STEPS {
        let seq = new.into_iter().max().unwrap();
        // Padding on the right: tokens, positions and cache entries that nothing may read.
        let padded = |sequence: usize| {
            let (start, count) = (lengths[sequence], new[sequence]);
            let mut row = sequences[sequence][start..start + count].to_vec();
            row.resize(seq, 13);
            row
        };
        let logits = stepper.step(vec![
            ("input_ids", Tensor::int(&[3, seq], [padded(0), padded(1), padded(2)].concat())),
            ("position_ids", ints(&[3, seq], lengths.iter().flat_map(|&start| start..start + seq))),
            ("write_indices", ints(&[3], lengths)),
            ("kv_lengths", ints(&[3], lengths.map(|length| length + seq))),
            ("query_lengths", ints(&[3], new)),
        ]);
        check(&logits, lengths, new);
        for sequence in 0..3 {
            lengths[sequence] += new[sequence];
        }
    }
}

fn sequences() -> [Vec<i64>; 3] {
    [tokens(6, MAX_SEQ_LEN), tokens(7, MAX_SEQ_LEN), tokens(8, MAX_SEQ_LEN)]
}

fn check_last_logits(model: &Model) {
    let sequences = sequences();
    let expected = sequences.each_ref().map(|tokens| reference(model, tokens));
    run_steps(model, false, &sequences, |logits, lengths, new| {
        assert_eq!(logits.len(), 3, "one row a sequence");
        for sequence in 0..3 {
            let last = lengths[sequence] + new[sequence] - 1;
            assert_close(
                &logits[sequence],
                &expected[sequence][last],
                &format!("sequence {sequence}, token {last}"),
            );
        }
    });
}

#[test]
fn a_ragged_batch_computes_each_sequence_alone() {
    check_last_logits(&tiny_llama());
}

#[test]
fn sliding_windows_hold_across_the_cache() {
    check_last_logits(&with_window(tiny_llama(), 3));
}

#[test]
fn all_logits_are_those_of_every_position() {
    let model = tiny_llama();
    let sequences = sequences();
    let expected = sequences.each_ref().map(|tokens| reference(&model, tokens));
    run_steps(&model, true, &sequences, |logits, lengths, new| {
        let seq = logits.len() / 3;
        for sequence in 0..3 {
            for position in 0..new[sequence] {
                let found = &logits[sequence * seq + position];
                let token = lengths[sequence] + position;
                assert_close(
                    found,
                    &expected[sequence][token],
                    &format!("sequence {sequence}, token {token}"),
                );
            }
        }
    });
}

#[test]
fn the_signature_has_a_place_and_lengths_for_each_sequence() {
    let (graph, reports) = lower(tiny_llama().graph, &options(CacheKind::InPlace)).unwrap();
    assert_eq!(
        names(&graph, graph.inputs()),
        [
            "input_ids",
            "position_ids",
            "key_cache_0",
            "value_cache_0",
            "key_cache_1",
            "value_cache_1",
            "write_indices",
            "kv_lengths",
            "query_lengths"
        ]
    );
    assert_eq!(names(&graph, graph.outputs()), ["logits"]);
    assert_eq!(
        counts(&reports, "in_place_cache"),
        [("attention_nodes", 2), ("caches", 4), ("last_token_nodes", 1)].into()
    );
    for (_, node) in graph.nodes() {
        if let Op::ScaledDotProductAttention(attributes) = &node.op {
            assert!(attributes.causal && attributes.has_kv_lengths && !attributes.has_mask);
        }
    }
    for name in ["write_indices", "kv_lengths", "query_lengths"] {
        assert_eq!(graph.value(graph.find(name).unwrap()).dtype, DType::I64);
    }
}

#[test]
fn the_lengths_are_inputs_even_where_all_logits_are_asked_for() {
    let all = EngineOptions { all_logits: true, ..options(CacheKind::InPlace) };
    let (graph, reports) = lower(tiny_llama().graph, &all).unwrap();
    assert_eq!(graph.inputs().len(), 9, "one signature for a runtime to know");
    assert_eq!(counts(&reports, "in_place_cache")["last_token_nodes"], 0);
}
