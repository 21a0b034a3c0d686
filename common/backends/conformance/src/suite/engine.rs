//! From a graph to a loaded engine, as the compiler and an executor do it.

use std::collections::BTreeMap;
use std::fs;

use roundhouse_backend::{BackendError, BuildProgress, Cache, LogitsRequest, Model, Sequence, WeightSource};
use roundhouse_engine::{
    BlobRef, CacheKind, ComputeCapabilities, EngineFiles, EngineKey, EngineOptions, KeyInputs, Manifest,
    ModelInfo, Precision, WeightQuantization, blob_names,
};
use roundhouse_graph::Graph;
use tempfile::TempDir;

use super::failure::InCase as _;
use super::{Backend, Failure};
use crate::MemoryWeights;
use crate::tiny_models::TinyModel;

/// The longest sequence of the suite's engines: shorter than the models allow, so that it is the engine's that counts.
pub const MAX_SEQ_LEN: u32 = 40;
/// Hex SHA-256 of nothing: the suite's checkpoints and files have no digests of their own.
const NO_DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What an engine is built from.
pub struct Source {
    /// A model's graph, before any pass.
    pub graph: Graph,
    /// Its weights.
    pub weights: MemoryWeights,
    /// What the manifest says of it.
    pub info: ModelInfo,
}

impl Source {
    pub(super) fn tiny(model: &TinyModel) -> Result<Self, Failure> {
        Ok(Self { graph: model.graph()?, weights: model.weights()?, info: model.info() })
    }
}

/// The options of an engine of the suite.
pub(super) fn options(
    backend: &Backend<'_>,
    precision: Precision,
    cache: CacheKind,
    all_logits: bool,
) -> EngineOptions {
    EngineOptions {
        precision,
        cache,
        backend: backend.builder.kind(),
        max_seq_len: MAX_SEQ_LEN,
        max_batch_size: 4,
        all_logits,
        targets: ComputeCapabilities::NONE,
        quantization: WeightQuantization::None,
        tensorrt: None,
    }
}

/// `gemma2 fp16 in_place`.
pub(super) fn case_name(what: &str, options: &EngineOptions) -> String {
    format!("{what} {} {}", options.precision, options.cache)
}

/// A build nobody watches or stops.
pub(super) struct Unwatched;

impl BuildProgress for Unwatched {
    fn bytes(&self, _done: u64, _total: u64) -> Result<(), BackendError> {
        Ok(())
    }

    fn log(&self, _line: &str) {}
}

/// A built engine in a temporary folder.
pub(super) struct Built {
    pub(super) files: EngineFiles,
    _directory: TempDir,
}

/// Lowers and builds.
pub(super) fn build(
    backend: &Backend<'_>,
    case: &str,
    source: &Source,
    options: &EngineOptions,
    progress: &dyn BuildProgress,
) -> Result<Built, Failure> {
    let (graph, mut passes) = (backend.lower)(source.graph.clone(), options);
    let (graph, own_passes) = backend.builder.lower(graph, options).in_case(case)?;
    passes.extend(own_passes);
    let directory = TempDir::new()?;
    let weights: &dyn WeightSource = &source.weights;
    let built = backend.builder.build(&graph, options, weights, directory.path(), progress).in_case(case)?;
    let mut paths: BTreeMap<_, _> = built.into_iter().map(|file| (file.name, file.path)).collect();
    // The compiler adds the graph where the builder does not write it itself.
    if !paths.contains_key(blob_names::GRAPH) {
        let path = directory.path().join(blob_names::GRAPH);
        fs::write(&path, graph.to_json()?)?;
        paths.insert(blob_names::GRAPH.to_owned(), path);
    }
    let blobs = paths.iter().map(|(name, path)| {
        let size = fs::metadata(path)?.len();
        Ok(BlobRef { name: name.clone(), sha256: NO_DIGEST.to_owned(), size })
    });
    let (backend_version, target) = (backend.builder.version(), backend.builder.target(options));
    let key = EngineKey::new(&KeyInputs {
        checkpoint_digest: NO_DIGEST,
        options,
        backend_version: &backend_version,
        target: &target,
        compiler_version: "conformance",
    });
    let manifest = Manifest {
        format: Manifest::FORMAT,
        key: key.map_err(|error| Failure::departure(case, error.to_string()))?,
        model: source.info.model_type.clone(),
        revision: None,
        checkpoint_digest: NO_DIGEST.to_owned(),
        info: source.info.clone(),
        options: *options,
        target,
        backend_version,
        compiler_version: "conformance".to_owned(),
        passes,
        memory_plan: backend.builder.memory_plan(&graph, options),
        blobs: blobs.collect::<Result<_, std::io::Error>>()?,
        created_unix_ms: 0,
    };
    Ok(Built { files: EngineFiles { manifest, paths }, _directory: directory })
}

