//! Shared libraries: loading them and asking their version.
#![expect(unsafe_code, reason = "loading a library runs its initialisers, and its functions are C")]

use std::ffi::OsStr;

use libloading::Library as Dylib;

use crate::Version;

/// The version of the headers that this program was compiled with.
pub(crate) fn compiled_version() -> Version {
    // SAFETY: a function of trtx-sys's own C++ bridge, linked into this program, that returns a constant.
    Version::from_number(unsafe { trtx::trtx_sys::get_tensorrt_version() })
}

/// Loads a library and asks its version.
///
/// It is never unloaded: threads and handlers that its initialisers may have started go on using it.
pub(crate) fn version_of(library: &OsStr) -> Result<Version, String> {
    // SAFETY: the name is one that the operator configured or one of TensorRT's. Its initialisers are NVIDIA's, run by
    // every program that uses TensorRT, and need nothing of this one.
    let library = unsafe { Dylib::new(library) }.map_err(|error| describe(&error))?;
    // SAFETY: NvInferRuntimeBase.h declares `int32_t getInferLibVersion() noexcept` with C linkage in every version.
    let version = unsafe { library.get::<unsafe extern "C" fn() -> i32>(b"getInferLibVersion\0") };
    // SAFETY: as declared; it takes nothing and returns a constant.
    let number = version.map(|version| unsafe { version() });
    let number = number.map_err(|error| format!("it is no TensorRT: {}", describe(&error)));
    std::mem::forget(library);
    let number = number?;
    u32::try_from(number)
        .map(Version::from_number)
        .map_err(|_| format!("it says that its version is {number}"))
}

/// An error with what the loader said, which `libloading` keeps apart.
pub(crate) fn describe(error: &libloading::Error) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
