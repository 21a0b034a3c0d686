//! From a tiny model to the files of an engine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use parking_lot::Mutex;
use roundhouse_backend::{BackendError, BuildProgress, Builder as _, BuiltFile, WeightSource};
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapabilities, ComputeCapability, EngineOptions, Precision,
    TensorRtOptions, WeightPlacement, WeightQuantization, blob_names,
};
use roundhouse_graph::Graph;
use roundhouse_tensorrt_builder::TensorRtBuilder;
use roundhouse_tensorrt_library::testing;
use roundhouse_tensorrt_network::Network;
use tempfile::TempDir;

/// A build whose log is kept, and which can be told to stop at a call.
#[derive(Default)]
pub(crate) struct Watched {
    pub(crate) lines: Mutex<Vec<String>>,
    pub(crate) bytes: Mutex<Vec<(u64, u64)>>,
    /// Stops at the first report of bytes after a line with this text.
    pub(crate) cancel_after: Option<&'static str>,
}

impl BuildProgress for Watched {
    fn bytes(&self, done: u64, total: u64) -> Result<(), BackendError> {
        self.bytes.lock().push((done, total));
        let lines = self.lines.lock();
        match self.cancel_after {
            Some(text) if lines.iter().any(|line| line.contains(text)) => Err(BackendError::Cancelled),
            _ => Ok(()),
        }
    }

    fn log(&self, line: &str) {
        self.lines.lock().push(line.to_owned());
    }
}

/// The files of an engine in a temporary folder.
pub(crate) struct Built {
    pub(crate) graph: Graph,
    pub(crate) options: EngineOptions,
    pub(crate) files: BTreeMap<String, PathBuf>,
    pub(crate) directory: TempDir,
}

impl Built {
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(&self.files[name]).unwrap()
    }

    pub(crate) fn network(&self) -> Network {
        Network::from_json(&self.bytes(blob_names::NETWORK)).unwrap()
    }
}

pub(crate) fn builder() -> TensorRtBuilder {
    let opened = TensorRtBuilder::open(&testing::library_search());
    opened.unwrap_or_else(|error| panic!("this test needs TensorRT: {error}"))
}

pub(crate) fn options(precision: Precision, cache: CacheKind) -> EngineOptions {
    EngineOptions {
        precision,
        cache,
        backend: BackendKind::TensorRt,
        max_seq_len: 16,
        max_batch_size: 3,
        all_logits: false,
        targets: [ComputeCapability::new(8, 9)].into_iter().collect(),
        quantization: WeightQuantization::None,
        tensorrt: None,
    }
}

pub(crate) fn placed(options: EngineOptions, weights: WeightPlacement) -> EngineOptions {
    EngineOptions { tensorrt: Some(TensorRtOptions { weights, ..TensorRtOptions::default() }), ..options }
}

/// The graph that the builder is given, and the options resolved.
pub(crate) fn lowered(model: &TinyModel, options: EngineOptions) -> (Graph, EngineOptions) {
    let graph = model.graph().unwrap();
    let options = builder().resolve(&graph, options).unwrap();
    let (graph, _) = roundhouse_lowering::lower(graph, &options).unwrap();
    let (graph, _) = builder().lower(graph, &options).unwrap();
    (graph, options)
}

pub(crate) fn build(
    graph: Graph,
    options: EngineOptions,
    weights: &dyn WeightSource,
    progress: &Watched,
) -> Result<Built, BackendError> {
    let directory = tempfile::tempdir().unwrap();
    let built = builder().build(&graph, &options, weights, directory.path(), progress)?;
    let files = built.into_iter().map(|BuiltFile { name, path }| (name, path)).collect();
    Ok(Built { graph, options, files, directory })
}

/// Builds a model with its weights.
pub(crate) fn build_model(model: &TinyModel, options: EngineOptions) -> Built {
    let (graph, options) = lowered(model, options);
    build(graph, options, &model.weights().unwrap(), &Watched::default()).unwrap()
}

/// Bytes as a text with a character for each, which is searched faster than bytes are.
pub(crate) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// No target asked for.
pub(crate) const NO_TARGETS: ComputeCapabilities = ComputeCapabilities::NONE;
