//! Makes engines for the CPU.

use std::path::Path;

use roundhouse_backend::{BackendError, BuildProgress, Builder, BuiltFile, WeightSource};
use roundhouse_engine::{BackendKind, CacheKind, Component, EngineOptions, MemoryPlan, Target, blob_names};
use roundhouse_graph::{Graph, PassReport, QuantizedLinearAttributes};
use roundhouse_weights::{PartialFile, WeightsLayout, write_weights};

use crate::error::unsupported;
use crate::fusion::fuse;
use crate::limits::StepLimits;
use crate::plan::Plan;

/// What, changed, makes engines built before unusable: the ops that [`CpuBuilder::lower`] makes and the form of the
/// weights file.
const ENGINE_FORMAT: u32 = 1;

/// Makes engines for the CPU: the graph after this backend's fusions, and its weights in its precision, row-major as the
/// graph names them. Both are the same for every processor; kernels are chosen when an engine is loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuBuilder {}

impl CpuBuilder {
    /// A builder.
    #[must_use]
    pub const fn new() -> Self {
        Self {}
    }
}

/// The version that [`CpuBuilder::version`] gives and a runtime asks for.
pub(crate) fn backend_version() -> String {
    format!("{}+engine.{ENGINE_FORMAT}", env!("CARGO_PKG_VERSION"))
}

/// What an engine's graph must be for its options.
pub(crate) fn compile_plan(graph: &Graph, options: &EngineOptions) -> Result<Plan, BackendError> {
    let plan = Plan::new(graph, StepLimits::new(graph, options))?;
    let expected = match options.cache {
        CacheKind::StaticV1 | CacheKind::StaticV2 => CacheKind::StaticV2,
        other => other,
    };
    if plan.signature.mode != expected {
        return Err(unsupported(format!("a graph without the inputs of the cache {}", options.cache)));
    }
    Ok(plan)
}

/// The memory of a process that runs a plan over a weights file of `weight_bytes`.
pub(crate) fn plan_memory(graph: &Graph, plan: &Plan, weight_bytes: u64) -> MemoryPlan {
    MemoryPlan {
        kv_bytes_per_token: plan.signature.kv_bytes_per_token(),
        kv_rings: plan.signature.kv_rings(),
        ..component_memory(graph, plan, weight_bytes)
    }
}

/// The memory of a component over a weights file of `weight_bytes`.
pub(crate) fn component_memory(graph: &Graph, plan: &Plan, weight_bytes: u64) -> MemoryPlan {
    let constants = plan.constants.iter().map(|&id| {
        let dims = graph.value(id).shape.iter().map(|dim| dim.as_constant().unwrap_or(0).unsigned_abs());
        dims.product::<u64>() * size_of::<f32>() as u64
    });
    let workspace_bytes = plan.workspace_bytes() + plan.scratch_bytes() + constants.sum::<u64>();
    MemoryPlan { weight_bytes, workspace_bytes, ..MemoryPlan::default() }
}

/// Writes a graph and its weights under these roles.
fn write_files(
    graph: &Graph,
    [graph_name, weights_name]: [String; 2],
    weights: &dyn WeightSource,
    directory: &Path,
    progress: &dyn BuildProgress,
) -> Result<Vec<BuiltFile>, BackendError> {
    let layout = WeightsLayout::new(graph)?;
    let json = graph.to_json()?;
    let total = layout.file_bytes() + json.len() as u64;

    let (graph_path, weights_path) = (directory.join(&graph_name), directory.join(&weights_name));
    let mut weights_file = PartialFile::create(&weights_path)?;
    let mut graph_file = PartialFile::create(&graph_path)?;
    write_weights(&layout, weights, &mut weights_file, &|done| progress.bytes(done, total))?;
    graph_file.write(json.as_bytes())?;
    progress.bytes(total, total)?;
    weights_file.finish()?;
    graph_file.finish()?;
    progress.log(&format!("wrote {total} bytes for {} weights", graph.weights().count()));
    Ok(vec![
        BuiltFile { name: graph_name, path: graph_path },
        BuiltFile { name: weights_name, path: weights_path },
    ])
}

impl Builder for CpuBuilder {
    fn kind(&self) -> BackendKind {
        BackendKind::Cpu
    }

    fn version(&self) -> String {
        backend_version()
    }

    fn target(&self, _options: &EngineOptions) -> Target {
        Target { os: "any".to_owned(), arch: "any".to_owned(), compute_capabilities: Vec::new() }
    }

    fn multiplies_quantized(&self, _: QuantizedLinearAttributes, _: &EngineOptions) -> bool {
        true
    }

    fn lower(&self, graph: Graph, options: &EngineOptions) -> Result<(Graph, Vec<PassReport>), BackendError> {
        let (graph, reports) = fuse(graph)?;
        compile_plan(&graph, options)?;
        WeightsLayout::new(&graph)?;
        Ok((graph, reports))
    }

    /// Zero for a graph that [`Builder::lower`] refuses.
    fn memory_plan(&self, graph: &Graph, options: &EngineOptions) -> MemoryPlan {
        match (compile_plan(graph, options), WeightsLayout::new(graph)) {
            (Ok(plan), Ok(layout)) => plan_memory(graph, &plan, layout.file_bytes()),
            _ => MemoryPlan::default(),
        }
    }

    fn build(
        &self,
        graph: &Graph,
        options: &EngineOptions,
        weights: &dyn WeightSource,
        directory: &Path,
        progress: &dyn BuildProgress,
    ) -> Result<Vec<BuiltFile>, BackendError> {
        compile_plan(graph, options)?;
        let names = [blob_names::GRAPH, blob_names::WEIGHTS].map(str::to_owned);
        write_files(graph, names, weights, directory, progress)
    }

    fn lower_component(
        &self,
        graph: Graph,
        _: &EngineOptions,
    ) -> Result<(Graph, Vec<PassReport>), BackendError> {
        let (graph, reports) = fuse(graph)?;
        Plan::of_component(&graph)?;
        WeightsLayout::new(&graph)?;
        Ok((graph, reports))
    }

    /// Zero for a graph that [`Builder::lower_component`] refuses.
    fn component_memory_plan(&self, graph: &Graph, _: &EngineOptions) -> MemoryPlan {
        match (Plan::of_component(graph), WeightsLayout::new(graph)) {
            (Ok(plan), Ok(layout)) => component_memory(graph, &plan, layout.file_bytes()),
            _ => MemoryPlan::default(),
        }
    }

    fn build_component(
        &self,
        component: Component,
        graph: &Graph,
        _: &EngineOptions,
        weights: &dyn WeightSource,
        directory: &Path,
        progress: &dyn BuildProgress,
    ) -> Result<Vec<BuiltFile>, BackendError> {
        Plan::of_component(graph)?;
        let names = [blob_names::GRAPH, blob_names::WEIGHTS];
        let names = names.map(|name| blob_names::of_component(component, name));
        write_files(graph, names, weights, directory, progress)
    }
}
