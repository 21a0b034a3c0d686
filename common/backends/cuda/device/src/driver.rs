//! NVIDIA GPUs, through the driver's own library.
#![expect(unsafe_code, reason = "the driver is a C library, which is loaded when it is first asked for")]

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use cudarc::driver::sys;
use cudarc::driver::sys::CUresult;
use roundhouse_engine::ComputeCapability;

use crate::device::{Device, Event, Function, Graph, Launch, Module, Properties, Stream};
use crate::error::DeviceError;

/// The GPU that engines run on, in the driver's order: the first. `CUDA_VISIBLE_DEVICES` chooses another one.
pub const GPU: usize = 0;

/// The oldest CUDA that a driver has to support: what kernels are compiled with belongs to its major version.
const OLDEST_CUDA: c_int = 12_000;

/// A GPU. It is used through its primary context, which is kept for the life of the process.
pub struct Driver {
    context: sys::CUcontext,
    stream: Stream,
    properties: Properties,
}

// SAFETY: the context is a handle that any thread may make current, and every call makes it current first.
unsafe impl Send for Driver {}
// SAFETY: the driver's functions can be called from several threads at once.
unsafe impl Sync for Driver {}

/// Whether the driver can be called at all.
fn ready() -> Result<(), DeviceError> {
    static READY: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    let look = || {
        // SAFETY: looking for a library runs its initialisers, which need nothing of this program.
        if !unsafe { sys::is_culib_present() } {
            let what =
                "there is no NVIDIA driver (libcuda.so.1): install the driver of the GPU on this machine";
            return Err(DeviceError::Missing(what.to_owned()));
        }
        // SAFETY: the only flags there are, 0.
        match unsafe { sys::cuInit(0) } {
            CUresult::CUDA_SUCCESS => Ok(()),
            code => Err(DeviceError::Missing(words("cuInit", code))),
        }
    };
    READY.get_or_init(look).clone()
}

