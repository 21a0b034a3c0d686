//! From a graph to the files of an engine.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;

use roundhouse_backend::{BackendError, BuildProgress, BuiltFile, WeightSource};
use roundhouse_engine::{ComputeCapabilities, EngineOptions, TensorRtOptions, WeightPlacement, blob_names};
use roundhouse_graph::Graph;
use roundhouse_tensorrt_converters::Converted;
use roundhouse_tensorrt_library::{BuildFlags, BuildSession, Library, TensorRtError, with_log_sink};
use roundhouse_weights::{MappedWeights, PartialFile, WeightsLayout, write_weights};

use crate::error::BACKEND;
use crate::progress::{self, Reporter};
use crate::replay::Weights;
use crate::{ReplayError, read_back, replay};

/// Bytes of a plan besides its weights, as far as progress goes: code for a few GPUs.
const PLAN_CODE_BYTES: u64 = 8 << 20;
/// The weights file of a build that embeds it. It is removed as soon as it is mapped.
const EMBEDDED_WEIGHTS: &str = "embedded.safetensors";

/// One build.
pub(crate) struct Build<'a> {
    pub(crate) library: &'a Library,
    pub(crate) graph: &'a Graph,
    pub(crate) options: &'a EngineOptions,
    pub(crate) tensorrt: TensorRtOptions,
    pub(crate) weights: &'a dyn WeightSource,
    pub(crate) directory: &'a Path,
    pub(crate) progress: &'a dyn BuildProgress,
}

/// Bytes written before a plan, and those of the whole build as far as they are known.
#[derive(Clone, Copy)]
struct Written {
    before: u64,
    total: u64,
}

impl Build<'_> {
    /// Writes the files of the engine. No file is left when it fails.
    pub(crate) fn run(self, converted: &Converted) -> Result<Vec<BuiltFile>, BackendError> {
        for choice in &converted.attention {
            self.progress.log(&format!("attention {:?}: {}, {}", choice.node, choice.form, choice.reason));
        }
        let separate = self.tensorrt.weights == WeightPlacement::Separate;
        let layout = WeightsLayout::new(self.graph)?;
        let network_json = converted.network.to_json();
        let network_json = network_json
            .map_err(|error| BackendError::Device { backend: BACKEND, what: error.to_string() })?;
        let graph_json = self.graph.to_json()?;
        let weights = layout.file_bytes();
        let plans = self.plans(separate);
        let plan = PLAN_CODE_BYTES + if separate { 0 } else { weights };
        let total = weights + plan * plans.len() as u64;

        let mut files = Files::new(self.directory);
        let mapped = if separate {
            self.write_weights(&layout, files.start(blob_names::WEIGHTS)?, total)?;
            None
        } else {
            Some(self.map_weights(&layout, total)?)
        };
        let source = mapped.as_ref().map_or(Weights::Placeholders, Weights::Mapped);
        let mut done = weights;
        for (name, targets) in plans {
            let plan = Plan {
                library: self.library,
                targets,
                weight_streaming: self.tensorrt.weight_streaming,
                converted,
                weights: source,
            };
            let bytes = self.build_plan(&plan, files.start(&name)?, Written { before: done, total })?;
            self.progress.log(&format!("{name} for {} has {bytes} bytes", targets.names().join(", ")));
            done += bytes;
        }
        files.start(blob_names::NETWORK)?.write(&network_json)?;
        files.start(blob_names::GRAPH)?.write(graph_json.as_bytes())?;
        self.progress.bytes(done, done)?;
        files.finish()
    }

    /// The plans of the engine: one, or, since TensorRT makes plans without weights for one GPU at a time, one for each.
    fn plans(&self, separate: bool) -> Vec<(String, ComputeCapabilities)> {
        let targets = self.options.targets;
        if !separate || targets.iter().count() < 2 {
            return vec![(blob_names::PLAN.to_owned(), targets)];
        }
        targets.iter().map(|target| (blob_names::plan_for(target), [target].into_iter().collect())).collect()
    }

    fn write_weights(
        &self,
        layout: &WeightsLayout<'_>,
        file: &mut PartialFile,
        total: u64,
    ) -> Result<(), BackendError> {
        write_weights(layout, self.weights, file, &|done| self.progress.bytes(done, total))
    }

    /// The weights in a file that has no name any more: it is gone when the mapping is.
    fn map_weights(&self, layout: &WeightsLayout<'_>, total: u64) -> Result<MappedWeights, BackendError> {
        let path = self.directory.join(EMBEDDED_WEIGHTS);
        let mut file = PartialFile::create(&path)?;
        self.write_weights(layout, &mut file, total)?;
        file.finish()?;
        let mapped = MappedWeights::open(&path, self.graph, "of this build");
        let removed = fs::remove_file(&path);
        let mapped = mapped?;
        removed.map_err(|source| BackendError::Io { path: path.display().to_string(), source })?;
        Ok(mapped)
    }

    /// Builds a plan into its file; how many bytes it has.
    fn build_plan(
        &self,
        plan: &Plan<'_>,
        file: &mut PartialFile,
        written: Written,
    ) -> Result<u64, BackendError> {
        let (reporter, listener) = progress::channel();
        thread::scope(|scope| {
            // A thread of its own: TensorRT's callbacks and log lines come on the thread that builds.
            let build = scope.spawn(move || {
                let sink = reporter.sink();
                with_log_sink(sink, || plan.build(&reporter, file))
            });
            let passed_on = listener.pass_on(self.progress, written.before, written.total);
            let built = build.join().unwrap_or_else(|_| {
                let what = "the thread that builds panicked".to_owned();
                Err(BackendError::Device { backend: BACKEND, what })
            });
            // Why a build was stopped says more than that it was.
            passed_on.and(built)
        })
    }
}

