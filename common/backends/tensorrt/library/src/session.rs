//! One network, from its definition to its plan.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use roundhouse_engine::{ComputeCapabilities, ComputeCapability};
use roundhouse_tensorrt_network::DataType;
use trtx::network::{NetworkDefinition, Tensor};
use trtx::{Builder, BuilderConfig, BuilderFlag};

use crate::guard::PanicSlot;
use crate::raw::LayerView;
use crate::recorder::{ErrorRecorder, Recorder};
use crate::{Library, TensorRtError, device, flavour, process_logger, raw};

mod gate;
mod layers;
mod monitor;
mod profile;
mod shapes;

use gate::GATE;
pub use layers::{AttentionOperands, DimsOperand};
pub use monitor::BuildMonitor;
pub use shapes::Inferred;

/// The phase of a build that waits for others.
const WAITING: &str = "Waiting for builds with other targets";

/// A tensor of a session's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorHandle {
    session: u64,
    index: usize,
}

/// How a plan is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BuildFlags {
    /// The plan lacks its weights, which are refitted one by one at load: `kSTRIP_PLAN` and `kREFIT_INDIVIDUAL`. Every
    /// weight is a placeholder.
    pub separate_weights: bool,
    /// Weights may stay in host memory as the engine runs: `kWEIGHT_STREAMING`.
    pub weight_streaming: bool,
}

/// A network that is being defined, and what is needed to build it. `'w` is the lifetime of the weights that its
/// constants borrow.
///
/// Fields are dropped in their order: everything before the builder that made it, and all of it before the recorder that
/// it reports to. No part can be taken out.
///
/// Weights outlive the session that borrows them:
///
/// ```compile_fail,E0505
/// # use roundhouse_tensorrt_library::{BuildSession, TensorRtError};
/// # use roundhouse_tensorrt_network::DataType;
/// fn build<'w>(session: BuildSession<'w>, weights: &'w [u8]) -> Result<(), TensorRtError> {
///     session.build(&mut |_| std::ops::ControlFlow::Continue(()))
/// }
/// # fn define(mut session: BuildSession<'_>) -> Result<(), TensorRtError> {
/// let weights = vec![0_u8; 8];
/// let mut session = session;
/// session.add_constant("w", &[2], DataType::Float, &weights, Some("w"))?;
/// drop(weights);
/// session.build(&mut |_| std::ops::ControlFlow::Continue(()))
/// # }
/// ```
pub struct BuildSession<'w> {
    id: u64,
    tensors: Vec<Tensor<'w>>,
    inputs: Vec<profile::Input<'w>>,
    /// The layers that are constants without bytes.
    placeholders: HashSet<String>,
    network: NetworkDefinition<'w>,
    config: BuilderConfig<'static>,
    builder: Builder<'static>,
    errors: Arc<ErrorRecorder>,
    panics: Arc<PanicSlot>,
    cancelled: Arc<AtomicBool>,
    monitor: Option<Arc<monitor::Guarded>>,
    targets: ComputeCapabilities,
    flags: BuildFlags,
}

