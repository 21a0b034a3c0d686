//! How weights are kept, from the request to the engine, with a backend that multiplies with what a test says.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use roundhouse_backend::{BuildProgress, BuiltFile, WeightSource};
use roundhouse_backend_conformance::ReferenceBackend;
use roundhouse_engine::{MemoryPlan, Target};
use roundhouse_graph::{Op, PassReport, Quantization, QuantizedLinearAttributes, WeightFormat};
use roundhouse_hub::HubConfig;
use roundhouse_store::StoreOptions;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tempfile::TempDir;

use super::*;
use crate::jobs::{Cursor, Update};

type Multiplies = fn(QuantizedLinearAttributes) -> bool;

/// The reference backend with quantised weights.
struct Quantising(Multiplies);

impl Builder for Quantising {
    fn kind(&self) -> BackendKind {
        ReferenceBackend.kind()
    }

    fn version(&self) -> String {
        ReferenceBackend.version()
    }

    fn target(&self, options: &EngineOptions) -> Target {
        Builder::target(&ReferenceBackend, options)
    }

    fn multiplies_quantized(&self, attributes: QuantizedLinearAttributes, _options: &EngineOptions) -> bool {
        (self.0)(attributes)
    }

    fn lower(&self, graph: Graph, options: &EngineOptions) -> Result<(Graph, Vec<PassReport>), BackendError> {
        ReferenceBackend.lower(graph, options)
    }

    fn memory_plan(&self, graph: &Graph, options: &EngineOptions) -> MemoryPlan {
        ReferenceBackend.memory_plan(graph, options)
    }

    fn build(
        &self,
        graph: &Graph,
        options: &EngineOptions,
        weights: &dyn WeightSource,
        directory: &Path,
        progress: &dyn BuildProgress,
    ) -> Result<Vec<BuiltFile>, BackendError> {
        ReferenceBackend.build(graph, options, weights, directory, progress)
    }
}

/// A pipeline over an empty store, and the models that its tests make.
struct Workshop {
    pipeline: Pipeline,
    folder: TempDir,
    calibrates: bool,
}

