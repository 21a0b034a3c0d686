//! The GPUs of this machine, from CUDA's driver alone: what there is to know before TensorRT is asked anything that needs
//! one.
#![expect(
    unsafe_code,
    reason = "CUDA's driver is a C library that may be missing, so that it is loaded by name"
)]

use std::ffi::c_int;

use libloading::{Library as Dylib, Symbol};
use roundhouse_engine::ComputeCapability;

use crate::dylib::describe;

/// The driver's library.
const DRIVER: &str = "libcuda.so.1";
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `…_MINOR`.
const CAPABILITY_ATTRIBUTES: [c_int; 2] = [75, 76];

/// Why there is no GPU to use.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// No driver.
    #[error("there is no NVIDIA driver: {what}. To get it: install the driver of the GPU on this machine")]
    NoDriver {
        /// What the loader said.
        what: String,
    },
    /// The driver does not work.
    #[error("the NVIDIA driver failed: {call} gave error {code}")]
    Driver {
        /// The call.
        call: &'static str,
        /// Its `CUresult`.
        code: i32,
    },
    /// No GPU.
    #[error("the NVIDIA driver finds no GPU")]
    NoDevice,
}

/// The compute capabilities of this machine's GPUs, in the driver's order: one or more.
///
/// # Errors
/// [`DeviceError`] when there is none. TensorRT itself, asked without a driver, may return pointers to nothing.
pub fn compute_capabilities() -> Result<Vec<ComputeCapability>, DeviceError> {
    // SAFETY: loading CUDA's driver runs its initialisers, which need nothing of this program.
    let driver =
        unsafe { Dylib::new(DRIVER) }.map_err(|error| DeviceError::NoDriver { what: describe(&error) })?;
    let capabilities = capabilities_of(&driver);
    // Others may hold what the driver gave them.
    std::mem::forget(driver);
    capabilities
}

fn capabilities_of(driver: &Dylib) -> Result<Vec<ComputeCapability>, DeviceError> {
    let missing = |error: libloading::Error| DeviceError::NoDriver { what: describe(&error) };
    let ok = |call, code| if code == 0 { Ok(()) } else { Err(DeviceError::Driver { call, code }) };
    // SAFETY: `CUresult cuInit(unsigned int)`.
    let init: Symbol<'_, unsafe extern "C" fn(u32) -> c_int> =
        unsafe { driver.get(b"cuInit\0") }.map_err(missing)?;
    // SAFETY: `CUresult cuDeviceGetCount(int*)`.
    let get_count: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> =
        unsafe { driver.get(b"cuDeviceGetCount\0") }.map_err(missing)?;
    // SAFETY: `CUresult cuDeviceGetAttribute(int*, CUdevice_attribute, CUdevice)`, all integers.
    let get_attribute: Symbol<'_, unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int> =
        unsafe { driver.get(b"cuDeviceGetAttribute\0") }.map_err(missing)?;

    // SAFETY: the only flags there are, 0; it may be called any number of times.
    ok("cuInit", unsafe { init(0) })?;
    let mut count = 0;
    // SAFETY: `count` is an int to write to.
    ok("cuDeviceGetCount", unsafe { get_count(&raw mut count) })?;
    let mut capabilities = Vec::new();
    for device in 0..count {
        let mut revisions = [0_u8; 2];
        for (revision, attribute) in revisions.iter_mut().zip(CAPABILITY_ATTRIBUTES) {
            let mut value = 0;
            // SAFETY: `value` is an int to write to; devices are numbered from 0 to the count.
            ok("cuDeviceGetAttribute", unsafe { get_attribute(&raw mut value, attribute, device) })?;
            *revision = u8::try_from(value).unwrap_or(u8::MAX);
        }
        capabilities.push(ComputeCapability::new(revisions[0], revisions[1]));
    }
    if capabilities.is_empty() { Err(DeviceError::NoDevice) } else { Ok(capabilities) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on machines with and without a GPU: what is said agrees with what the system has.
    #[test]
    fn a_machine_has_gpus_or_a_typed_reason_why_not() {
        let found = compute_capabilities();
        let has_device_file = std::path::Path::new("/dev/nvidiactl").exists();
        match found {
            Ok(capabilities) => assert!(has_device_file && !capabilities.is_empty()),
            Err(error) => assert!(!has_device_file, "{error}"),
        }
    }
}
