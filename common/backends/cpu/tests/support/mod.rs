//! From a graph to a loaded engine.

#![expect(dead_code, reason = "every test file uses its own part")]

use std::collections::BTreeMap;

use roundhouse_backend::{
    BackendError, BuildProgress, Builder as _, Cache, LogitsRequest, Model, Runtime as _, Sequence, WeightSource,
};
use roundhouse_backend_cpu::{CpuBuilder, CpuOptions, CpuRuntime};
use roundhouse_engine::{
    BackendKind, CacheKind, EngineFiles, EngineKey, EngineOptions, KeyInputs, Manifest, ModelInfo, Precision,
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
    let (backend_version, target) = (builder.version(), builder.target());
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

/// A loaded engine. The model goes before the folder whose files it has mapped.
pub(crate) struct Engine {
    pub(crate) model: Box<dyn Model>,
    _built: Built,
}

impl Engine {
    /// Lowers, builds and loads a model's graph.
    pub(crate) fn new(graph: Graph, weights: &dyn WeightSource, options: &EngineOptions) -> Self {
        let (graph, _) = roundhouse_lowering::lower(graph, options).unwrap();
        let built = build(graph, weights, options);
        Self { model: runtime().load(&built.files).unwrap(), _built: built }
    }

    /// An empty cache.
    pub(crate) fn cache(&self, capacity: usize) -> Box<dyn Cache> {
        self.model.new_cache(capacity).unwrap()
    }

    /// Appends tokens to one sequence; the logits asked for.
    pub(crate) fn step(&self, cache: &mut dyn Cache, tokens: &[u32], request: LogitsRequest) -> Vec<f32> {
        let mut logits = Vec::new();
        self.model.forward(&mut [Sequence { cache, tokens, request, logits: &mut logits }]).unwrap();
        logits
    }
}
