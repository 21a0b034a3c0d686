//! Building into a writer instead of into memory: `IBuilder::buildSerializedNetworkToStream`.
//!
//! `IStreamWriter` is an abstract C++ class and `trtx` has no bridge for it, so that its table of virtual functions is laid
//! out here, by the Itanium C++ ABI that every Linux compiler follows: in the table the functions come in the order of
//! their declaration in NvInferRuntimeBase.h and NvInferRuntime.h (`getAPILanguage`, `getInterfaceInfo`, both destructors,
//! `write`), behind the offset to the top and the type information; an object begins with a pointer to the first function.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::pin::Pin;

use trtx::network::NetworkDefinition;
use trtx::trtx_sys::nvinfer1;
use trtx::{Builder, BuilderConfig};

use super::Inner as _;
use crate::TensorRtError;
use crate::guard::PanicSlot;

/// Builds a network and hands the plan to `sink` piece by piece, until it breaks. `Ok(false)` when TensorRT failed or
/// the sink broke or panicked: a panic is in `panics`.
///
/// # Errors
/// [`TensorRtError::Binding`].
pub(crate) fn build_to_stream(
    builder: &mut Builder<'_>,
    network: &mut NetworkDefinition<'_>,
    config: &mut BuilderConfig<'_>,
    sink: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    panics: &PanicSlot,
) -> Result<bool, TensorRtError> {
    let mut writer = Writer { functions: &raw const TABLE.functions, sink, panics };
    let builder = builder.object_mut()?;
    let (network, config) = (network.object_mut()?, config.object_mut()?);
    let pointer = (&raw mut writer).cast::<nvinfer1::IStreamWriter>();
    // SAFETY: `writer` is laid out as an object of a class derived from IStreamWriter, see the module; TensorRT uses it
    // during the call only, and nothing else does meanwhile.
    let interface = unsafe { Pin::new_unchecked(&mut *pointer) };
    Ok(builder.buildSerializedNetworkToStream(network, config, interface))
}

/// An object derived from `IStreamWriter`.
#[repr(C)]
struct Writer<'a> {
    functions: *const Functions,
    sink: &'a mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    panics: &'a PanicSlot,
}

/// `nvinfer1::InterfaceInfo`: three words, so that it is returned through a pointer that the caller passes, as Rust does
/// for a `repr(C)` structure.
#[repr(C)]
struct InterfaceInfo {
    kind: *const c_char,
    major: i32,
    minor: i32,
}

/// The virtual functions.
#[repr(C)]
struct Functions {
    get_api_language: extern "C" fn(*const Writer<'_>) -> u8,
    get_interface_info: extern "C" fn(*const Writer<'_>) -> InterfaceInfo,
    complete_destructor: extern "C" fn(*mut Writer<'_>),
    deleting_destructor: extern "C" fn(*mut Writer<'_>),
    write: unsafe extern "C" fn(*mut Writer<'_>, *const c_void, i64) -> i64,
}

/// The table, with what comes before the functions.
#[repr(C)]
struct Table {
    offset_to_top: isize,
    type_information: *const c_void,
    functions: Functions,
}

// SAFETY: it is never written, and its only pointer is null.
unsafe impl Sync for Table {}

static TABLE: Table = Table {
    offset_to_top: 0,
    // Only dynamic_cast and typeid read it, which a library compiled elsewhere cannot do with a class of this program.
    type_information: std::ptr::null(),
    functions: Functions {
        get_api_language,
        get_interface_info,
        complete_destructor: destroy,
        deleting_destructor: destroy,
        write,
    },
};

/// `APILanguage::kCPP`.
extern "C" fn get_api_language(_: *const Writer<'_>) -> u8 {
    0
}

extern "C" fn get_interface_info(_: *const Writer<'_>) -> InterfaceInfo {
    InterfaceInfo { kind: c"IStreamWriter".as_ptr(), major: 1, minor: 0 }
}

/// The object is on the stack of [`build_to_stream`]; TensorRT does not own it.
extern "C" fn destroy(_: *mut Writer<'_>) {}

/// `int64_t write(void const* data, int64_t nbBytes)`: how many bytes were written, or less than 0.
unsafe extern "C" fn write(writer: *mut Writer<'_>, data: *const c_void, bytes: i64) -> i64 {
    let Ok(length) = usize::try_from(bytes) else { return -1 };
    // SAFETY: TensorRT passes the pointer that `build_to_stream` gave it, which uses the object for nothing else.
    let writer = unsafe { &mut *writer };
    let piece = if length == 0 {
        &[]
    } else {
        // SAFETY: by the contract of `IStreamWriter::write`, `bytes` bytes at `data` can be read during the call.
        unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) }
    };
    let sink = &mut writer.sink;
    match writer.panics.run(ControlFlow::Break(()), || sink(piece)) {
        ControlFlow::Continue(()) => bytes,
        ControlFlow::Break(()) => -1,
    }
}
