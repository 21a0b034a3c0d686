//! What ends a build early, or keeps it from starting: with a typed error, and no file left.

use std::ops::Range;
use std::path::Path;

use crate::support::{NO_TARGETS, Watched, builder, lowered, options, placed};
use roundhouse_backend::{BackendError, Builder as _, LibrarySearch, WeightError, WeightSource};
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_engine::{
    AttentionForm, BackendKind, CacheKind, EngineOptions, Precision, Profiles, TensorRtOptions,
    WeightPlacement,
};
use roundhouse_graph::Dim;
use roundhouse_tensorrt_builder::TensorRtBuilder;
use roundhouse_tensorrt_library::LibraryError;

fn targets(names: &[&str]) -> roundhouse_engine::ComputeCapabilities {
    names.iter().map(|name| name.parse::<roundhouse_engine::ComputeCapability>().unwrap()).collect()
}

/// Builds a tiny model and gives what it failed with; no file may be left.
fn failure(options: EngineOptions, weights: &dyn WeightSource, progress: &Watched) -> BackendError {
    let (graph, options) = lowered(&TinyModel::llama(), options);
    let folder = tempfile::tempdir().unwrap();
    let built = builder().build(&graph, &options, weights, folder.path(), progress);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    built.map(|_| ()).unwrap_err()
}

#[test]
fn a_build_is_cancelled_wherever_it_is() {
    let weights = TinyModel::llama().weights().unwrap();
    for placement in [WeightPlacement::Embedded, WeightPlacement::Separate] {
        let options = placed(options(Precision::Fp16, CacheKind::InPlace), placement);
        for stage in ["attention", "TensorRT holds", "TensorRT: Building engine", "Total Weights Memory"] {
            let progress = Watched { cancel_after: Some(stage), ..Watched::default() };
            let error = failure(options, &weights, &progress);
            assert!(matches!(error, BackendError::Cancelled), "after {stage}: {error}");
        }
        // Cancelled while weights are written, TensorRT never hears of the network.
        let progress = Watched { cancel_after: Some("attention"), ..Watched::default() };
        failure(options, &weights, &progress);
        let lines = progress.lines.lock();
        assert!(!lines.iter().any(|line| line.contains("TensorRT")), "{lines:?}");
    }
}

/// A checkpoint that breaks in the middle.
struct Broken(roundhouse_backend_conformance::MemoryWeights);

impl WeightSource for Broken {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        self.0.shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        if name.contains("down_proj") {
            return Err(WeightError::Corrupt { name: name.to_owned(), what: "truncated".to_owned() });
        }
        self.0.read_rows(name, rows, out)
    }
}