impl Workshop {
    fn new(multiplies: Multiplies) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hub = HubConfig {
            endpoint: "http://127.0.0.1:9".to_owned(),
            token: None,
            hub_cache: folder.path().join("hub"),
            cache: folder.path().join("checkpoints"),
            offline: true,
            local_paths: true,
            retry_delay: Duration::from_millis(1),
            object_store: BTreeMap::new(),
        };
        let store = folder.path().join("store").display().to_string();
        let store = EngineStore::open(&store, StoreOptions::default()).unwrap();
        let backends = Backends::with_cpu(Arc::new(Quantising(multiplies)));
        let pipeline = Pipeline::new(Checkpoints::new(hub), store, backends, folder.path().join("builds"));
        Self { pipeline, folder, calibrates: false }
    }

    /// What a compilation made, and its log.
    async fn compile(
        &self,
        model: &Path,
        quantization: Option<WeightQuantization>,
    ) -> (Result<Compiled, CompileError>, Vec<String>) {
        let request = CompileRequest {
            model: model.display().to_string(),
            revision: None,
            precision: Precision::Fp16,
            cache: CacheKind::InPlace,
            backend: BackendKind::Cpu,
            max_seq_len: None,
            max_batch_size: None,
            all_logits: false,
            quantization,
            calibration: Some(self.calibrates),
            targets: ComputeCapabilities::NONE,
            tensorrt: None,
            validate_only: false,
            force: false,
        };
        let operation = Operation::new("operations/1".to_owned(), request.model.clone());
        let compiled = self.pipeline.compile(&request, &operation).await;
        let news = operation.follow(&mut Cursor::default()).await;
        let line = |(_, update)| match update {
            Update::Log(line) => Some(line),
            Update::Pass(_) => None,
        };
        (compiled, news.updates.into_iter().filter_map(line).collect())
    }

    async fn manifest(&self, model: &Path, quantization: Option<WeightQuantization>) -> Manifest {
        self.compile(model, quantization).await.0.unwrap().manifest
    }

    /// How often each kind of product is in an engine.
    async fn products(&self, manifest: &Manifest) -> [usize; 2] {
        let json = self.pipeline.store().read_file(&manifest.key, blob_names::GRAPH, 1 << 20).await.unwrap();
        let graph = Graph::from_json(&String::from_utf8(json).unwrap()).unwrap();
        let count = |wanted: fn(&Op) -> bool| graph.nodes().filter(|(_, node)| wanted(&node.op)).count();
        [count(|op| *op == Op::Linear), count(|op| matches!(op, Op::QuantizedLinear(_)))]
    }

    /// The tiny Llama as a tool would write it with the weights of its layers in eight bits.
    fn quantised_model(&self) -> PathBuf {
        let copy = self.folder.path().join("quantised");
        std::fs::create_dir(&copy).unwrap();
        for file in std::fs::read_dir(tiny_llama()).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
        let config = copy.join("config.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        json["quantization_config"] = serde_json::json!({
            "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": null, "weights": {
                "num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false,
            }}},
        });
        std::fs::write(config, serde_json::to_vec(&json).unwrap()).unwrap();
        let path = copy.join("model.safetensors");
        let file = std::fs::read(&path).unwrap();
        let mut tensors = Vec::new();
        for (name, tensor) in SafeTensors::deserialize(&file).unwrap().iter() {
            let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
            if !name.ends_with("_proj.weight") {
                tensors.push((name.to_owned(), dtype, shape, tensor.data().to_vec()));
                continue;
            }
            // What the codes stand for makes no difference here.
            let codes = (0..shape.iter().product()).map(|index: usize| (index * 37 % 251) as u8);
            let scales = vec![1.0_f32 / 1024.0; shape[0]];
            let scales = scales.into_iter().flat_map(f32::to_le_bytes).collect();
            tensors.push((format!("{name}_scale"), Dtype::F32, vec![shape[0], 1], scales));
            tensors.push((name.to_owned(), Dtype::I8, shape, codes.collect()));
        }
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
        copy
    }
}

/// Seven products in each of two layers, and an output layer of its own.
fn tiny_llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny-llama-2")
}

const LAYERS: usize = 14;

fn made(format: WeightFormat, group_size: u32) -> Option<WeightQuantization> {
    let quantization = Quantization { format, group_size };
    let has_offsets = format == WeightFormat::Int4;
    Some(WeightQuantization::Compiler(QuantizedLinearAttributes { quantization, has_offsets }))
}

fn report<'a>(manifest: &'a Manifest, pass: &str) -> Option<&'a PassReport> {
    manifest.passes.iter().find(|report| report.pass == pass)
}

#[tokio::test]
async fn automatic_on_a_checkpoint_without_quantised_weights_is_the_same_engine_as_without() {
    let workshop = Workshop::new(|_| true);
    let (automatic, log) = workshop.compile(&tiny_llama(), None).await;
    let automatic = automatic.unwrap().manifest;
    assert_eq!(automatic.options.quantization, WeightQuantization::None);
    assert_eq!(report(&automatic, "packed_weights"), None);
    assert!(!log.iter().any(|line| line.contains("quantised")), "{log:?}");
    let without = workshop.compile(&tiny_llama(), Some(WeightQuantization::None)).await.0.unwrap();
    assert!(without.reused);
    assert_eq!(without.manifest.key, automatic.key);
    assert_eq!(workshop.products(&automatic).await, [LAYERS + 1, 0]);
}

