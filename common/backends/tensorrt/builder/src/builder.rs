//! The backend's builder.

use std::path::Path;

use roundhouse_backend::{BackendError, BuildProgress, Builder, BuiltFile, LibrarySearch, WeightSource};
use roundhouse_engine::{
    AttentionForm, BackendKind, EngineOptions, MemoryPlan, Target, TensorRtOptions, WeightPlacement,
};
use roundhouse_graph::{Graph, PassReport};
use roundhouse_tensorrt_converters::{Converted, convert};
use roundhouse_tensorrt_library::{Flavour, Library, LibraryError, backend_version};
use roundhouse_weights::WeightsLayout;

use crate::build::Build;
use crate::{memory, memory_plan, placement, targets};

/// Makes TensorRT engines, for GPUs that need not be here.
#[derive(Debug, Clone)]
pub struct TensorRtBuilder {
    library: Library,
    /// Bytes that a build may take, instead of what the system says.
    available_bytes: Option<u64>,
}

impl TensorRtBuilder {
    /// A builder with the library that a search finds.
    ///
    /// # Errors
    /// [`LibraryError`] says what was found where, and how to get what is needed.
    pub fn open(search: &LibrarySearch) -> Result<Self, LibraryError> {
        Ok(Self { library: Library::load(search)?, available_bytes: None })
    }

    /// The same builder on a machine with this much free memory, in bytes: it decides where weights go that the request
    /// leaves open.
    #[must_use]
    pub fn with_available_memory(mut self, bytes: u64) -> Self {
        self.available_bytes = Some(bytes);
        self
    }

    /// The library that it builds with.
    #[must_use]
    pub fn library(&self) -> &Library {
        &self.library
    }

    fn convert(&self, graph: &Graph, options: &EngineOptions) -> Result<Converted, BackendError> {
        Ok(convert(graph, options)?)
    }
}

impl Builder for TensorRtBuilder {
    fn kind(&self) -> BackendKind {
        BackendKind::TensorRt
    }

    fn version(&self) -> String {
        backend_version()
    }

    fn target(&self, options: &EngineOptions) -> Target {
        Target {
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            compute_capabilities: options.targets.names(),
        }
    }

    fn resolve(&self, graph: &Graph, options: EngineOptions) -> Result<EngineOptions, BackendError> {
        let mut tensorrt = options.tensorrt.unwrap_or_default();
        if tensorrt.weights == WeightPlacement::Auto {
            let available = self.available_bytes.or_else(memory::available_bytes);
            tensorrt.weights = placement::place(graph, options.precision, tensorrt.profiles, available);
        }
        let targets = targets::resolve(Flavour::COMPILED, options.targets, options.precision)?;
        Ok(EngineOptions { targets, tensorrt: Some(tensorrt), ..options })
    }

    /// The graph as it is: how it becomes a network is found out, and reported.
    fn lower(&self, graph: Graph, options: &EngineOptions) -> Result<(Graph, Vec<PassReport>), BackendError> {
        let converted = self.convert(&graph, options)?;
        WeightsLayout::new(&graph)?;
        let attention = |form| converted.attention.iter().filter(|choice| choice.form == form).count() as u64;
        let network = &converted.network;
        let report = PassReport::new(
            "tensorrt",
            [
                ("layers", network.layers().len() as u64),
                ("weights", network.weights().count() as u64),
                ("attention_fused", attention(AttentionForm::Fused)),
                ("attention_decomposed", attention(AttentionForm::Decomposed)),
                ("profiles", network.profiles.len() as u64),
            ],
        );
        Ok((graph, vec![report]))
    }

    /// Zero for a graph that [`Builder::lower`] refuses.
    fn memory_plan(&self, graph: &Graph, options: &EngineOptions) -> MemoryPlan {
        let converted = self.convert(graph, options);
        converted
            .map_or_else(|_| MemoryPlan::default(), |converted| memory_plan::plan(graph, &converted, options))
    }

    fn build(
        &self,
        graph: &Graph,
        options: &EngineOptions,
        weights: &dyn WeightSource,
        directory: &Path,
        progress: &dyn BuildProgress,
    ) -> Result<Vec<BuiltFile>, BackendError> {
        // Options that nobody resolved: the same as if the builder had been asked.
        let options = self.resolve(graph, *options)?;
        let tensorrt = options.tensorrt.unwrap_or(TensorRtOptions::default());
        let converted = self.convert(graph, &options)?;
        let build = Build {
            library: &self.library,
            graph,
            options: &options,
            tensorrt,
            weights,
            directory,
            progress,
        };
        build.run(&converted)
    }
}
