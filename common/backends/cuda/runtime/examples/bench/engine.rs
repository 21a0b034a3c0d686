//! From a model to a loaded engine, as the compiler and an executor do it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::ensure;
use roundhouse_backend::{BackendError, BuildProgress, Builder, WeightSource};
use roundhouse_engine::{
    BackendKind, BlobRef, CacheKind, ComputeCapabilities, EngineFiles, EngineKey, EngineOptions, KeyInputs,
    Manifest, Precision, WeightQuantization,
};
use roundhouse_graph::{Graph, PassReport};
use roundhouse_lowering::{calibrated_quantization, lower, packed_weights, weight_only_quantization};
use roundhouse_models::build_graph;
use serde_json::Value;

/// Hex SHA-256 of nothing: these checkpoints and files have no digests of their own.
const NO_DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A build nobody watches or stops.
struct Unwatched;

impl BuildProgress for Unwatched {
    fn bytes(&self, _done: u64, _total: u64) -> Result<(), BackendError> {
        Ok(())
    }

    fn log(&self, _line: &str) {}
}

/// The options of an engine for the usual GPU of `builder`.
pub(crate) fn options(
    precision: Precision,
    cache: CacheKind,
    max_seq_len: u32,
    max_batch_size: u32,
    quantization: WeightQuantization,
) -> EngineOptions {
    EngineOptions {
        precision,
        cache,
        backend: BackendKind::Cuda,
        max_seq_len,
        max_batch_size,
        all_logits: false,
        quantization,
        targets: ComputeCapabilities::NONE,
        tensorrt: None,
    }
}

/// A model's graph with the weights that an engine of the options has.
pub(crate) fn lowered(
    graph: Graph,
    weights: &dyn WeightSource,
    builder: &dyn Builder,
    options: &EngineOptions,
) -> anyhow::Result<(Graph, Vec<PassReport>)> {
    let (graph, mut passes) = lower(graph, options)?;
    let (graph, pass) = match options.quantization {
        WeightQuantization::None => return Ok((graph, passes)),
        WeightQuantization::Compiler(attributes) => weight_only_quantization(graph, attributes)?,
        WeightQuantization::Calibrated(attributes) => calibrated_quantization(graph, attributes)?,
        WeightQuantization::Checkpoint => {
            packed_weights(graph, weights, &|attributes| builder.multiplies_quantized(attributes, options))?
        }
    };
    let quantized =
        ["quantized_linears", "packed_linears"].iter().filter_map(|count| pass.counts.get(*count));
    ensure!(quantized.sum::<u64>() > 0, "no weight of a product can be quantised so");
    passes.push(pass);
    Ok((graph, passes))
}

/// Builds an engine of the model of a config into a folder.
pub(crate) fn build(
    builder: &dyn Builder,
    name: &str,
    config: &Value,
    weights: &dyn WeightSource,
    options: &EngineOptions,
    folder: &Path,
) -> anyhow::Result<EngineFiles> {
    let model = build_graph(name, config, weights, options.max_seq_len)?;
    let options = builder.resolve(&model.graph, *options)?;
    let (graph, mut passes) = lowered(model.graph, weights, builder, &options)?;
    let (graph, own) = builder.lower(graph, &options)?;
    passes.extend(own);
    let built = builder.build(&graph, &options, weights, folder, &Unwatched)?;
    let paths: BTreeMap<_, _> = built.into_iter().map(|file| (file.name, file.path)).collect();
    let blobs = paths.iter().map(|(name, path)| {
        let size = std::fs::metadata(path)?.len();
        Ok(BlobRef { name: name.clone(), sha256: NO_DIGEST.to_owned(), size })
    });
    let (backend_version, target) = (builder.version(), builder.target(&options));
    let key = EngineKey::new(&KeyInputs {
        checkpoint_digest: NO_DIGEST,
        options: &options,
        backend_version: &backend_version,
        target: &target,
        compiler_version: "bench",
    })?;
    let manifest = Manifest {
        format: Manifest::FORMAT,
        key,
        model: name.to_owned(),
        revision: None,
        checkpoint_digest: NO_DIGEST.to_owned(),
        info: model.info,
        options,
        target,
        backend_version,
        compiler_version: "bench".to_owned(),
        passes,
        memory_plan: builder.memory_plan(&graph, &options),
        blobs: blobs.collect::<Result<_, std::io::Error>>()?,
        created_unix_ms: 0,
    };
    Ok(EngineFiles { manifest, paths })
}