#[tokio::test]
async fn automatic_keeps_what_the_checkpoint_has_and_the_backend_multiplies_with() {
    let workshop = Workshop::new(|attributes| attributes.quantization.format == WeightFormat::Int8);
    let model = workshop.quantised_model();
    let kept = workshop.manifest(&model, None).await;
    assert_eq!(kept.options.quantization, WeightQuantization::Checkpoint);
    let counts = &report(&kept, "packed_weights").unwrap().counts;
    assert_eq!((counts["packed_linears"], counts["left_linears"]), (LAYERS as u64, 1));
    assert_eq!(workshop.products(&kept).await, [1, LAYERS]);
    let asked = workshop.compile(&model, Some(WeightQuantization::Checkpoint)).await.0.unwrap();
    assert_eq!((asked.reused, asked.manifest.key), (true, kept.key.clone()));

    let decoded = workshop.manifest(&model, Some(WeightQuantization::None)).await;
    assert_ne!(decoded.key, kept.key);
    assert_eq!(workshop.products(&decoded).await, [LAYERS + 1, 0]);
}

#[tokio::test]
async fn a_backend_that_multiplies_with_none_gets_the_engine_without_and_says_so() {
    let workshop = Workshop::new(|_| false);
    let model = workshop.quantised_model();
    let (automatic, log) = workshop.compile(&model, None).await;
    let automatic = automatic.unwrap().manifest;
    assert_eq!(automatic.options.quantization, WeightQuantization::None);
    let counts = &report(&automatic, "packed_weights").unwrap().counts;
    assert_eq!((counts["packed_linears"], counts["left_by_backend"]), (0, LAYERS as u64));
    assert!(log.iter().any(|line| line.contains("14 quantised weights") && line.contains("cpu")), "{log:?}");
    let without = workshop.compile(&model, Some(WeightQuantization::None)).await.0.unwrap();
    assert_eq!((without.reused, without.manifest.key), (true, automatic.key));
}

#[tokio::test]
async fn what_the_compiler_quantises_says_what_it_lost() {
    let workshop = Workshop::new(|_| true);
    let mut errors = Vec::new();
    for (format, group_size, quantised) in [
        (WeightFormat::Int8, 32, LAYERS + 1),
        (WeightFormat::Int4, 32, LAYERS),
        (WeightFormat::Int4, 4, LAYERS),
    ] {
        let (compiled, log) = workshop.compile(&tiny_llama(), made(format, group_size)).await;
        let manifest = compiled.unwrap().manifest;
        assert_eq!(Some(manifest.options.quantization), made(format, group_size));
        assert_eq!(workshop.products(&manifest).await, [LAYERS + 1 - quantised, quantised]);
        let counts = &report(&manifest, "weight_only_quantization").unwrap().counts;
        let error = counts["relative_error_ppm"];
        let prefix = "relative_error_ppm of model.layers.";
        let named: Vec<u64> =
            counts.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, &error)| error).collect();
        assert_eq!(named.len(), 5, "{counts:?}");
        // The worst are worse than all together.
        assert!(named.iter().all(|&worst| worst >= error), "{counts:?}");
        let line = format!("relative error of {quantised} quantised weights: ");
        assert!(log.iter().any(|found| found.starts_with(&line)), "{log:?}");
        errors.push(error);
        // An engine that is there says it too.
        let again = workshop.compile(&tiny_llama(), made(format, group_size)).await.0.unwrap();
        assert!(again.reused);
        assert_eq!(report(&again.manifest, "weight_only_quantization").unwrap().counts, *counts);
    }
    // NumPy's rounding of the same weights loses 0.537 % and, with steps over the full range of each group, 7.84 %.
    let [int8, int4, fine] = errors[..] else { panic!("{errors:?}") };
    assert!((5_360..5_380).contains(&int8), "{errors:?}");
    assert!((74_000..78_384).contains(&int4) && fine < int4, "{errors:?}");
}

