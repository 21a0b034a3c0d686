//! The interpreter as a backend: what the suite and the passes are tested with where no real backend is at hand.

mod model;

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::ops::Range;
use std::path::Path;

use model::ReferenceModel;
use roundhouse_backend::{
    BackendError, BuildProgress, Builder, BuiltFile, Model, Runtime, WeightError, WeightSource, evaluate_rows,
};
use roundhouse_engine::{
    BackendKind, CacheKind, EngineFiles, EngineOptions, Manifest, MemoryPlan, Target, blob_names,
};
use roundhouse_graph::{Graph, PassReport, QuantizedLinearAttributes, Value, WeightExpr, verify};

use crate::{Interpreter, MemoryWeights, Rounding};

/// The weights as little-endian fp32, in the graph's order.
const WEIGHTS: &str = "weights.f32";

/// Builder and runtime over [`Interpreter`], with every value rounded to its dtype. It calls itself the CPU backend, of
/// a version of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReferenceBackend;

impl ReferenceBackend {
    const VERSION: &'static str = "reference-1";

    fn target() -> Target {
        Target {
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            compute_capabilities: Vec::new(),
        }
    }
}

impl Builder for ReferenceBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Cpu
    }

    fn version(&self) -> String {
        Self::VERSION.to_owned()
    }

    fn target(&self, _options: &EngineOptions) -> Target {
        Self::target()
    }

    fn multiplies_quantized(&self, _: QuantizedLinearAttributes, _: &EngineOptions) -> bool {
        true
    }

    fn lower(
        &self,
        graph: Graph,
        _options: &EngineOptions,
    ) -> Result<(Graph, Vec<PassReport>), BackendError> {
        verify(&graph)?;
        Ok((graph, Vec::new()))
    }

    fn memory_plan(&self, graph: &Graph, options: &EngineOptions) -> MemoryPlan {
        let bytes = |value: &Value| elements(value) * 4;
        let caches =
            graph.inputs().iter().map(|&id| graph.value(id)).filter(|value| model::is_cache(&value.name));
        let kv_bytes = match options.cache {
            CacheKind::None => 0,
            _ => caches.map(|cache| constant(cache, 1) * constant(cache, 3) * 4).sum(),
        };
        MemoryPlan {
            weight_bytes: graph.weights().map(|(_, value, _)| bytes(value)).sum(),
            kv_bytes_per_token: kv_bytes,
            kv_rings: Vec::new(),
            workspace_bytes: 0,
        }
    }

    fn build(
        &self,
        graph: &Graph,
        _options: &EngineOptions,
        weights: &dyn WeightSource,
        directory: &Path,
        progress: &dyn BuildProgress,
    ) -> Result<Vec<BuiltFile>, BackendError> {
        let graph_path = directory.join(blob_names::GRAPH);
        fs::write(&graph_path, graph.to_json()?).map_err(|source| io(&graph_path, source))?;
        let weights_path = directory.join(WEIGHTS);
        let mut file =
            BufWriter::new(File::create(&weights_path).map_err(|source| io(&weights_path, source))?);
        let total: u64 = graph.weights().map(|(_, value, _)| elements(value) * 4).sum();
        let mut done = 0;
        for (_, value, expr) in graph.weights() {
            progress.bytes(done, total)?;
            for number in numbers(value, expr, weights)? {
                file.write_all(&number.to_le_bytes()).map_err(|source| io(&weights_path, source))?;
                done += 4;
            }
        }
        file.flush().map_err(|source| io(&weights_path, source))?;
        progress.bytes(done, total)?;
        progress.log("interpreted, not compiled");
        let built = |name: &str, path| BuiltFile { name: name.to_owned(), path };
        Ok(vec![built(blob_names::GRAPH, graph_path), built(WEIGHTS, weights_path)])
    }
}

impl Runtime for ReferenceBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Cpu
    }

    fn check(&self, manifest: &Manifest) -> Result<(), BackendError> {
        let describe =
            |backend: BackendKind, version: &str, target: &Target| format!("{backend} {version} on {target}");
        let found = describe(manifest.options.backend, &manifest.backend_version, &manifest.target);
        let needed = describe(BackendKind::Cpu, Self::VERSION, &Self::target());
        if found == needed {
            return Ok(());
        }
        Err(BackendError::Incompatible { key: manifest.key.to_string(), found, needed })
    }

    fn load(&self, engine: &EngineFiles) -> Result<Box<dyn Model>, BackendError> {
        self.check(&engine.manifest)?;
        let graph_path = engine.path(blob_names::GRAPH)?;
        let json = fs::read_to_string(graph_path).map_err(|source| io(graph_path, source))?;
        let graph = Graph::from_json(&json)?;
        let weights_path = engine.path(WEIGHTS)?;
        let bytes = fs::read(weights_path).map_err(|source| io(weights_path, source))?;
        let expected: u64 = graph.weights().map(|(_, value, _)| elements(value) * 4).sum();
        if bytes.len() as u64 != expected {
            let what = format!("{WEIGHTS} has {} bytes, expected {expected}", bytes.len());
            return Err(BackendError::Corrupt { key: engine.manifest.key.to_string(), what });
        }
        let source = StoredWeights::new(&graph, &bytes);
        let interpreter = Interpreter::new(&source.graph, &source.tensors).map_err(model::device)?;
        let interpreter = interpreter.with_rounding(Rounding::Stored);
        Ok(Box::new(ReferenceModel::new(interpreter, &engine.manifest)))
    }
}

/// An engine's weights under the names of the graph's values, and the graph that reads them so.
struct StoredWeights {
    graph: Graph,
    tensors: MemoryWeights,
}

impl StoredWeights {
    fn new(graph: &Graph, bytes: &[u8]) -> Self {
        let mut numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut tensors = MemoryWeights::new();
        let mut rewriter = roundhouse_graph::Rewriter::new(graph.clone());
        for (id, value, _) in graph.weights() {
            let shape: Vec<usize> =
                (0..value.shape.len()).map(|axis| constant(value, axis) as usize).collect();
            let count = elements(value) as usize;
            tensors.insert(&value.name, &shape, numbers.by_ref().take(count).collect());
            // Cannot fail: the value is a weight.
            let _ = rewriter.set_weight_expr(id, WeightExpr::tensor(&value.name));
        }
        let graph = rewriter.finish().unwrap_or_else(|_| graph.clone());
        Self { graph, tensors }
    }
}

fn numbers(value: &Value, expr: &WeightExpr, source: &dyn WeightSource) -> Result<Vec<f32>, WeightError> {
    if let WeightExpr::Literal { values } = expr {
        return Ok(values.clone());
    }
    let mut numbers = vec![0.0; elements(value) as usize];
    let rows: Range<u64> = 0..if value.shape.is_empty() { 1 } else { constant(value, 0) };
    evaluate_rows(source, expr, rows, &mut numbers)?;
    Ok(numbers)
}

/// A dimension that verified as static; 0 for others.
fn constant(value: &Value, axis: usize) -> u64 {
    value
        .shape
        .get(axis)
        .and_then(|dim| dim.as_constant())
        .and_then(|dim| u64::try_from(dim).ok())
        .unwrap_or(0)
}

fn elements(value: &Value) -> u64 {
    (0..value.shape.len()).map(|axis| constant(value, axis)).product()
}

fn io(path: &Path, source: std::io::Error) -> BackendError {
    BackendError::Io { path: path.display().to_string(), source }
}