/// The CUDA version that the driver supports: major times 1000 plus minor times 10.
///
/// # Errors
/// [`DeviceError::Missing`].
pub fn driver_version() -> Result<i32, DeviceError> {
    ready()?;
    let mut version = 0;
    // SAFETY: `version` is an int to write to.
    ok("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    Ok(version)
}

/// What code the GPU of this number runs.
///
/// # Errors
/// [`DeviceError::Missing`] where there is none, [`DeviceError::DriverTooOld`].
pub fn compute_capability(gpu: usize) -> Result<ComputeCapability, DeviceError> {
    let found = driver_version()?;
    if found < OLDEST_CUDA {
        return Err(DeviceError::DriverTooOld {
            found: version_name(found),
            needed: version_name(OLDEST_CUDA),
        });
    }
    capability_of(device(gpu)?)
}

fn version_name(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn device(gpu: usize) -> Result<sys::CUdevice, DeviceError> {
    ready()?;
    let mut count = 0;
    // SAFETY: `count` is an int to write to.
    ok("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
    let number = c_int::try_from(gpu).ok().filter(|&number| number < count);
    let number =
        number.ok_or_else(|| DeviceError::Missing(format!("no GPU {gpu}: the driver finds {count}")))?;
    let mut device = 0;
    // SAFETY: `device` is to be written to, and devices are numbered from 0 to the count.
    ok("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, number) })?;
    Ok(device)
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<c_int, DeviceError> {
    let mut value = 0;
    // SAFETY: `value` is an int to write to, `device` comes from `cuDeviceGet`.
    ok("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) })?;
    Ok(value)
}

fn capability_of(device: sys::CUdevice) -> Result<ComputeCapability, DeviceError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let revision = |which| Ok(u8::try_from(attribute(device, which)?).unwrap_or(u8::MAX));
    Ok(ComputeCapability::new(revision(MAJOR)?, revision(MINOR)?))
}

/// The driver's words for a code.
fn words(call: &str, code: CUresult) -> String {
    let mut text = null();
    // SAFETY: `text` is a pointer to write to; the driver gives a static string or leaves it.
    let given = unsafe { sys::cuGetErrorString(code, &raw mut text) };
    if given != CUresult::CUDA_SUCCESS || text.is_null() {
        return format!("{call} gave error {}", code as u32);
    }
    // SAFETY: a string of the driver, which ends in a zero and is never changed.
    let text = unsafe { CStr::from_ptr(text) };
    format!("{call}: {} (error {})", text.to_string_lossy(), code as u32)
}

/// What a call gave, by meaning.
fn ok(call: &str, code: CUresult) -> Result<(), DeviceError> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_NOT_INITIALIZED => {
            Err(DeviceError::Missing(words(call, code)))
        }
        // A kernel or the hardware failed: the context is of no use from then on.
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
        | CUresult::CUDA_ERROR_ASSERT
        | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
        | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUresult::CUDA_ERROR_UNKNOWN => Err(DeviceError::Lost(words(call, code))),
        _ => Err(DeviceError::Failed(words(call, code))),
    }
}

impl Driver {
    /// Opens a GPU.
    ///
    /// # Errors
    /// [`DeviceError::Missing`] where there is none, [`DeviceError::DriverTooOld`].
    pub fn open(gpu: usize) -> Result<Self, DeviceError> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
        };
        let compute_capability = compute_capability(gpu)?;
        let device = device(gpu)?;
        let mut name = [0; 256];
        // SAFETY: `name` holds as many characters as is said.
        ok("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 256, device) })?;
        // SAFETY: the driver has ended the name with a zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let number = |which| Ok(u32::try_from(attribute(device, which)?).unwrap_or(0));
        let properties = Properties {
            name,
            compute_capability,
            multiprocessors: number(MULTIPROCESSORS)?,
            shared_bytes: number(SHARED)?,
        };
        let mut context = null_mut();
        // SAFETY: `context` is a pointer to write to.
        ok("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) })?;
        let mut driver = Self { context, stream: Stream(0), properties };
        driver.stream = driver.new_stream()?;
        Ok(driver)
    }

    /// Makes the context this thread's.
    fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained for the life of the process.
        ok("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// For a call that gives something back, which reports nothing: on a lost device there is nothing to give back.
    fn release(&self, call: impl FnOnce() -> CUresult) {
        if self.enter().is_ok() {
            let _ = call();
        }
    }
}

const fn raw(stream: Stream) -> sys::CUstream {
    stream.0 as sys::CUstream
}

impl Device for Driver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are to be written to.
        ok("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: `address` is to be written to.
        match unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(DeviceError::OutOfMemory { bytes: bytes as u64, free: self.memory()?.0 })
            }
            code => ok("cuMemAlloc", code).map(|()| address),
        }
    }

    fn free(&self, address: u64) {
        // SAFETY: `address` comes from `allocate`; the driver waits for what still uses it.
        self.release(|| unsafe { sys::cuMemFree_v2(address) });
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.enter()?;
        let mut address: *mut c_void = null_mut();
        // SAFETY: `address` is to be written to.
        ok("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut address, bytes, 0) })?;
        Ok(address as u64)
    }

    fn free_pinned(&self, address: u64) {
        // SAFETY: `address` comes from `allocate_pinned`; the driver waits for what still uses it.
        self.release(|| unsafe { sys::cuMemFreeHost(address as *mut c_void) });
    }

    fn stream(&self) -> Stream {
        self.stream
    }

    fn new_stream(&self) -> Result<Stream, DeviceError> {
        self.enter()?;
        let mut stream = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `stream` is a pointer to write to.
        ok("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut stream, flags) })?;
        Ok(Stream(stream as u64))
    }

    fn copy_in(&self, stream: Stream, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: `from` is as long as is said, and the caller keeps it until the stream is done.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), raw(stream)) };
        ok("cuMemcpyHtoDAsync", code)
    }

    fn copy_out(&self, stream: Stream, to: &mut [u8], from: u64) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: `to` is as long as is said, and the caller keeps it until the stream is done.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), raw(stream)) };
        ok("cuMemcpyDtoHAsync", code)
    }

    fn copy_within(&self, stream: Stream, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: addresses of the device, which checks them.
        ok("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, raw(stream)) })
    }

    fn fill(&self, stream: Stream, address: u64, byte: u8, bytes: usize) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: an address of the device, which checks it.
        ok("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(address, byte, bytes, raw(stream)) })
    }

    fn synchronize(&self, stream: Stream) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: a stream of `new_stream`, which is never destroyed.
        ok("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(raw(stream)) })
    }

    fn new_event(&self) -> Result<Event, DeviceError> {
        self.enter()?;
        let mut event = null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: `event` is a pointer to write to.
        ok("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut event, flags) })?;
        Ok(Event(event as u64))
    }

    fn record(&self, stream: Stream, event: Event) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: an event of `new_event`, a stream of `new_stream`.
        ok("cuEventRecord", unsafe { sys::cuEventRecord(event.0 as sys::CUevent, raw(stream)) })
    }

    fn wait(&self, event: Event) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: an event of `new_event`.
        ok("cuEventSynchronize", unsafe { sys::cuEventSynchronize(event.0 as sys::CUevent) })
    }

    fn free_event(&self, event: Event) {
        // SAFETY: an event of `new_event`; the driver waits for what still uses it.
        self.release(|| unsafe { sys::cuEventDestroy_v2(event.0 as sys::CUevent) });
    }

    fn load_module(&self, image: &[u8]) -> Result<Module, DeviceError> {
        self.enter()?;
        // The driver finds the end of a cubin by its header, so what is cut short has to be caught before.
        if !is_whole_elf(image) {
            return Err(DeviceError::Failed("the kernels' image is broken".to_owned()));
        }
        let mut module = null_mut();
        // SAFETY: the image is a whole ELF file by its header.
        ok("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) })?;
        Ok(Module(module as u64))
    }

    fn function(&self, module: Module, name: &str) -> Result<Function, DeviceError> {
        use sys::CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC,
            CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
        };
        self.enter()?;
        let text = CString::new(name).map_err(|error| DeviceError::Failed(error.to_string()))?;
        let mut function = null_mut();
        // SAFETY: `function` is a pointer to write to, the module one of `load_module`, `text` ends in a zero.
        let code =
            unsafe { sys::cuModuleGetFunction(&raw mut function, module.0 as sys::CUmodule, text.as_ptr()) };
        ok("cuModuleGetFunction", code).map_err(|error| match error {
            DeviceError::Failed(what) => DeviceError::Failed(format!("kernel {name}: {what}")),
            error => error,
        })?;
        let mut fixed = 0;
        // SAFETY: `fixed` is an int to write to. This also loads the kernel, which must not happen during a capture.
        ok("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&raw mut fixed, STATIC, function) })?;
        let left = c_int::try_from(self.properties.shared_bytes).unwrap_or(0).saturating_sub(fixed).max(0);
        // SAFETY: a function of this context.
        ok("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(function, DYNAMIC, left) })?;
        Ok(Function(function as u64))
    }

    fn unload_module(&self, module: Module) {
        // SAFETY: a module of `load_module`.
        self.release(|| unsafe { sys::cuModuleUnload(module.0 as sys::CUmodule) });
    }

    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<(), DeviceError> {
        self.enter()?;
        let arguments =
            launch.arguments.iter().map(|slot| std::ptr::from_ref(slot).cast_mut().cast::<c_void>());
        let mut arguments: Vec<*mut c_void> = arguments.collect();
        // SAFETY: all zeros is a value of this C struct.
        let mut overlap: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        overlap.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        overlap.value.programmaticStreamSerializationAllowed = 1;
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
        let config = sys::CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: launch.shared_bytes,
            hStream: raw(stream),
            attrs: &raw mut overlap,
            numAttrs: u32::from(launch.overlaps),
        };
        let function = launch.function.0 as sys::CUfunction;
        // SAFETY: the caller gives as many parameters as the kernel has; the driver reads each one's bytes from its slot
        // before it returns.
        let code =
            unsafe { sys::cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), null_mut()) };
        ok("cuLaunchKernelEx", code)
    }

    fn begin_graph(&self, stream: Stream) -> Result<(), DeviceError> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of `new_stream`.
        ok("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(raw(stream), mode) })
    }

    fn end_graph(&self, stream: Stream) -> Result<Graph, DeviceError> {
        self.enter()?;
        let mut graph = null_mut();
        // SAFETY: `graph` is a pointer to write to.
        ok("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(raw(stream), &raw mut graph) })?;
        let mut executable = null_mut();
        // SAFETY: `executable` is a pointer to write to, `graph` the one just recorded, which is no longer needed then.
        let instantiated = unsafe {
            let code = sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0);
            sys::cuGraphDestroy(graph);
            code
        };
        ok("cuGraphInstantiate", instantiated)?;
        // SAFETY: the graph was just made.
        ok("cuGraphUpload", unsafe { sys::cuGraphUpload(executable, raw(stream)) })?;
        Ok(Graph(executable as u64))
    }

    fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: a graph of `end_graph`.
        ok("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0 as sys::CUgraphExec, raw(stream)) })
    }

    fn free_graph(&self, graph: Graph) {
        // SAFETY: a graph of `end_graph`.
        self.release(|| unsafe { sys::cuGraphExecDestroy(graph.0 as sys::CUgraphExec) });
    }

    fn raw_stream(&self, stream: Stream) -> Option<u64> {
        Some(stream.0)
    }

    fn make_current(&self) -> Result<(), DeviceError> {
        self.enter()
    }
}