/// What makes a plan.
struct Plan<'a> {
    library: &'a Library,
    targets: ComputeCapabilities,
    weight_streaming: bool,
    converted: &'a Converted,
    weights: Weights<'a>,
}

impl Plan<'_> {
    fn build(&self, reporter: &Reporter, file: &mut PartialFile) -> Result<u64, BackendError> {
        let session = self.define(reporter)?;
        let mut written = 0;
        let mut failed = None;
        let built = session.build(&mut |piece| {
            if let Err(error) = file.write(piece) {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            written += piece.len() as u64;
            reporter.written(written);
            reporter.flow()
        });
        match (built, failed) {
            (Err(TensorRtError::Cancelled), Some(error)) => Err(error),
            (Err(error), _) => Err(ReplayError::from(error).into()),
            (Ok(()), _) => Ok(written),
        }
    }

    /// The network in TensorRT, compared with what it was made from, and how it is to be built.
    fn define(&self, reporter: &Reporter) -> Result<BuildSession<'_>, ReplayError> {
        let network = &self.converted.network;
        let mut session = BuildSession::new(self.library)?;
        session.set_monitor(reporter.monitor())?;
        session.set_targets(self.targets)?;
        session.set_flags(BuildFlags {
            separate_weights: matches!(self.weights, Weights::Placeholders),
            weight_streaming: self.weight_streaming,
        });
        replay::replay(&mut session, network, self.weights)?;
        read_back::compare(&session, network, self.weights)?;
        reporter.line(format!(
            "TensorRT holds {} layers and {} profiles as converted",
            network.layers().len(),
            network.profiles.len()
        ));
        Ok(session)
    }
}

/// The files of an engine, which get their names together.
struct Files<'a> {
    directory: &'a Path,
    started: Vec<(PartialFile, BuiltFile)>,
}

impl<'a> Files<'a> {
    fn new(directory: &'a Path) -> Self {
        Self { directory, started: Vec::new() }
    }

    fn start(&mut self, name: &str) -> Result<&mut PartialFile, BackendError> {
        let path = self.directory.join(name);
        let file = PartialFile::create(&path)?;
        self.started.push((file, BuiltFile { name: name.to_owned(), path }));
        let started = self.started.last_mut().map(|(file, _)| file);
        started.ok_or_else(|| BackendError::InvalidArgument(format!("{name} was not started")))
    }

    fn finish(self) -> Result<Vec<BuiltFile>, BackendError> {
        let mut built: Vec<BuiltFile> = Vec::new();
        for (file, description) in self.started {
            if let Err(error) = file.finish() {
                remove(built.iter().map(|file| &file.path));
                return Err(error);
            }
            built.push(description);
        }
        Ok(built)
    }
}

fn remove<'a>(paths: impl Iterator<Item = &'a PathBuf>) {
    for path in paths {
        // The error that led here says more.
        let _ = fs::remove_file(path);
    }
}
