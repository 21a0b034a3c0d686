//! A compiled kernel.
#![expect(unsafe_code, reason = "compiled kernels are C functions over addresses")]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::Path;

use libloading::Library;
use parking_lot::Mutex;

use crate::EmulationError;

type LaunchFunction =
    unsafe extern "C" fn(*const c_uint, c_uint, c_uint, *const u64, usize, c_int) -> *const c_char;

/// A library's fibres are static, and one library serves the whole process.
static RUNNING: Mutex<()> = Mutex::new(());

/// A kernel that can be launched.
#[derive(Debug)]
pub(crate) struct CompiledKernel {
    launch: LaunchFunction,
    _library: Library,
}

impl CompiledKernel {
    pub(crate) fn load(path: &Path) -> Result<Self, EmulationError> {
        let error = |error: libloading::Error| EmulationError::File {
            path: path.to_owned(),
            message: error.to_string(),
        };
        // SAFETY: the file was made by `compile`, of this program's own sources; it has no initialisers but those of
        // the C++ standard library.
        let library = unsafe { Library::new(path) }.map_err(error)?;
        // SAFETY: EMULATION_ENTRY in fibers.h defines the function with this signature.
        let launch = unsafe { library.get::<LaunchFunction>(b"emulation_launch\0") }.map_err(error)?;
        Ok(Self { launch: *launch, _library: library })
    }

    /// Runs a grid. `arguments` hold addresses that the kernel may use as it does.
    pub(crate) fn launch(
        &self,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        arguments: &[u64],
        backwards: bool,
    ) -> Result<(), String> {
        let _running = RUNNING.lock();
        // SAFETY: the slices live through the call, with their lengths; the function checks the number of arguments
        // and the size of the block. That the addresses are good is what `Device` asks of its caller.
        let fault = unsafe {
            (self.launch)(
                grid.as_ptr(),
                threads,
                shared_bytes,
                arguments.as_ptr(),
                arguments.len(),
                c_int::from(backwards),
            )
        };
        if fault.is_null() {
            return Ok(());
        }
        // SAFETY: not null, so a string literal of the library, which is loaded.
        Err(unsafe { CStr::from_ptr(fault) }.to_string_lossy().into_owned())
    }
}
