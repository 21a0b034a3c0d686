//! One compilation, from checkpoint to published engine.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use roundhouse_backend::{BackendError, Builder};
use roundhouse_calibration::{Calibrated, CalibrationError, Subject, Text};
use roundhouse_engine::{
    BackendKind, CacheKind, Component, ComputeCapabilities, EngineKey, EngineOptions, KeyInputs, Manifest,
    Precision, TensorRtOptions, WeightQuantization, blob_names,
};
use roundhouse_graph::{Graph, PassReport, QuantizedLinearAttributes, WeightExpr};
use roundhouse_hub::{Checkpoint, Checkpoints, HubError};
use roundhouse_lowering::{LoweringError, WEIGHT_ONLY_QUANTIZATION};
use roundhouse_models::ModelError;
use roundhouse_proto::compiler::Stage;
use roundhouse_store::{EngineStore, Published, StoreError};

use crate::backends::{Backends, NoBuilder};
use crate::jobs::Operation;
use crate::progress::{CalibrationProgress, DownloadProgress, OperationProgress, UploadProgress};
use crate::quantization::{self, Quantized};
use crate::quantization_loss::MeasuredWeights;
use crate::support::SUPPORT;
use crate::{COMPILER_VERSION, convert};

/// The longest sequence of an engine whose request does not say, where the model itself allows more.
const DEFAULT_MAX_SEQ_LEN: u32 = 4096;
/// The most sequences in a step of an engine whose request does not say.
const DEFAULT_MAX_BATCH_SIZE: u32 = 8;
/// The text that weights are calibrated on.
const CALIBRATION_SEQUENCES: u32 = 64;
const CALIBRATION_TOKENS: u32 = 256;

/// What a compilation was asked for; what is `None` gets its default.
#[derive(Debug, Clone)]
pub struct CompileRequest {
    /// A hub ID, path or URL, as `roundhouse_hub::ModelSource` reads it.
    pub model: String,
    /// A branch, tag or commit of a hub ID.
    pub revision: Option<String>,
    /// The arithmetic.
    pub precision: Precision,
    /// How keys and values are kept.
    pub cache: CacheKind,
    /// What runs it.
    pub backend: BackendKind,
    /// Prompt and new tokens of one sequence together.
    pub max_seq_len: Option<u32>,
    /// Sequences in one step.
    pub max_batch_size: Option<u32>,
    /// Whether every position's logits are computed.
    pub all_logits: bool,
    /// How the weights of matrix products are kept; `None` is as the checkpoint has them where that can be.
    pub quantization: Option<WeightQuantization>,
    /// Whether weights of four bits that the compiler makes are calibrated; `None` is where the model is small enough.
    pub calibration: Option<bool>,
    /// The GPUs to build for; none leaves them to the backend.
    pub targets: ComputeCapabilities,
    /// What only TensorRT engines have; `None` for other backends.
    pub tensorrt: Option<TensorRtOptions>,
    /// Build nothing.
    pub validate_only: bool,
    /// Build even if the engine exists.
    pub force: bool,
}

/// What a compilation made.
#[derive(Debug)]
pub struct Compiled {
    /// The engine's manifest; with `validate_only` one without blobs.
    pub manifest: Manifest,
    /// Whether the store had it.
    pub reused: bool,
    /// With `validate_only`, how many nodes the lowered graph has of each op; else empty.
    pub ops: BTreeMap<&'static str, u64>,
}

