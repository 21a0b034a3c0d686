//! A loaded component.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use roundhouse_backend::{BackendError, ComponentModel, ComponentSignature, NamedTensor, OutputTensor};
use roundhouse_cpu_kernels::ThreadPool;
use roundhouse_engine::{Manifest, MemoryPlan};
use roundhouse_graph::Graph;
use roundhouse_weights::MappedWeights;

use crate::builder::component_memory;
use crate::exec::{Executor, Workspace};
use crate::model::reduction;
use crate::plan::Plan;

/// A loaded component.
pub(crate) struct CpuComponent {
    signature: ComponentSignature,
    executor: Executor,
    memory: MemoryPlan,
    /// Bytes that the constants and the workspace took after the last call, if more than planned.
    workspace_bytes: AtomicU64,
    /// One call at a time: all share the buffers.
    workspace: Mutex<Workspace>,
}

impl CpuComponent {
    /// Loads a component of an engine.
    pub(crate) fn load(
        manifest: &Manifest,
        graph: &Graph,
        weights: &Path,
        pool: Arc<ThreadPool>,
    ) -> Result<Self, BackendError> {
        let plan = Plan::of_component(graph)?;
        let weights = MappedWeights::open(weights, graph, manifest.key.as_str())?;
        let memory = component_memory(graph, &plan, weights.file_bytes());
        let reduction = reduction(manifest.options.precision);
        Ok(Self {
            signature: ComponentSignature::new(graph),
            executor: Executor::new(plan, graph, weights, pool, reduction)?,
            workspace_bytes: AtomicU64::new(memory.workspace_bytes),
            memory,
            workspace: Mutex::new(Workspace::default()),
        })
    }
}

impl ComponentModel for CpuComponent {
    fn memory_plan(&self) -> MemoryPlan {
        MemoryPlan { workspace_bytes: self.workspace_bytes.load(Ordering::Relaxed), ..self.memory.clone() }
    }

    fn run(&self, inputs: &[NamedTensor<'_>]) -> Result<OutputTensor, BackendError> {
        let inputs = self.signature.bind(inputs)?;
        let mut workspace = self.workspace.lock();
        let output = self.executor.run_component(&inputs, &mut workspace)?;
        let used = workspace.bytes() + self.executor.constant_bytes();
        self.workspace_bytes.fetch_max(used as u64, Ordering::Relaxed);
        Ok(output)
    }
}