#[test]
fn a_broken_checkpoint_ends_the_build() {
    let weights = Broken(TinyModel::llama().weights().unwrap());
    for placement in [WeightPlacement::Embedded, WeightPlacement::Separate] {
        let options = placed(options(Precision::Fp16, CacheKind::InPlace), placement);
        let error = failure(options, &weights, &Watched::default());
        assert!(matches!(error, BackendError::Weight(WeightError::Corrupt { .. })), "{error}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let (graph, options) = lowered(&TinyModel::llama(), options(Precision::Fp16, CacheKind::InPlace));
    let weights = TinyModel::llama().weights().unwrap();
    let folder = Path::new("/nonexistent/folder");
    let error = builder().build(&graph, &options, &weights, folder, &Watched::default()).unwrap_err();
    assert!(
        matches!(&error, BackendError::Io { path, .. } if path.starts_with("/nonexistent/folder")),
        "{error}"
    );
}

#[test]
fn targets_are_refused_before_anything_is_built() {
    let graph = TinyModel::llama().graph().unwrap();
    for (names, precision, parts) in [
        (&["sm_90"][..], Precision::Fp16, ["sm_90", "sm_89"]),
        (&["sm_89", "sm_100"], Precision::Fp16, ["sm_100", "sm_120"]),
        (&["sm_75"], Precision::Bf16, ["bf16", "sm_75"]),
        (&["sm_75", "sm_80"], Precision::Fp32, ["fp32", "sm_75"]),
    ] {
        let options = EngineOptions { targets: targets(names), ..options(precision, CacheKind::InPlace) };
        let error = builder().resolve(&graph, options).unwrap_err();
        assert!(matches!(error, BackendError::Unsupported { .. }), "{error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{error}");
        }
        // Nor does a build without asking go on with them.
        let weights = TinyModel::llama().weights().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let built = builder().build(&graph, &options, &weights, folder.path(), &Watched::default());
        assert!(matches!(built, Err(BackendError::Unsupported { .. })));
    }
}

#[test]
fn what_a_request_leaves_open_is_filled_in() {
    let graph = TinyModel::llama().graph().unwrap();
    let options = EngineOptions { targets: NO_TARGETS, ..options(Precision::Bf16, CacheKind::InPlace) };
    let resolved = builder().resolve(&graph, options).unwrap();
    assert_eq!(resolved.targets.names(), ["sm_80", "sm_86", "sm_89", "sm_120", "sm_121"]);
    let expected = TensorRtOptions { weights: WeightPlacement::Embedded, ..TensorRtOptions::default() };
    assert_eq!(resolved.tensorrt, Some(expected));
    let small = builder().with_available_memory(1 << 20).resolve(&graph, options).unwrap();
    assert_eq!(small.tensorrt.map(|options| options.weights), Some(WeightPlacement::Separate));
    assert_eq!(builder().resolve(&graph, resolved).unwrap(), resolved, "resolved options stay as they are");
    let asked = placed(EngineOptions { targets: targets(&["sm_75"]), ..options }, WeightPlacement::Separate);
    let asked = EngineOptions { precision: Precision::Fp16, ..asked };
    assert_eq!(builder().resolve(&graph, asked).unwrap(), asked, "what was asked for stays");
    assert_eq!(builder().kind(), BackendKind::TensorRt);
    assert!(builder().version().contains("rtx-1.7.1"), "{}", builder().version());
}

#[test]
fn nodes_without_a_converter_are_named_all_at_once() {
    // Scores with a soft cap, which the form asked for does not have, in both layers.
    let model = TinyModel::gemma2();
    let fused = TensorRtOptions { attention: AttentionForm::Fused, ..TensorRtOptions::default() };
    let asked = EngineOptions { tensorrt: Some(fused), ..options(Precision::Fp16, CacheKind::InPlace) };
    let graph = model.graph().unwrap();
    let options = builder().resolve(&graph, asked).unwrap();
    let (graph, _) = roundhouse_lowering::lower(graph, &options).unwrap();
    let weights = model.weights().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let built = builder().build(&graph, &options, &weights, folder.path(), &Watched::default());
    for error in [builder().lower(graph, &options).map(|_| ()).unwrap_err(), built.map(|_| ()).unwrap_err()] {
        let BackendError::UnsupportedNodes { backend: "tensorrt", nodes } = &error else { panic!("{error}") };
        assert_eq!(nodes.len(), model.num_hidden_layers, "{error}");
        for node in nodes {
            assert_eq!(node.op, "scaled_dot_product_attention");
            assert!(node.reason.contains("soft cap"), "{}", node.reason);
        }
    }
}

#[test]
fn the_report_counts_what_was_made() {
    let (graph, options) = lowered(&TinyModel::llama(), options(Precision::Fp16, CacheKind::InPlace));
    let (same, reports) = builder().lower(graph.clone(), &options).unwrap();
    assert_eq!(same, graph, "the graph stays as it is");
    let counts = &reports[0].counts;
    assert_eq!((reports[0].pass.as_str(), counts["profiles"]), ("tensorrt", 1));
    assert_eq!(counts["attention_fused"] + counts["attention_decomposed"], 2);
    assert!(counts["layers"] > 50 && counts["weights"] as usize >= graph.weights().count(), "{counts:?}");

    let two = TensorRtOptions { profiles: Profiles::Two, ..options.tensorrt.unwrap() };
    let (_, reports) = builder().lower(graph, &EngineOptions { tensorrt: Some(two), ..options }).unwrap();
    assert_eq!(reports[0].counts["profiles"], 2);
}

#[test]
fn the_memory_plan_follows_the_graph() {
    let model = TinyModel::llama();
    let (graph, options) = lowered(&model, options(Precision::Fp16, CacheKind::InPlace));
    let plan = builder().memory_plan(&graph, &options);
    let elements = |shape: &[Dim]| shape.iter().map(|dim| dim.as_constant().unwrap() as u64).product::<u64>();
    let weights: u64 = graph.weights().map(|(_, value, _)| elements(&value.shape) * 2).sum();
    assert_eq!(plan.weight_bytes, weights);
    let row = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * 2;
    assert_eq!(plan.kv_bytes_per_token, row as u64);
    let logits = u64::from(options.max_batch_size) * model.vocab_size as u64 * 4;
    assert!(plan.workspace_bytes >= logits, "{plan:?}");
    let longer = builder().memory_plan(&graph, &EngineOptions { max_seq_len: 8, ..options });
    assert!(longer.workspace_bytes < plan.workspace_bytes, "{longer:?} {plan:?}");
}

#[test]
fn without_the_library_there_is_no_builder_and_the_reason_says_how_to_get_it() {
    let search =
        LibrarySearch { path: Some("/nonexistent/libtensorrt_rtx.so.1".into()), folders: Vec::new() };
    let error = TensorRtBuilder::open(&search).unwrap_err();
    // Another test of this process may have loaded the library already.
    let expected = match &error {
        LibraryError::NotFound { .. } => "make tensorrt",
        LibraryError::AlreadyLoaded { .. } => "this process has loaded",
        other => panic!("{other:?}"),
    };
    assert!(error.to_string().contains(expected), "{error}");
    assert!(error.to_string().contains("/nonexistent/libtensorrt_rtx.so.1"), "{error}");
}
