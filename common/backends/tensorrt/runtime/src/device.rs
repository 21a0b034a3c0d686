//! What running an engine needs of a device: memory, copies, and executions.
//!
//! Everything above this seam (which sequences run together, in which slots, bound where) is the same for any
//! implementation of it. [`crate::Cuda`] is the one for GPUs. A device, its engines, executions and buffers live on one
//! thread, and everything that they do happens in the order of the calls, as on one CUDA stream.

use std::ops::Range;
use std::path::{Path, PathBuf};

use roundhouse_backend::BackendError;
use roundhouse_engine::{ComputeCapability, EngineOptions, Manifest};
use roundhouse_tensorrt_network::Network;
use roundhouse_weights::MappedWeights;

use crate::DeviceError;

/// The alignment that TensorRT asks of every address bound to a tensor, in bytes.
pub const ALIGNMENT: usize = 256;

/// A machine that may have a device: what is asked before an engine is downloaded.
pub trait Machine: Send + Sync + 'static {
    /// The device.
    type Device: Device;

    /// Whether the machine can run an engine for this target, backend version and options.
    ///
    /// # Errors
    /// [`BackendError::Incompatible`] says what the machine lacks and how to get it.
    fn check(&self, manifest: &Manifest) -> Result<(), BackendError>;

    /// The device's compute capability, which chooses among plans; `None` where it has none.
    fn compute_capability(&self) -> Option<ComputeCapability>;

    /// Opens the device, on the thread that will own it.
    ///
    /// # Errors
    /// When the driver or library refuses.
    fn open(&self) -> Result<Self::Device, DeviceError>;
}

/// A device.
pub trait Device: 'static {
    /// A handle to device memory, aligned to [`ALIGNMENT`]. Clones share the memory; the last one frees it.
    type Buffer: Clone + 'static;
    /// A loaded engine.
    type Engine: Engine<Buffer = Self::Buffer>;

    /// Allocates zeroed memory.
    ///
    /// # Errors
    /// [`DeviceError::Memory`].
    fn allocate(&mut self, bytes: usize) -> Result<Self::Buffer, DeviceError>;

    /// Zeroes a part of a buffer.
    ///
    /// # Errors
    /// When the range is outside of the buffer, or the driver refuses.
    fn zero(&mut self, buffer: &Self::Buffer, range: Range<usize>) -> Result<(), DeviceError>;

    /// Copies bytes to a place in a buffer. They are taken before this returns.
    ///
    /// # Errors
    /// When they do not fit, or the driver refuses.
    fn upload(&mut self, buffer: &Self::Buffer, offset: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Waits for everything before, and gives the bytes of these parts of a buffer, one after the other.
    ///
    /// # Errors
    /// When a range is outside of the buffer, or anything before failed on the device.
    fn download(&mut self, buffer: &Self::Buffer, ranges: &[Range<usize>]) -> Result<Vec<u8>, DeviceError>;

    /// Bytes of device memory that are free, where the device can tell.
    fn free_bytes(&self) -> Option<u64>;

    /// Loads an engine.
    ///
    /// # Errors
    /// When a file is broken, or the device cannot run it.
    fn load(&mut self, source: &EngineSource<'_>) -> Result<Self::Engine, DeviceError>;
}

/// What an engine is loaded from.
pub struct EngineSource<'a> {
    /// The plan.
    pub plan: &'a Path,
    /// The network that it was built from.
    pub network: &'a Network,
    /// Its weights, where they are not in the plan.
    pub weights: Option<&'a MappedWeights>,
    /// Its options.
    pub options: &'a EngineOptions,
    /// Where kernels that were compiled for it are kept, by all processes that run it here.
    pub kernel_cache: Option<PathBuf>,
}

/// How an execution will be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutionOptions {
    /// Its optimization profile.
    pub profile: usize,
    /// Whether calls of equal shapes come again and again, so that they are worth a CUDA graph.
    pub repeats: bool,
}

/// A loaded engine.
pub trait Engine: 'static {
    /// See [`Device::Buffer`].
    type Buffer;
    /// A way to run it.
    type Execution: Execution<Buffer = Self::Buffer>;

    /// Makes the executions, which will never run at the same time. Called once.
    ///
    /// # Errors
    /// When the device has not the memory for them.
    fn executions(&mut self, options: &[ExecutionOptions]) -> Result<Vec<Self::Execution>, DeviceError>;

    /// Bytes of activations and scratch that the executions hold together, where they can be told.
    fn workspace_bytes(&self) -> Option<u64>;

    /// Writes the kernels compiled so far into the engine's kernel cache. Losing them costs time only, so that failures
    /// are logged.
    fn keep_kernels(&mut self);
}

/// An execution of an engine (TensorRT's context): shapes and addresses stay as they were set last.
pub trait Execution: 'static {
    /// See [`Device::Buffer`].
    type Buffer;

    /// Sets the dimensions of an input.
    ///
    /// # Errors
    /// When they are outside of the profile.
    fn set_input_shape(&mut self, input: &str, dims: &[i64]) -> Result<(), DeviceError>;

    /// Sets the elements of a shape tensor, which is in host memory.
    ///
    /// # Errors
    /// When it is none.
    fn set_shape_values(&mut self, input: &str, values: &[i64]) -> Result<(), DeviceError>;

    /// Binds an input to a place in a buffer, which the execution keeps alive until it is bound to another.
    ///
    /// # Errors
    /// For an unknown input, or a place that is not aligned to [`ALIGNMENT`].
    fn bind_input(&mut self, input: &str, buffer: &Self::Buffer, offset: usize) -> Result<(), DeviceError>;

    /// As [`Execution::bind_input`], of an output.
    ///
    /// # Errors
    /// As there.
    fn bind_output(&mut self, output: &str, buffer: &Self::Buffer, offset: usize) -> Result<(), DeviceError>;

    /// Enqueues a run.
    ///
    /// # Errors
    /// When a tensor is not bound, or its memory is too small for its shape, or TensorRT refuses.
    fn enqueue(&mut self) -> Result<(), DeviceError>;
}
