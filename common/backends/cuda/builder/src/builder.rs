//! The builder.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use roundhouse_backend::{BackendError, BuildProgress, Builder, BuiltFile, WeightSource};
use roundhouse_cuda_kernels::{Kernel, KernelCompiler, Weight};
use roundhouse_cuda_plan::{LaunchContext, Plan, Step, kernels, scratch_bytes};
use roundhouse_engine::{
    BackendKind, ComputeCapabilities, ComputeCapability, EngineOptions, MemoryPlan, Target, blob_names,
};
use roundhouse_graph::{Graph, PassReport, QuantizedLinearAttributes};
use roundhouse_weights::{PartialFile, WeightsLayout, write_weights};

use crate::images::{PLAN, image_name};
use crate::version::backend_version;

const BACKEND: &str = BackendKind::Cuda.name();

/// Makes engines for NVIDIA GPUs.
#[derive(Clone)]
pub struct CudaBuilder {
    compiler: Arc<dyn KernelCompiler>,
    /// What engines are built for where the request does not say.
    default_targets: ComputeCapabilities,
}

impl CudaBuilder {
    /// A builder. Engines whose request names no targets are for `gpu` where there is one and the compiler makes code for
    /// it, else for all that the compiler makes code for.
    #[must_use]
    pub fn new(compiler: Arc<dyn KernelCompiler>, gpu: Option<ComputeCapability>) -> Self {
        let all = compiler.targets();
        let own = gpu.and_then(|gpu| crate::image_for(all.iter().copied(), gpu));
        let default_targets =
            own.map_or_else(|| all.into_iter().collect(), |own| [own].into_iter().collect());
        Self { compiler, default_targets }
    }

    fn targets(&self, options: &EngineOptions) -> ComputeCapabilities {
        if options.targets.is_empty() { self.default_targets } else { options.targets }
    }

    /// An image of kernels for each target, compiled side by side.
    fn images(
        &self,
        plan: &Plan,
        targets: ComputeCapabilities,
    ) -> Result<BTreeMap<ComputeCapability, Vec<u8>>, BackendError> {
        let compile = |target: ComputeCapability| -> Result<Vec<u8>, BackendError> {
            let kernels: Vec<Kernel> = kernels(plan, target)?;
            let image = self.compiler.compile(&kernels, target);
            image.map_err(|error| BackendError::Device { backend: BACKEND, what: error.to_string() })
        };
        thread::scope(|scope| {
            let jobs: Vec<_> =
                targets.iter().map(|target| (target, scope.spawn(move || compile(target)))).collect();
            let finish = |(target, job): (ComputeCapability, thread::ScopedJoinHandle<'_, _>)| {
                let image = job.join().unwrap_or_else(|_| {
                    let what = format!("the thread that compiles for {target} panicked");
                    Err(BackendError::Device { backend: BACKEND, what })
                });
                image.map(|image| (target, image))
            };
            jobs.into_iter().map(finish).collect()
        })
    }
}

impl Builder for CudaBuilder {
    fn kind(&self) -> BackendKind {
        BackendKind::Cuda
    }

    fn version(&self) -> String {
        backend_version(&self.compiler.version())
    }

    fn target(&self, options: &EngineOptions) -> Target {
        // Code for the processor is the runtime's own.
        let compute_capabilities = self.targets(options).names();
        Target { os: "any".to_owned(), arch: "any".to_owned(), compute_capabilities }
    }

    fn resolve(&self, _graph: &Graph, options: EngineOptions) -> Result<EngineOptions, BackendError> {
        let all: ComputeCapabilities = self.compiler.targets().into_iter().collect();
        let targets = self.targets(&options);
        let unknown: Vec<String> =
            targets.iter().filter(|&target| !all.contains(target)).map(|target| target.to_string()).collect();
        if !unknown.is_empty() {
            return Err(BackendError::InvalidArgument(format!(
                "the {BACKEND} backend builds for {}, not for {}",
                all.names().join(", "),
                unknown.join(", ")
            )));
        }
        Ok(EngineOptions { targets, ..options })
    }

    /// Every format on every target: kernels read E4M3 without instructions for it. Groups of other sizes would be multiplied
    /// an element at a time.
    fn multiplies_quantized(&self, attributes: QuantizedLinearAttributes, _: &EngineOptions) -> bool {
        Weight::has_fast_groups(attributes.quantization.group_size)
    }

    fn lower(&self, graph: Graph, options: &EngineOptions) -> Result<(Graph, Vec<PassReport>), BackendError> {
        let plan = Plan::new(&graph, options)?;
        for target in self.targets(options).iter() {
            kernels(&plan, target)?;
        }
        WeightsLayout::new(&graph)?;
        Ok((graph, vec![report(&plan)]))
    }

    /// Zero for a graph that [`Builder::lower`] refuses.
    fn memory_plan(&self, graph: &Graph, options: &EngineOptions) -> MemoryPlan {
        let Ok(plan) = Plan::new(graph, options) else { return MemoryPlan::default() };
        let scratch = self
            .targets(options)
            .iter()
            .filter_map(|target| scratch_bytes(&plan, LaunchContext::nominal(target)).ok());
        plan.memory(scratch.max().unwrap_or(0))
    }

    fn build(
        &self,
        graph: &Graph,
        options: &EngineOptions,
        weights: &dyn WeightSource,
        directory: &Path,
        progress: &dyn BuildProgress,
    ) -> Result<Vec<BuiltFile>, BackendError> {
        let plan = Plan::new(graph, options)?;
        let layout = WeightsLayout::new(graph)?;
        let plan_json = serde_json::to_vec(&plan).map_err(|error| BackendError::Device {
            backend: BACKEND,
            what: format!("the plan cannot be written: {error}"),
        })?;
        let images = self.images(&plan, self.targets(options))?;
        for (target, image) in &images {
            progress.log(&format!("compiled the kernels for {target}: {} bytes", image.len()));
        }
        let mut files =
            vec![(blob_names::GRAPH.to_owned(), graph.to_json()?.into_bytes()), (PLAN.to_owned(), plan_json)];
        files.extend(images.into_iter().map(|(target, image)| (image_name(target), image)));
        let total = layout.file_bytes() + files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();

        let weights_path = directory.join(blob_names::WEIGHTS);
        let mut weights_file = PartialFile::create(&weights_path)?;
        write_weights(&layout, weights, &mut weights_file, &|done| progress.bytes(done, total))?;
        let mut written = Vec::new();
        for (name, bytes) in files {
            let path = directory.join(&name);
            let mut file = PartialFile::create(&path)?;
            file.write(&bytes)?;
            written.push((file, BuiltFile { name, path }));
        }
        progress.bytes(total, total)?;
        weights_file.finish()?;
        let mut built = vec![BuiltFile { name: blob_names::WEIGHTS.to_owned(), path: weights_path }];
        for (file, description) in written {
            file.finish()?;
            built.push(description);
        }
        progress.log(&format!("wrote {total} bytes for {} weights", graph.weights().count()));
        Ok(built)
    }
}

/// What the plan made of the graph, as counts.
fn report(plan: &Plan) -> PassReport {
    let count = |counts: fn(&Step) -> bool| plan.steps.iter().filter(|step| counts(step)).count() as u64;
    PassReport::new(
        "cuda_fusion",
        [
            ("steps", plan.steps.len() as u64),
            ("products", count(|step| matches!(step, Step::Linear(_)))),
            (
                "products_with_norm",
                count(|step| matches!(step, Step::Linear(linear) if linear.norm.is_some())),
            ),
            ("attentions", count(|step| matches!(step, Step::Attend(_)))),
        ],
    )
}
