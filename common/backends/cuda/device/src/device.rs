//! The seam.

use roundhouse_engine::ComputeCapability;

use crate::DeviceError;

/// Loaded kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Module(pub u64);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Function(pub u64);

/// A queue of work. Work of one stream runs in order, that of several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stream(pub u64);

/// Launches that were recorded to be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Graph(pub u64);

/// A point in a stream's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Its name in the driver.
    pub name: String,
    /// What code it runs.
    pub compute_capability: ComputeCapability,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory of one block at most, in bytes.
    pub shared_bytes: u32,
}

/// One launch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Which kernel.
    pub function: Function,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The parameters, one a slot, in the low bytes.
    pub arguments: &'a [u64],
    /// Whether its blocks may start before the kernel before it has ended; it waits for that one itself (programmatic
    /// dependent launch).
    pub overlaps: bool,
}

/// A device. Calls from any thread; addresses are the device's.
///
/// What is enqueued is not checked: a kernel that is given a wrong address corrupts the device's memory or loses the
/// device, as with any GPU.
pub trait Device: Send + Sync {
    /// What it is.
    fn properties(&self) -> &Properties;

    /// Free and total bytes.
    ///
    /// # Errors
    /// When the device is lost.
    fn memory(&self) -> Result<(u64, u64), DeviceError>;

    /// Takes memory, aligned to 256 bytes. Its content is anything. [`crate::Memory`] gives it back by itself.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError>;

    /// Gives memory back, once all that is enqueued is done.
    fn free(&self, address: u64);

    /// Takes host memory that the device can copy from and to while the processor goes on, and kernels can write to; its
    /// address, which is the same in this process and on the device.
    /// [`crate::Pinned`] gives it back by itself.
    ///
    /// # Errors
    /// When there is none.
    fn allocate_pinned(&self, bytes: usize) -> Result<u64, DeviceError>;

    /// Gives pinned memory back.
    fn free_pinned(&self, address: u64);

    /// The stream that steps run on.
    fn stream(&self) -> Stream;

    /// One more stream.
    ///
    /// # Errors
    /// When the device is lost.
    fn new_stream(&self) -> Result<Stream, DeviceError>;

    /// Enqueues a copy from host memory, which has to stay as it is until the stream is done with it. From pinned memory
    /// the call returns at once.
    ///
    /// # Errors
    /// When the device is lost.
    fn copy_in(&self, stream: Stream, to: u64, from: &[u8]) -> Result<(), DeviceError>;

    /// Enqueues a copy to host memory, which holds it once the stream is synchronised.
    ///
    /// # Errors
    /// When the device is lost.
    fn copy_out(&self, stream: Stream, to: &mut [u8], from: u64) -> Result<(), DeviceError>;

    /// Enqueues a copy on the device. The ranges do not overlap.
    ///
    /// # Errors
    /// When the device is lost.
    fn copy_within(&self, stream: Stream, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Enqueues setting all bytes of a range.
    ///
    /// # Errors
    /// When the device is lost.
    fn fill(&self, stream: Stream, address: u64, byte: u8, bytes: usize) -> Result<(), DeviceError>;

    /// Waits until everything on a stream is done.
    ///
    /// # Errors
    /// What went wrong on it: [`DeviceError::Lost`] where a kernel failed.
    fn synchronize(&self, stream: Stream) -> Result<(), DeviceError>;

    /// An event that nothing was recorded with. [`crate::OwnedEvent`] gives it back by itself.
    ///
    /// # Errors
    /// When the device is lost.
    fn new_event(&self) -> Result<Event, DeviceError>;

    /// Makes an event the point after everything that is enqueued on a stream so far.
    ///
    /// # Errors
    /// When the device is lost.
    fn record(&self, stream: Stream, event: Event) -> Result<(), DeviceError>;

    /// Waits until everything before an event is done.
    ///
    /// # Errors
    /// As [`Device::synchronize`].
    fn wait(&self, event: Event) -> Result<(), DeviceError>;

    /// Gives an event back.
    fn free_event(&self, event: Event);

    /// Loads an image of kernels.
    ///
    /// # Errors
    /// When it is broken or for another device.
    fn load_module(&self, image: &[u8]) -> Result<Module, DeviceError>;

    /// A kernel of a module, ready to be launched (and recorded) with as much shared memory as the device has.
    ///
    /// # Errors
    /// When the module has no kernel of this name.
    fn function(&self, module: Module, name: &str) -> Result<Function, DeviceError>;

    /// Gives a module back.
    fn unload_module(&self, module: Module);

    /// Enqueues a launch.
    ///
    /// # Errors
    /// When it is not possible, or the device is lost.
    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<(), DeviceError>;

    /// Records what is enqueued on a stream from here on instead of running it. Nothing is to be allocated meanwhile.
    ///
    /// # Errors
    /// When the device is lost.
    fn begin_graph(&self, stream: Stream) -> Result<(), DeviceError>;

    /// Ends a recording, also one that failed on the way.
    ///
    /// # Errors
    /// When something cannot be recorded.
    fn end_graph(&self, stream: Stream) -> Result<Graph, DeviceError>;

    /// Enqueues a recording.
    ///
    /// # Errors
    /// When the device is lost.
    fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<(), DeviceError>;

    /// Gives a recording back.
    fn free_graph(&self, graph: Graph);

    /// The driver's handle of a stream, for libraries beside the driver; none where there is no driver.
    fn raw_stream(&self, stream: Stream) -> Option<u64>;

    /// Makes the device current for this thread, before another library uses it.
    ///
    /// # Errors
    /// When the device is lost.
    fn make_current(&self) -> Result<(), DeviceError>;
}