/// A loaded engine. The model goes before the folder that it may have mapped.
pub(super) struct Engine {
    pub(super) model: Box<dyn Model>,
    pub(super) case: String,
    pub(super) options: EngineOptions,
    _built: Built,
}

impl Engine {
    /// Lowers, builds, checks and loads.
    pub(super) fn new(
        backend: &Backend<'_>,
        what: &str,
        source: &Source,
        options: &EngineOptions,
    ) -> Result<Self, Failure> {
        let case = case_name(what, options);
        let built = build(backend, &case, source, options, &Unwatched)?;
        backend.runtime.check(&built.files.manifest).in_case(&case)?;
        let model = backend.runtime.load(&built.files).in_case(&case)?;
        if model.vocab_size() != source.info.vocab_size as usize {
            let what = format!("vocab_size is {}, expected {}", model.vocab_size(), source.info.vocab_size);
            return Err(Failure::departure(&case, what));
        }
        Ok(Self { model, case, options: *options, _built: built })
    }

    /// An empty sequence of as many tokens as the engine allows.
    pub(super) fn session(&self) -> Result<Session<'_>, Failure> {
        let cache = self.model.new_cache(self.options.max_seq_len as usize).in_case(&self.case)?;
        Ok(Session { engine: self, cache })
    }
}

/// A sequence of an engine.
pub(super) struct Session<'a> {
    engine: &'a Engine,
    pub(super) cache: Box<dyn Cache>,
}

impl Session<'_> {
    /// Appends tokens; the logits asked for.
    pub(super) fn step(&mut self, tokens: &[u32], request: LogitsRequest) -> Result<Vec<f32>, Failure> {
        let length = self.cache.len();
        let logits = self.try_step(tokens, request).in_case(&self.engine.case)?;
        let rows = match request {
            LogitsRequest::None => 0,
            LogitsRequest::Last => 1,
            LogitsRequest::All => tokens.len(),
        };
        let expected = (length + tokens.len(), rows * self.engine.model.vocab_size());
        let found = (self.cache.len(), logits.len());
        if found != expected {
            let what = format!(
                "after {} tokens: cache length and logits are {found:?}, expected {expected:?}",
                tokens.len()
            );
            return Err(Failure::departure(&self.engine.case, what));
        }
        Ok(logits)
    }

    pub(super) fn try_step(
        &mut self,
        tokens: &[u32],
        request: LogitsRequest,
    ) -> Result<Vec<f32>, BackendError> {
        // What is there before is overwritten.
        let mut logits = vec![f32::NAN; 3];
        let sequence = Sequence { cache: &mut *self.cache, tokens, request, logits: &mut logits };
        self.engine.model.forward(&mut [sequence])?;
        Ok(logits)
    }
}

/// One step over several sequences; the logits of each.
pub(super) fn step_together(
    engine: &Engine,
    batch: &mut [(&mut Session<'_>, &[u32], LogitsRequest)],
) -> Result<Vec<Vec<f32>>, BackendError> {
    let mut logits = vec![vec![f32::NAN; 3]; batch.len()];
    let sequences = batch.iter_mut().zip(&mut logits).map(|((session, tokens, request), logits)| Sequence {
        cache: &mut *session.cache,
        tokens,
        request: *request,
        logits,
    });
    let mut sequences: Vec<Sequence<'_>> = sequences.collect();
    engine.model.forward(&mut sequences)?;
    drop(sequences);
    Ok(logits)
}