/// Why a compilation failed.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The checkpoint.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The passes.
    #[error(transparent)]
    Lowering(#[from] LoweringError),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The calibration of its weights.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// The backend does not build with these options.
    #[error(transparent)]
    Options(BackendError),
    /// No builder for the backend.
    #[error(transparent)]
    NoBuilder(#[from] NoBuilder),
    /// An option does not fit the model.
    #[error("{field} is {found}: the model allows {allowed}")]
    Option {
        /// The option.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of the work folder.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A value that cannot be written as JSON.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Everything that compilations share.
pub struct Pipeline {
    checkpoints: Checkpoints,
    store: EngineStore,
    backends: Backends,
    build_dir: PathBuf,
    /// One build of a key at a time; the second finds the first one's engine.
    keys: Mutex<HashMap<EngineKey, Weak<tokio::sync::Mutex<()>>>>,
}

/// A graph ready to be built.
struct Lowered {
    graph: Graph,
    source_graph: Graph,
    components: Vec<LoweredComponent>,
    manifest: Manifest,
    /// The matrices to calibrate.
    to_calibrate: Vec<(WeightExpr, QuantizedLinearAttributes)>,
    /// What people should know of it.
    notes: Vec<String>,
}

/// A component's graph ready to be built.
struct LoweredComponent {
    component: Component,
    graph: Graph,
    source_graph: Graph,
}

impl Pipeline {
    /// A pipeline that builds in `build_dir`.
    #[must_use]
    pub fn new(checkpoints: Checkpoints, store: EngineStore, backends: Backends, build_dir: PathBuf) -> Self {
        Self { checkpoints, store, backends, build_dir, keys: Mutex::default() }
    }

    /// The backends it builds for.
    #[must_use]
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    /// The store it publishes to.
    #[must_use]
    pub fn store(&self) -> &EngineStore {
        &self.store
    }

    /// Compiles, or finds the engine that an equal request made. Blocks its thread while it lowers and builds.
    ///
    /// # Errors
    /// [`CompileError`]. Nothing is left half written: a manifest appears in the store only with everything it names,
    /// and the build folder is removed.
    pub async fn compile(
        &self,
        request: &CompileRequest,
        operation: &Arc<Operation>,
    ) -> Result<Compiled, CompileError> {
        let started = Instant::now();
        let builder = self.backends.builder(request.backend)?;
        operation.report(Stage::Download, 0, None);
        let progress = DownloadProgress::new(Arc::clone(operation));
        let checkpoint = unless_cancelled(
            operation,
            self.checkpoints.open(&request.model, request.revision.as_deref(), &progress),
        )
        .await?;
        operation.log(format!("checkpoint {} ({})", request.model, checkpoint.digest));

        operation.report(Stage::Lower, 0, None);
        let lowered = lower(&checkpoint, &*builder, request)?;
        lowered.manifest.passes.iter().for_each(|report| operation.pass(convert::pass_report(report)));
        lowered.notes.iter().for_each(|note| operation.log(note));
        let key = lowered.manifest.key.clone();
        operation.set_engine_key(key.as_str());
        if request.validate_only {
            let mut ops = BTreeMap::new();
            lowered.graph.nodes().for_each(|(_, node)| *ops.entry(node.op.name()).or_default() += 1);
            return Ok(Compiled { manifest: lowered.manifest, reused: false, ops });
        }

        let lock = self.key_lock(&key);
        let _building =
            unless_cancelled(operation, async { Ok::<_, CompileError>(lock.lock().await) }).await?;
        if !request.force
            && let Some(manifest) = self.existing(&key).await?
        {
            operation.log(format!("engine {key} is in the store already"));
            return Ok(Compiled { manifest, reused: true, ops: BTreeMap::new() });
        }
        let published =
            unless_cancelled(operation, self.build(&checkpoint, &*builder, lowered, operation)).await?;
        operation.log(format!("engine {key} published after {:.2?}", started.elapsed()));
        let reused = !published.is_created() && !request.force;
        Ok(Compiled { manifest: published.into_manifest(), reused, ops: BTreeMap::new() })
    }

    fn key_lock(&self, key: &EngineKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut keys = self.keys.lock();
        keys.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = keys.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        keys.insert(key.clone(), Arc::downgrade(&lock));
        lock
    }

    async fn existing(&self, key: &EngineKey) -> Result<Option<Manifest>, CompileError> {
        match self.store.get_manifest(key).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn build(
        &self,
        checkpoint: &Checkpoint,
        builder: &dyn Builder,
        mut lowered: Lowered,
        operation: &Arc<Operation>,
    ) -> Result<Published, CompileError> {
        let io = |source| CompileError::Io { path: self.build_dir.display().to_string(), source };
        std::fs::create_dir_all(&self.build_dir).map_err(io)?;
        // Removed when dropped, however this ends.
        let directory = tempfile::Builder::new().prefix("build-").tempdir_in(&self.build_dir).map_err(io)?;
        operation.report(Stage::Build, 0, None);
        let progress = OperationProgress::new(Arc::clone(operation));
        let calibrated = calibrate(checkpoint, &lowered, directory.path(), operation)?;
        let calibrated = calibrated.weights(checkpoint);
        let options = &lowered.manifest.options;
        let weights = MeasuredWeights::new(&calibrated);
        let mut built = builder.build(&lowered.graph, options, &weights, directory.path(), &progress)?;
        for LoweredComponent { component, graph, .. } in &lowered.components {
            built.extend(builder.build_component(
                *component,
                graph,
                options,
                &weights,
                directory.path(),
                &progress,
            )?);
        }
        if let Some(losses) = weights.losses() {
            losses.lines().into_iter().for_each(|line| operation.log(line));
            let mut passes = lowered.manifest.passes.iter_mut();
            passes
                .find(|report| report.pass == WEIGHT_ONLY_QUANTIZATION)
                .into_iter()
                .for_each(|report| losses.report(report));
        }
        let mut files: Vec<(String, PathBuf)> =
            built.into_iter().map(|file| (file.name, file.path)).collect();
        write_metadata(checkpoint, &lowered, directory.path(), &mut files)?;
        operation.report(Stage::Upload, 0, None);
        let progress = UploadProgress::new(Arc::clone(operation));
        Ok(self.store.publish(lowered.manifest, &files, &progress).await?)
    }
}

/// Rounds the matrices that are to be calibrated.
fn calibrate(
    checkpoint: &Checkpoint,
    lowered: &Lowered,
    directory: &Path,
    operation: &Arc<Operation>,
) -> Result<Calibrated, CalibrationError> {
    if lowered.to_calibrate.is_empty() {
        return Ok(Calibrated::default());
    }
    let started = Instant::now();
    let Manifest { info, options, .. } = &lowered.manifest;
    let text = Text {
        sequences: CALIBRATION_SEQUENCES,
        tokens: CALIBRATION_TOKENS.min(options.max_seq_len),
        first: info.bos_token_id.or(info.eos_token_ids.first().copied()).unwrap_or(0),
    };
    let subject =
        Subject { graph: &lowered.source_graph, source: checkpoint, targets: &lowered.to_calibrate };
    let progress = CalibrationProgress::new(Arc::clone(operation));
    let calibrated = roundhouse_calibration::calibrate(subject, text, directory, &progress)?;
    operation.log(format!("{} matrices calibrated in {:.2?}", calibrated.count(), started.elapsed()));
    Ok(calibrated)
}

/// Config to lowered graph, and the manifest that goes with it, but for its blobs.
fn lower(
    checkpoint: &Checkpoint,
    builder: &dyn Builder,
    request: &CompileRequest,
) -> Result<Lowered, CompileError> {
    let longest = request.max_seq_len.unwrap_or(DEFAULT_MAX_SEQ_LEN);
    let model = roundhouse_models::build_graph(&request.model, &checkpoint.config, checkpoint, longest)?;
    let mut info = model.info;
    if let Some(reason) =
        SUPPORT.refusal(&info.architecture, builder.kind(), request.precision, request.cache)
    {
        let (backend, what) = (builder.kind().name(), reason.to_owned());
        return Err(CompileError::Options(BackendError::Unsupported { backend, what }));
    }
    if let Some(tokens) = checkpoint.generation_config.as_ref().and_then(eos_token_ids) {
        info.eos_token_ids = tokens;
    }
    let limit = info.max_position_embeddings;
    let max_seq_len = request.max_seq_len.unwrap_or(limit.min(DEFAULT_MAX_SEQ_LEN));
    if max_seq_len == 0 || max_seq_len > limit {
        return Err(CompileError::Option {
            field: "max_seq_len",
            found: max_seq_len.to_string(),
            allowed: format!("1 to {limit} (max_position_embeddings)"),
        });
    }
    let options = EngineOptions {
        precision: request.precision,
        cache: request.cache,
        backend: builder.kind(),
        max_seq_len,
        max_batch_size: request.max_batch_size.unwrap_or(DEFAULT_MAX_BATCH_SIZE),
        all_logits: request.all_logits,
        quantization: request.quantization.unwrap_or_default(),
        targets: request.targets,
        tensorrt: request.tensorrt,
    };
    if options.max_batch_size == 0 {
        return Err(CompileError::Option {
            field: "max_batch_size",
            found: "0".to_owned(),
            allowed: "1 or more".to_owned(),
        });
    }
    let options = builder.resolve(&model.graph, options).map_err(CompileError::Options)?;
    let source_graph = model.graph.clone();
    let (graph, mut passes) = roundhouse_lowering::lower(model.graph, &options)?;
    let asked = (request.quantization, request.calibration);
    let Quantized { graph, quantization, report, notes: of_weights } =
        quantization::quantize(graph, asked, &options, checkpoint, builder)?;
    let to_calibrate = match quantization {
        WeightQuantization::Calibrated(_) => roundhouse_calibration::targets(&graph),
        _ => Vec::new(),
    };
    let options = EngineOptions { quantization, ..options };
    passes.extend(report);
    let (graph, fusions) = builder.lower(graph, &options)?;
    passes.extend(fusions);
    let mut memory_plan = builder.memory_plan(&graph, &options);
    let mut components = Vec::new();
    for (component, source_graph) in model.components {
        let (graph, lowered) = roundhouse_lowering::lower_component(source_graph.clone(), &options)?;
        let (graph, fusions) = builder.lower_component(graph, &options)?;
        let named =
            |report: PassReport| PassReport { pass: format!("{component}.{}", report.pass), ..report };
        passes.extend(lowered.into_iter().chain(fusions).map(named));
        memory_plan = memory_plan.with_component(builder.component_memory_plan(&graph, &options));
        components.push(LoweredComponent { component, graph, source_graph });
    }
    let (target, backend_version) = (builder.target(&options), builder.version());
    let key = EngineKey::new(&KeyInputs {
        checkpoint_digest: &checkpoint.digest,
        options: &options,
        backend_version: &backend_version,
        target: &target,
        compiler_version: COMPILER_VERSION,
    })?;
    let manifest = Manifest {
        format: Manifest::FORMAT,
        key,
        model: request.model.clone(),
        revision: checkpoint.revision.clone(),
        checkpoint_digest: checkpoint.digest.clone(),
        info,
        options,
        target,
        backend_version,
        compiler_version: COMPILER_VERSION.to_owned(),
        passes,
        memory_plan,
        blobs: Vec::new(),
        created_unix_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
    };
    let mut notes = of_weights;
    if !model.ignored_fields.is_empty() {
        notes.push(format!("fields of config.json without a meaning: {}", model.ignored_fields.join(", ")));
    }
    Ok(Lowered { graph, source_graph, components, manifest, to_calibrate, notes })
}

/// `eos_token_id` of generation_config.json: a number or a list.
fn eos_token_ids(generation_config: &serde_json::Value) -> Option<Vec<u32>> {
    let number = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match generation_config.get("eos_token_id")? {
        serde_json::Value::Array(ids) => ids.iter().map(number).collect(),
        value => number(value).map(|id| vec![id]),
    }
}

/// Writes the files that every engine has beside what its builder made.
fn write_metadata(
    checkpoint: &Checkpoint,
    lowered: &Lowered,
    directory: &Path,
    files: &mut Vec<(String, PathBuf)>,
) -> Result<(), CompileError> {
    let mut metadata = vec![
        (blob_names::SOURCE_GRAPH, Some(serde_json::to_vec(&lowered.source_graph)?)),
        (blob_names::CONFIG, Some(serde_json::to_vec(&checkpoint.config)?)),
        (blob_names::TOKENIZER, checkpoint.tokenizer_json.clone()),
        (
            blob_names::CHAT_TEMPLATE,
            checkpoint.chat_template.as_ref().map(|template| template.as_bytes().to_vec()),
        ),
    ];
    let of_images = checkpoint.preprocessor_config.as_ref().filter(|_| !lowered.components.is_empty());
    for (name, value) in [
        (blob_names::TOKENIZER_CONFIG, checkpoint.tokenizer_config.as_ref()),
        (blob_names::GENERATION_CONFIG, checkpoint.generation_config.as_ref()),
        (blob_names::PREPROCESSOR_CONFIG, of_images),
    ] {
        metadata.push((name, value.map(serde_json::to_vec).transpose()?));
    }
    let mut metadata: Vec<(String, Option<Vec<u8>>)> =
        metadata.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    for LoweredComponent { component, source_graph, .. } in &lowered.components {
        let name = blob_names::of_component(*component, blob_names::SOURCE_GRAPH);
        metadata.push((name, Some(serde_json::to_vec(source_graph)?)));
    }
    for (name, bytes) in metadata {
        // A blob of no bytes says no more than its absence.
        let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else { continue };
        let path = directory.join(&name);
        std::fs::write(&path, bytes)
            .map_err(|source| CompileError::Io { path: path.display().to_string(), source })?;
        files.push((name, path));
    }
    Ok(())
}

/// Runs `work` unless the operation is cancelled first.
async fn unless_cancelled<T, E>(
    operation: &Operation,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, CompileError>
where
    CompileError: From<E>,
{
    tokio::select! {
        result = work => Ok(result?),
        () = operation.cancellation().cancelled() => Err(CompileError::Cancelled),
    }
}

#[cfg(test)]
mod tests;
