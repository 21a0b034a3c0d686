//! From a tiny model to a loaded engine.

use std::collections::BTreeMap;

use roundhouse_backend::{
    BackendError, BuildProgress, Builder as _, Cache, LogitsRequest, Model, Runtime as _, Sequence,
};
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapabilities, EngineFiles, EngineKey, EngineOptions, KeyInputs, Manifest,
    Precision, WeightQuantization,
};
use roundhouse_tensorrt_runtime::TensorRtRuntime;
use tempfile::TempDir;

use roundhouse_tensorrt_host_device::HostMachine;
use roundhouse_tensorrt_host_device::NetworkBuilder;

/// A build nobody watches.
struct Unwatched;

impl BuildProgress for Unwatched {
    fn bytes(&self, _done: u64, _total: u64) -> Result<(), BackendError> {
        Ok(())
    }

    fn log(&self, _line: &str) {}
}

/// A loaded engine of a tiny Llama in fp16. The model goes before its files.
pub(crate) struct Loaded {
    pub(crate) model: Box<dyn Model>,
    pub(crate) machine: HostMachine,
    pub(crate) _runtime: TensorRtRuntime<HostMachine>,
    _directory: TempDir,
}

pub(crate) fn options(cache: CacheKind) -> EngineOptions {
    EngineOptions {
        precision: Precision::Fp16,
        cache,
        backend: BackendKind::TensorRt,
        max_seq_len: 32,
        max_batch_size: 4,
        all_logits: false,
        targets: ComputeCapabilities::NONE,
        quantization: WeightQuantization::None,
        tensorrt: None,
    }
}

/// The files of an engine, in a folder.
pub(crate) fn build(options: &EngineOptions) -> (EngineFiles, TempDir) {
    let (tiny, builder) = (TinyModel::llama(), NetworkBuilder::default());
    let (graph, passes) = roundhouse_lowering::lower(tiny.graph().unwrap(), options).unwrap();
    let directory = TempDir::new().unwrap();
    let weights = tiny.weights().unwrap();
    let built = builder.build(&graph, options, &weights, directory.path(), &Unwatched).unwrap();
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
        info: tiny.info(),
        options: *options,
        target,
        backend_version,
        compiler_version: "test".to_owned(),
        passes,
        memory_plan: builder.memory_plan(&graph, options),
        blobs: Vec::new(),
        created_unix_ms: 0,
    };
    (EngineFiles { manifest, paths }, directory)
}

pub(crate) fn load(options: &EngineOptions) -> Loaded {
    let (files, directory) = build(options);
    let machine = HostMachine::default();
    let runtime = TensorRtRuntime::on(machine.clone(), None);
    let model = runtime.load(&files).unwrap();
    Loaded { model, machine, _runtime: runtime, _directory: directory }
}

impl Loaded {
    pub(crate) fn cache(&self) -> Box<dyn Cache> {
        self.model.new_cache(32).unwrap()
    }

    /// One step over sequences; the last token's logits of each.
    pub(crate) fn step(
        &self,
        batch: &mut [(&mut Box<dyn Cache>, &[u32])],
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        let mut logits = vec![Vec::new(); batch.len()];
        let sequences = batch.iter_mut().zip(&mut logits).map(|((cache, tokens), logits)| Sequence {
            cache: &mut ***cache,
            tokens,
            request: LogitsRequest::Last,
            logits,
        });
        let mut sequences: Vec<Sequence<'_>> = sequences.collect();
        self.model.forward(&mut sequences)?;
        drop(sequences);
        Ok(logits)
    }

    /// The last token's logits of a sequence by itself.
    pub(crate) fn alone(&self, tokens: &[u32]) -> Vec<f32> {
        self.step(&mut [(&mut self.cache(), tokens)]).unwrap().remove(0)
    }
}
