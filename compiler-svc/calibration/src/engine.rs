//! Engines of parts of a model, for as long as they run.

use std::collections::BTreeMap;
use std::path::Path;

use roundhouse_backend::{
    BackendError, BuildProgress, Builder as _, LogitsRequest, Model, Runtime as _, Sequence, WeightSource,
};
use roundhouse_backend_cpu::{CpuBuilder, CpuOptions, CpuRuntime};
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapabilities, EngineFiles, EngineKey, EngineOptions, KeyInputs, Manifest,
    ModelInfo, Precision, WeightQuantization,
};
use roundhouse_graph::Graph;
use tempfile::TempDir;

use crate::CalibrationError;

/// Hears how far a calibration is, and stops it.
pub trait Progress: Send + Sync {
    /// Whether it should stop.
    fn is_cancelled(&self) -> bool;

    /// So many parts of the model of all are done.
    fn done(&self, parts: usize, all: usize);
}

/// Builds and loads engines.
pub(crate) struct Engines<'a> {
    runtime: CpuRuntime,
    directory: &'a Path,
    progress: &'a dyn Progress,
}

/// A loaded engine.
pub(crate) struct Engine {
    pub(crate) model: Box<dyn Model>,
    /// Holds what is mapped.
    _directory: TempDir,
}

/// The options of an engine for the CPU that sees sequences of at most so many tokens.
pub(crate) const fn options(precision: Precision, cache: CacheKind, tokens: u32) -> EngineOptions {
    EngineOptions {
        precision,
        cache,
        backend: BackendKind::Cpu,
        max_seq_len: tokens,
        max_batch_size: 1,
        all_logits: false,
        quantization: WeightQuantization::None,
        targets: ComputeCapabilities::NONE,
        tensorrt: None,
    }
}

impl<'a> Engines<'a> {
    pub(crate) fn new(directory: &'a Path, progress: &'a dyn Progress) -> Self {
        Self { runtime: CpuRuntime::new(CpuOptions::default()), directory, progress }
    }

    pub(crate) fn threads(&self) -> usize {
        self.runtime.threads()
    }

    /// Fails where it should stop.
    pub(crate) fn check(&self) -> Result<(), CalibrationError> {
        if self.progress.is_cancelled() { Err(BackendError::Cancelled.into()) } else { Ok(()) }
    }

    /// An engine of a lowered graph.
    pub(crate) fn load(
        &self,
        graph: Graph,
        options: &EngineOptions,
        weights: &dyn WeightSource,
    ) -> Result<Engine, CalibrationError> {
        let io = |source| CalibrationError::Io { path: self.directory.display().to_string(), source };
        let directory = tempfile::Builder::new().prefix("part-").tempdir_in(self.directory).map_err(io)?;
        let builder = CpuBuilder::new();
        let (graph, passes) = builder.lower(graph, options)?;
        let built = builder.build(&graph, options, weights, directory.path(), self)?;
        let paths: BTreeMap<_, _> = built.into_iter().map(|file| (file.name, file.path)).collect();
        let (backend_version, target) = (builder.version(), builder.target(options));
        let key = EngineKey::new(&KeyInputs {
            checkpoint_digest: "",
            options,
            backend_version: &backend_version,
            target: &target,
            compiler_version: "",
        })?;
        let manifest = Manifest {
            format: Manifest::FORMAT,
            key,
            model: graph.name.clone(),
            revision: None,
            checkpoint_digest: String::new(),
            info: ModelInfo {
                model_type: String::new(),
                architecture: String::new(),
                vocab_size: 0,
                num_hidden_layers: 0,
                max_position_embeddings: 0,
                eos_token_ids: Vec::new(),
                bos_token_id: None,
                vision: None,
            },
            options: *options,
            target,
            backend_version,
            compiler_version: String::new(),
            passes,
            memory_plan: builder.memory_plan(&graph, options),
            blobs: Vec::new(),
            created_unix_ms: 0,
        };
        let model = self.runtime.load(&EngineFiles { manifest, paths })?;
        Ok(Engine { model, _directory: directory })
    }
}

impl BuildProgress for Engines<'_> {
    fn bytes(&self, _done: u64, _total: u64) -> Result<(), BackendError> {
        if self.progress.is_cancelled() { Err(BackendError::Cancelled) } else { Ok(()) }
    }

    fn log(&self, _line: &str) {}
}

impl Engine {
    /// What an engine without a cache gives for each of a sequence's tokens, `[tokens, width]`.
    pub(crate) fn run(&self, tokens: &[u32]) -> Result<Vec<f32>, CalibrationError> {
        let mut cache = self.model.new_cache(tokens.len())?;
        let mut logits = Vec::new();
        let sequence =
            Sequence { cache: cache.as_mut(), tokens, request: LogitsRequest::All, logits: &mut logits };
        self.model.forward(&mut [sequence])?;
        Ok(logits)
    }
}
