//! From a graph to the files of an engine.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeMap;

use roundhouse_backend::{BackendError, BuildProgress, Builder as _, WeightSource};
use roundhouse_backend_cpu::{CpuBuilder, CpuOptions, CpuRuntime};
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapabilities, EngineFiles, EngineKey, EngineOptions, KeyInputs, Manifest,
    ModelInfo, Precision, WeightQuantization,
};
use roundhouse_graph::Graph;
use tempfile::TempDir;

/// A build nobody watches.
pub(crate) struct Unwatched;

impl BuildProgress for Unwatched {
    fn bytes(&self, _done: u64, _total: u64) -> Result<(), BackendError> {
        Ok(())
    }

    fn log(&self, _line: &str) {}
}

/// A built engine in a temporary folder.
pub(crate) struct Built {
    pub(crate) files: EngineFiles,
    _directory: TempDir,
}

pub(crate) fn options(precision: Precision, cache: CacheKind) -> EngineOptions {
    EngineOptions {
        precision,
        cache,
        backend: BackendKind::Cpu,
        max_seq_len: 16,
        max_batch_size: 4,
        all_logits: false,
        targets: ComputeCapabilities::NONE,
        quantization: WeightQuantization::None,
        tensorrt: None,
    }
}

pub(crate) fn runtime() -> CpuRuntime {
    CpuRuntime::new(CpuOptions { threads: Some(2) })
}

/// Builds a lowered graph.
pub(crate) fn build(graph: Graph, weights: &dyn WeightSource, options: &EngineOptions) -> Built {
    let builder = CpuBuilder::new();
    let (graph, passes) = builder.lower(graph, options).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let built = builder.build(&graph, options, weights, directory.path(), &Unwatched).unwrap();
    let paths: BTreeMap<_, _> = built.into_iter().map(|file| (file.name, file.path)).collect();
    let (backend_version, target) = (builder.version(), builder.target(options));
    let key = EngineKey::new(&KeyInputs {
        checkpoint_digest: "",
        options,
        backend_version: &backend_version,
        target: &target,
        compiler_version: "test",
    });
    let manifest = Manifest {
        format: Manifest::FORMAT,
        key: key.unwrap(),
        model: "test".to_owned(),
        revision: None,
        checkpoint_digest: String::new(),
        info: ModelInfo {
            model_type: "test".to_owned(),
            architecture: "Test".to_owned(),
            vocab_size: 0,
            num_hidden_layers: 1,
            max_position_embeddings: 0,
            eos_token_ids: Vec::new(),
            bos_token_id: None,
            vision: None,
        },
        options: *options,
        target,
        backend_version,
        compiler_version: "test".to_owned(),
        passes,
        memory_plan: builder.memory_plan(&graph, options),
        blobs: Vec::new(),
        created_unix_ms: 0,
    };
    Built { files: EngineFiles { manifest, paths }, _directory: directory }
}