#[tokio::test]
async fn weights_that_are_quantised_already_are_quantised_from_what_they_decode_to() {
    let workshop = Workshop::new(|_| true);
    let model = workshop.quantised_model();
    let (compiled, log) = workshop.compile(&model, made(WeightFormat::Int4, 32)).await;
    let manifest = compiled.unwrap().manifest;
    assert_eq!(workshop.products(&manifest).await, [1, LAYERS]);
    assert!(log.iter().any(|line| line.contains("quantised already: int4:32")), "{log:?}");
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let no_int4: Multiplies = |attributes| attributes.quantization.format != WeightFormat::Int4;
    let workshop = Workshop::new(no_int4);
    let refused =
        async |model: PathBuf, quantization| workshop.compile(&model, quantization).await.0.unwrap_err();
    let option = |error: &CompileError| match error {
        CompileError::Option { field, .. } => *field,
        other => panic!("{other}"),
    };
    let checkpoint = Some(WeightQuantization::Checkpoint);
    let error = refused(tiny_llama(), checkpoint).await;
    assert_eq!(option(&error), "quantization.format");
    assert!(error.to_string().contains("checkpoint") && error.to_string().contains("no weights"), "{error}");

    let error = refused(tiny_llama(), made(WeightFormat::Int8, 128)).await;
    assert_eq!(option(&error), "quantization.group_size");
    assert!(error.to_string().contains("128") && error.to_string().contains("(64, 96)"), "{error}");

    let error = refused(tiny_llama(), made(WeightFormat::Int4, 32)).await;
    let CompileError::Options(BackendError::Unsupported { backend: "cpu", what }) = &error else {
        panic!("{error}")
    };
    assert!(what.contains("int4:32") && what.contains("fp16"), "{what}");

    let workshop = Workshop::new(|_| false);
    let error = workshop.compile(&workshop.quantised_model(), checkpoint).await.0.unwrap_err();
    assert_eq!(option(&error), "quantization.format");
    assert!(error.to_string().contains("cpu backend multiplies with none of its 14 quantised"), "{error}");
}

#[tokio::test]
async fn calibrated_weights_are_another_engine_with_some_in_eight_bits() {
    let mut workshop = Workshop::new(|_| true);
    let alone = workshop.manifest(&tiny_llama(), made(WeightFormat::Int4, 32)).await;
    workshop.calibrates = true;
    let (compiled, log) = workshop.compile(&tiny_llama(), made(WeightFormat::Int4, 32)).await;
    let manifest = compiled.unwrap().manifest;
    assert_eq!(manifest.options.quantization.to_string(), "int4:32:calibrated");
    assert_ne!(manifest.key, alone.key);
    // Queries, the output of attention, the gate and what it gates, in each of two layers.
    assert!(log.iter().any(|line| line.starts_with("8 matrices calibrated")), "{log:?}");
    assert!(log.iter().any(|line| line == "calibrated 4 of 4 parts of the model"), "{log:?}");
    let json = workshop.pipeline.store().read_file(&manifest.key, blob_names::GRAPH, 1 << 20).await.unwrap();
    let graph = Graph::from_json(&String::from_utf8(json).unwrap()).unwrap();
    let of = |format| {
        let is = |node: &roundhouse_graph::Node| match node.op {
            Op::QuantizedLinear(attributes) => attributes.quantization.format == format,
            _ => false,
        };
        graph.nodes().filter(|(_, node)| is(node)).count()
    };
    assert_eq!([WeightFormat::Int4, WeightFormat::Int8].map(of), [8, 6]);
    // Rounding that is made up for is further from the weights themselves.
    let error = |manifest: &Manifest| {
        let counts = &report(manifest, "weight_only_quantization").unwrap().counts;
        counts.iter().filter(|(name, _)| name.contains("_ppm of")).map(|(_, &error)| error).max().unwrap()
    };
    assert!(error(&manifest) > error(&alone));
    let again = workshop.compile(&tiny_llama(), made(WeightFormat::Int4, 32)).await.0.unwrap();
    assert!(again.reused);
}

#[tokio::test]
async fn calibration_needs_a_backend_that_multiplies_with_eight_bits_too() {
    let mut workshop = Workshop::new(|attributes| attributes.quantization.format == WeightFormat::Int4);
    workshop.calibrates = true;
    let error = workshop.compile(&tiny_llama(), made(WeightFormat::Int4, 32)).await.0.unwrap_err();
    assert!(error.to_string().contains("int8 beside int4:32"), "{error}");
}
