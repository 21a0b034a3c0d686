//! The builder's side of a backend.

use std::path::{Path, PathBuf};

use roundhouse_engine::{BackendKind, Component, EngineOptions, MemoryPlan, Target};
use roundhouse_graph::{Graph, PassReport, QuantizedLinearAttributes};

use crate::{BackendError, WeightSource};

/// Where a builder says how far it is, and learns that it should stop.
pub trait BuildProgress: Send + Sync {
    /// Reports bytes of engine written of the total.
    ///
    /// # Errors
    /// [`BackendError::Cancelled`] when the build should stop.
    fn bytes(&self, done: u64, total: u64) -> Result<(), BackendError>;

    /// Passes on a line of the builder's log.
    fn log(&self, line: &str);
}

/// A file that a builder made, to become a blob of the engine.
#[derive(Debug, Clone)]
pub struct BuiltFile {
    /// Its role, one of `roundhouse_engine::blob_names` or the backend's own.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Makes engines of graphs.
pub trait Builder: Send + Sync {
    /// Which backend.
    fn kind(&self) -> BackendKind;

    /// Its exact version: what, changed, makes old engines different ones.
    fn version(&self) -> String;

    /// The target that it builds for with these options.
    fn target(&self, options: &EngineOptions) -> Target;

    /// The options with everything filled in that the request left to the backend. `graph` is the model's own, before
    /// any pass.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] or [`BackendError::InvalidArgument`] for options that it cannot build.
    fn resolve(&self, graph: &Graph, options: EngineOptions) -> Result<EngineOptions, BackendError> {
        let _ = graph;
        if !options.targets.is_empty() {
            let targets = options.targets.names().join(", ");
            return Err(BackendError::InvalidArgument(format!(
                "the {} backend has no use for compute capabilities ({targets})",
                self.kind()
            )));
        }
        Ok(options)
    }

    /// Whether it multiplies with weights that are quantised like this, in an engine of these options. Weights that it
    /// does not multiply with are decoded to the engine's precision.
    fn multiplies_quantized(&self, attributes: QuantizedLinearAttributes, options: &EngineOptions) -> bool {
        let _ = (attributes, options);
        false
    }

    /// Rewrites a lowered graph into the form that this backend runs best.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] names the first node that it cannot run, [`BackendError::UnsupportedNodes`] all of
    /// them.
    fn lower(&self, graph: Graph, options: &EngineOptions) -> Result<(Graph, Vec<PassReport>), BackendError>;

    /// The memory of a process that loads an engine of this graph.
    fn memory_plan(&self, graph: &Graph, options: &EngineOptions) -> MemoryPlan;

    /// Writes the engine's files into `directory`, weights streamed: peak memory stays within a few of the largest
    /// tensors. `graph` is what [`Builder::lower`] returned.
    ///
    /// # Errors
    /// When a weight cannot be read, a file cannot be written, or the build is cancelled.
    fn build(
        &self,
        graph: &Graph,
        options: &EngineOptions,
        weights: &dyn WeightSource,
        directory: &Path,
        progress: &dyn BuildProgress,
    ) -> Result<Vec<BuiltFile>, BackendError>;

    /// As [`Builder::lower`], for the graph of a component.
    ///
    /// # Errors
    /// As [`Builder::lower`]; for all graphs where the backend runs no components, which is the default.
    fn lower_component(
        &self,
        graph: Graph,
        options: &EngineOptions,
    ) -> Result<(Graph, Vec<PassReport>), BackendError> {
        let _ = (graph, options);
        Err(no_components(self.kind()))
    }

    /// What a loaded component takes beside the language model, in a process that loads an engine.
    fn component_memory_plan(&self, graph: &Graph, options: &EngineOptions) -> MemoryPlan {
        let _ = (graph, options);
        MemoryPlan::default()
    }

    /// As [`Builder::build`], for what [`Builder::lower_component`] returned; files are named by
    /// [`roundhouse_engine::blob_names::of_component`].
    ///
    /// # Errors
    /// As [`Builder::build`].
    fn build_component(
        &self,
        component: Component,
        graph: &Graph,
        options: &EngineOptions,
        weights: &dyn WeightSource,
        directory: &Path,
        progress: &dyn BuildProgress,
    ) -> Result<Vec<BuiltFile>, BackendError> {
        let _ = (component, graph, options, weights, directory, progress);
        Err(no_components(self.kind()))
    }
}

fn no_components(kind: BackendKind) -> BackendError {
    BackendError::Unsupported { backend: kind.name(), what: "components beside a language model".to_owned() }
}
