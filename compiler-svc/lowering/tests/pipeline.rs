//! The pipeline as a whole: snapshots, reports, dtypes, and options that do not fit.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod support;

use std::path::Path;

use roundhouse_backend_conformance::{Interpreter, Rounding, Tensor};
use roundhouse_engine::{CacheKind, EngineOptions, Precision};
use roundhouse_graph::{AttentionAttributes, DType, Op, Rewriter};
use roundhouse_lowering::{LoweringError, PASSES, lower};
use support::{assert_close, counts, difference, ints, model, options, reference, rows, tiny_llama, tokens};

/// Compares with the file; `UPDATE_SNAPSHOTS=1` writes it instead.
fn assert_snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, expected, "{name}: if the change is meant, run this test with UPDATE_SNAPSHOTS=1");
}

#[test]
fn lowered_graphs_look_like_their_snapshots() {
    for &cache in CacheKind::ALL {
        let options = EngineOptions { precision: Precision::Fp16, ..options(cache) };
        let (graph, _) = lower(model("llama32_grouped_tied", 1).graph, &options).unwrap();
        assert_snapshot(&format!("{cache}.txt"), &graph.to_text());
    }
}

#[test]
fn each_pass_reports_what_it_changed() {
    let options = EngineOptions { precision: Precision::Bf16, ..options(CacheKind::None) };
    let (_, reports) = lower(tiny_llama().graph, &options).unwrap();
    let names: Vec<&str> = reports.iter().map(|report| report.pass.as_str()).collect();
    assert_eq!(names, ["symbol_ranges", "constant_fold", "sdpa", "last_token", "precision", "dead_code"]);
    assert_eq!(counts(&reports, "symbol_ranges"), [("narrowed_symbols", 2)].into());
    assert_eq!(counts(&reports, "constant_fold"), [("bypassed_nodes", 0), ("merged_nodes", 0)].into());
    assert_eq!(
        counts(&reports, "sdpa"),
        [
            ("attention_nodes", 2),
            ("composed_patterns", 0),
            ("dropped_masks", 0),
            ("filled_scales", 2),
            ("folded_repetitions", 0)
        ]
        .into()
    );
    assert_eq!(
        counts(&reports, "last_token"),
        [("last_token_nodes", 1), ("nodes_on_one_position", 2)].into()
    );
    assert_eq!(
        counts(&reports, "precision"),
        [("cast_outputs", 1), ("converted_inputs", 0), ("converted_weights", 20)].into()
    );
    assert_eq!(counts(&reports, "dead_code"), [("removed_nodes", 0), ("removed_weights", 0)].into());
    assert!(PASSES.iter().all(|pass| !pass.name.is_empty()));
}

#[test]
fn without_a_cache_the_last_logits_are_the_models() {
    let model = tiny_llama();
    let (graph, _) = lower(model.graph.clone(), &options(CacheKind::None)).unwrap();
    let interpreter = Interpreter::new(&graph, &model.weights).unwrap();
    for seq in [1, 2, 11] {
        let sequence = tokens(9, seq);
        let expected = reference(&model, &sequence);
        let inputs =
            [("input_ids", Tensor::int(&[1, seq], sequence)), ("position_ids", ints(&[1, seq], 0..seq))];
        let found = rows(&interpreter.run(inputs).unwrap()["logits"]);
        assert_eq!(found.len(), 1);
        assert_close(&found[0], &expected[seq - 1], &format!("{seq} tokens"));
    }
}

#[test]
fn a_half_precision_graph_is_half_precision_but_for_its_logits() {
    for (precision, dtype) in [(Precision::Fp16, DType::F16), (Precision::Bf16, DType::Bf16)] {
        for &cache in CacheKind::ALL {
            let options = EngineOptions { precision, ..options(cache) };
            let (graph, _) = lower(tiny_llama().graph, &options).unwrap();
            for (id, value) in graph.values() {
                let is_logits = graph.outputs()[0] == id;
                let expected = if is_logits { DType::F32 } else { dtype };
                assert!(value.dtype == DType::I64 || value.dtype == expected, "{cache}: {}", value.name);
            }
            let casts = graph.nodes().filter(|(_, node)| matches!(node.op, Op::Cast { .. })).count();
            assert_eq!(casts, 1, "only the logits are cast");
            let name = &graph.value(graph.outputs()[0]).name;
            assert_eq!(name, "logits");
        }
    }
}

#[test]
fn a_half_precision_graph_computes_the_model_to_its_precision() {
    let model = tiny_llama();
    let sequence = tokens(10, 12);
    let expected = reference(&model, &sequence).concat();
    // Two layers round some twenty times to 11 (fp16) or 8 (bf16) bits; logits reach 4.
    for (precision, tolerance) in [(Precision::Fp16, 0.02), (Precision::Bf16, 0.16)] {
        let options = EngineOptions { precision, all_logits: true, ..options(CacheKind::None) };
        let (graph, _) = lower(model.graph.clone(), &options).unwrap();
        let interpreter = Interpreter::new(&graph, &model.weights).unwrap().with_rounding(Rounding::Stored);
        let inputs =
            [("input_ids", Tensor::int(&[1, 12], sequence.clone())), ("position_ids", ints(&[1, 12], 0..12))];
        let found = interpreter.run(inputs).unwrap();
        let difference = difference(found["logits"].floats(), &expected);
        assert!(difference > 1e-5 && difference < tolerance, "{precision}: {difference}");
    }
}

#[test]
fn symbols_have_the_engines_ranges() {
    let (graph, _) = lower(tiny_llama().graph, &options(CacheKind::StaticV2)).unwrap();
    let ranges: Vec<(&str, i64, i64)> =
        graph.symbols().iter().map(|symbol| (symbol.name.as_str(), symbol.min, symbol.max)).collect();
    assert_eq!(ranges, [("batch", 1, 4), ("seq", 1, 24), ("start", 0, 23)]);
}

#[test]
fn options_that_do_not_fit_the_model_are_refused() {
    let refuse = |edit: fn(&mut EngineOptions)| {
        let mut options = options(CacheKind::InPlace);
        edit(&mut options);
        lower(tiny_llama().graph, &options).unwrap_err().to_string()
    };
    assert_eq!(
        refuse(|options| options.max_seq_len = 65),
        "max_seq_len is 65: expected 1 to 64, which is what the model takes"
    );
    assert!(refuse(|options| options.max_seq_len = 0).starts_with("max_seq_len is 0"));
    assert!(refuse(|options| options.max_batch_size = 0).starts_with("max_batch_size is 0"));
}

#[test]
fn attention_whose_past_cannot_be_kept_is_refused() {
    for (cache, pass) in [
        (CacheKind::StaticV1, "static_cache_v1"),
        (CacheKind::StaticV2, "static_cache_v2"),
        (CacheKind::InPlace, "in_place_cache"),
    ] {
        let mut rewriter = Rewriter::new(tiny_llama().graph);
        for id in rewriter.nodes_where(|node| matches!(node.op, Op::ScaledDotProductAttention(_))) {
            let attributes = AttentionAttributes { causal: false, ..AttentionAttributes::causal() };
            rewriter.set_op(id, Op::ScaledDotProductAttention(attributes)).unwrap();
        }
        let error = lower(rewriter.finish().unwrap(), &options(cache)).unwrap_err();
        let LoweringError::Unsupported { pass: found, what } = error else { panic!("{error}") };
        assert_eq!(found, pass);
        assert!(what.contains("is not causal"), "{what}");
    }
}