/// Whether a file is an ELF of 64 bits whose tables of sections and segments, which come last, are all there.
fn is_whole_elf(image: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| {
        let bytes = image.get(at..at + bytes)?;
        Some(bytes.iter().rev().fold(0_u64, |number, &byte| number << 8 | u64::from(byte)))
    };
    let end = |offset: usize, size: usize, count: usize| {
        let table = number(size, 2)?.checked_mul(number(count, 2)?)?;
        number(offset, 8)?.checked_add(table)
    };
    let whole = |end: Option<u64>| end.is_some_and(|end| end <= image.len() as u64);
    image.starts_with(b"\x7fELF\x02") && whole(end(0x20, 0x36, 0x38)) && whole(end(0x28, 0x3a, 0x3c))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on machines with and without a GPU: what is said agrees with what the system has.
    #[test]
    fn a_machine_has_a_gpu_or_a_typed_reason_why_not() {
        let has_device_file = std::path::Path::new("/dev/nvidiactl").exists();
        match Driver::open(GPU) {
            Ok(_) => assert!(has_device_file),
            Err(error) => assert!(!has_device_file && matches!(error, DeviceError::Missing(_)), "{error}"),
        }
    }

    #[test]
    fn an_image_that_is_cut_short_is_no_image() {
        // The tables of this ELF's header end at 64 + 2 · 56 and 200 + 3 · 64 bytes.
        let mut image = vec![0; 392];
        image[..5].copy_from_slice(b"\x7fELF\x02");
        (image[0x20], image[0x36], image[0x38]) = (64, 56, 2);
        (image[0x28], image[0x3a], image[0x3c]) = (200, 64, 3);
        assert!(is_whole_elf(&image));
        assert!(!is_whole_elf(&image[..391]));
        assert!(!is_whole_elf(b"\x7fELF\x02"));
        assert!(!is_whole_elf(&[]));
    }
}