impl<'w> BuildSession<'w> {
    /// An empty network. The library proves that one is loaded.
    ///
    /// # Errors
    /// When TensorRT makes no builder; where a build needs a GPU, [`TensorRtError::Device`] without one.
    pub fn new(_library: &Library) -> Result<Self, TensorRtError> {
        if !crate::Flavour::COMPILED.names_targets() {
            // Without a driver such a library returns builders that point to nothing.
            device::compute_capabilities()?;
        }
        let errors = Arc::new(ErrorRecorder::default());
        let refused = |what: &str, error: &trtx::Error| TensorRtError::Refused {
            what: format!("{what} ({error})"),
            errors: errors.since(0),
        };
        let mut builder = Builder::new(process_logger()?).map_err(|error| refused("a builder", &error))?;
        builder
            .set_error_recorder(Box::new(Recorder(Arc::clone(&errors))))
            .map_err(|error| refused("an error recorder", &error))?;
        let config = builder.create_config().map_err(|error| refused("a configuration", &error))?;
        // All networks are strongly typed: there are no flags to set.
        let network = builder.create_network(0).map_err(|error| refused("a network", &error))?;
        static SESSIONS: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            id: SESSIONS.fetch_add(1, Ordering::Relaxed),
            tensors: Vec::new(),
            inputs: Vec::new(),
            placeholders: HashSet::new(),
            network,
            config,
            builder,
            errors,
            panics: Arc::default(),
            cancelled: Arc::default(),
            monitor: None,
            targets: ComputeCapabilities::NONE,
            flags: BuildFlags::default(),
        })
    }

    /// A new input of the network.
    ///
    /// # Errors
    /// When TensorRT refuses it.
    pub fn add_input(
        &mut self,
        name: &str,
        dtype: DataType,
        dims: &[i64],
    ) -> Result<TensorHandle, TensorRtError> {
        shapes::check_rank(name, dims)?;
        let mark = self.errors.mark();
        let tensor = self.network.add_input(name, shapes::to_trt(dtype), dims);
        let tensor = tensor.map_err(|error| self.refused(&format!("the input {name:?}"), &error, mark))?;
        self.inputs.push(profile::Input { name: name.to_owned(), dims: dims.to_vec(), tensor });
        Ok(self.keep(tensor))
    }

    /// Makes a tensor an output of the network, under a new name.
    ///
    /// # Errors
    /// When TensorRT refuses it.
    pub fn mark_output(&mut self, tensor: TensorHandle, name: &str) -> Result<(), TensorRtError> {
        let (mark, tensor) = (self.errors.mark(), self.tensor(tensor)?);
        let named = tensor.set_name(&mut self.network, name);
        named.map_err(|error| self.refused(&format!("the output {name:?}"), &error, mark))?;
        self.network.mark_output(&tensor);
        self.nothing_refused(&format!("the output {name:?}"), mark)
    }

    /// What TensorRT infers for a tensor.
    ///
    /// # Errors
    /// When it cannot be: the layer that makes it is not valid.
    pub fn inferred(&self, tensor: TensorHandle) -> Result<Inferred, TensorRtError> {
        let (mark, tensor) = (self.errors.mark(), self.tensor(tensor)?);
        let what =
            || tensor.name(&self.network).map_or_else(|_| "a tensor".to_owned(), |name| format!("{name:?}"));
        let dims = tensor.dimensions(&self.network);
        let dims = dims.map_err(|error| self.refused(&what(), &error, mark))?;
        let dtype = tensor.data_type(&self.network);
        self.nothing_refused(&what(), mark)?;
        let dtype = shapes::from_trt(dtype)
            .ok_or_else(|| TensorRtError::misuse(format!("{} has the unknown dtype {dtype:?}", what())))?;
        Ok(Inferred { dtype, dims })
    }

    /// Whether TensorRT takes a tensor for one whose elements it must know before it runs.
    ///
    /// # Errors
    /// For another session's tensor.
    pub fn is_shape_tensor(&self, tensor: TensorHandle) -> Result<bool, TensorRtError> {
        Ok(self.tensor(tensor)?.is_shape_tensor(&self.network))
    }

    /// The network's layers as TensorRT holds them.
    ///
    /// # Errors
    /// [`TensorRtError::Binding`].
    pub fn layers(&self) -> Result<Vec<LayerView<'_>>, TensorRtError> {
        raw::layers(&self.network, &self.placeholders)
    }

    /// The names of the network's outputs, as TensorRT holds them.
    ///
    /// # Errors
    /// When a tensor has no name.
    pub fn output_names(&self) -> Result<Vec<String>, TensorRtError> {
        let names = self.network.outputs().map(|output| output.name(&self.network));
        names.collect::<Result<_, _>>().map_err(|error| self.refused("the outputs", &error, 0))
    }

    /// Sets how the plan is built.
    pub fn set_flags(&mut self, flags: BuildFlags) {
        self.flags = flags;
        if flags.separate_weights {
            self.config.set_flag(BuilderFlag::kSTRIP_PLAN);
            self.config.set_flag(BuilderFlag::kREFIT_INDIVIDUAL);
        }
        if flags.weight_streaming {
            self.config.set_flag(BuilderFlag::kWEIGHT_STREAMING);
        }
    }

    /// Says which GPUs the plan is for. Where TensorRT cannot be told, the one must be this machine's.
    ///
    /// # Errors
    /// [`TensorRtError::Misuse`] for one that this flavour does not build for, [`TensorRtError::Refused`].
    pub fn set_targets(&mut self, targets: ComputeCapabilities) -> Result<(), TensorRtError> {
        let flavour = crate::Flavour::COMPILED;
        let supported = flavour.supported();
        let unsupported = targets.iter().find(|&target| !supported.contains(target));
        if let Some(target) = unsupported.or(targets.is_empty().then_some(ComputeCapability::new(0, 0))) {
            let supported = supported.names().join(", ");
            return Err(TensorRtError::misuse(format!("{flavour} builds for {supported}, not for {target}")));
        }
        if !flavour.names_targets() {
            let found = device::compute_capabilities()?;
            if let Some(target) = targets.iter().find(|target| found.first() != Some(target)) {
                return Err(TensorRtError::misuse(format!(
                    "{flavour} builds for the GPU of this machine, {}, not for {target}",
                    found.first().map_or_else(String::new, ToString::to_string)
                )));
            }
        }
        let mark = self.errors.mark();
        if flavour::set_targets(&mut self.config, targets) {
            self.targets = targets;
            return Ok(());
        }
        Err(self.refused_silently(&format!("the targets {}", targets.names().join(", ")), mark))
    }

    /// Sets what follows the build. At most once.
    ///
    /// # Errors
    /// [`TensorRtError::Misuse`] the second time.
    pub fn set_monitor(&mut self, monitor: Box<dyn BuildMonitor>) -> Result<(), TensorRtError> {
        if self.monitor.is_some() {
            return Err(TensorRtError::misuse("a build has one monitor"));
        }
        let guarded = Arc::new(monitor::Guarded::new(monitor, &self.panics, &self.cancelled));
        self.monitor = Some(Arc::clone(&guarded));
        let mark = self.errors.mark();
        let set = self.config.set_progress_monitor(Box::new(monitor::Shared(guarded)));
        set.map_err(|error| self.refused("a progress monitor", &error, mark))
    }

    /// Builds the plan and hands it to `sink` piece by piece, until it breaks. It first waits for builds with other
    /// targets in this process: TensorRT would mix them up. The monitor hears of it as a step of a phase of its own.
    ///
    /// # Errors
    /// [`TensorRtError::Misuse`] for a plan without its weights for several targets: TensorRT fails then, and from then
    /// on with every such plan in this process. [`TensorRtError::Cancelled`] when the monitor or the sink broke, [`TensorRtError::Panicked`] when one of them
    /// panicked, [`TensorRtError::Refused`] with TensorRT's reasons.
    pub fn build(mut self, sink: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), TensorRtError> {
        let targets = self.targets.names();
        if self.flags.separate_weights && targets.len() > 1 {
            let targets = targets.join(", ");
            return Err(TensorRtError::misuse(format!(
                "a plan without its weights is for one target, not for {targets}"
            )));
        }
        let cancelled = Arc::clone(&self.cancelled);
        let mut sink = |piece: &[u8]| {
            let flow = sink(piece);
            if flow.is_break() {
                cancelled.store(true, Ordering::Release);
            }
            flow
        };
        let mark = self.errors.mark();
        let go_on = || {
            let monitor = self.monitor.as_ref();
            monitor.map_or(ControlFlow::Continue(()), |monitor| monitor.go_on(WAITING))
        };
        let pass = GATE.enter(self.targets, go_on);
        let built = pass.is_some()
            && raw::build_to_stream(
                &mut self.builder,
                &mut self.network,
                &mut self.config,
                &mut sink,
                &self.panics,
            )?;
        drop(pass);
        if let Some(message) = self.panics.take() {
            return Err(TensorRtError::Panicked { message });
        }
        if self.cancelled.load(Ordering::Acquire) {
            return Err(TensorRtError::Cancelled);
        }
        if built { Ok(()) } else { Err(self.refused_silently("to build the network", mark)) }
    }

    fn keep(&mut self, tensor: Tensor<'w>) -> TensorHandle {
        self.tensors.push(tensor);
        TensorHandle { session: self.id, index: self.tensors.len() - 1 }
    }

    fn tensor(&self, handle: TensorHandle) -> Result<Tensor<'w>, TensorRtError> {
        let tensor = self.tensors.get(handle.index).filter(|_| handle.session == self.id).copied();
        tensor.ok_or_else(|| TensorRtError::misuse("the tensor is another network's"))
    }

    /// An error of `trtx` with what TensorRT said about it.
    fn refused(&self, what: &str, error: &trtx::Error, mark: usize) -> TensorRtError {
        let mut errors = self.errors.since(mark);
        if errors.is_empty() {
            errors.push(crate::RecordedError { code: "trtx".to_owned(), text: error.to_string() });
        }
        TensorRtError::Refused { what: what.to_owned(), errors }
    }

    fn refused_silently(&self, what: &str, mark: usize) -> TensorRtError {
        TensorRtError::Refused { what: what.to_owned(), errors: self.errors.since(mark) }
    }

    /// Some calls return nothing, or what looks like success, and only report.
    fn nothing_refused(&self, what: &str, mark: usize) -> Result<(), TensorRtError> {
        let errors = self.errors.since(mark);
        if errors.is_empty() {
            return Ok(());
        }
        Err(TensorRtError::Refused { what: what.to_owned(), errors })
    }
}
