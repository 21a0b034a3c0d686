//! NVRTC's functions.
#![expect(unsafe_code, reason = "the library's functions are C")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;

use libloading::Library as Dylib;

use crate::{NvrtcError, find};

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type CompileProgram = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type GetBytes = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// The library, never unloaded: it keeps state for the whole process.
#[derive(Debug)]
pub(crate) struct Library {
    create: Create,
    destroy: Destroy,
    compile: CompileProgram,
    log_size: GetSize,
    log: GetBytes,
    cubin_size: GetSize,
    cubin: GetBytes,
    /// Major and minor.
    pub(crate) version: (i32, i32),
}

fn open(path: &Path) -> Result<Dylib, NvrtcError> {
    // SAFETY: the file is one that the operator configured or installed; NVRTC's initialisers need nothing of this
    // program.
    unsafe { Dylib::new(path) }.map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> NvrtcError {
    NvrtcError::Unusable { path: path.to_owned(), message: error.to_string() }
}

impl Library {
    pub(crate) fn load(path: &Path) -> Result<Self, NvrtcError> {
        // First, so that the compiler finds it by name although no search path leads there.
        if let Some(builtins) = find::builtins(path) {
            std::mem::forget(open(&builtins)?);
        }
        let dylib = open(path)?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: nvrtc.h declares the function with the type that the field has, in every version 12.
                *unsafe { dylib.get($name) }.map_err(|error| unusable(path, &error))?
            };
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = function!(b"nvrtcVersion\0");
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are valid for a write.
        if unsafe { version(&raw mut major, &raw mut minor) } != 0 {
            return Err(unusable(path, &"it does not tell its version"));
        }
        let library = Self {
            create: function!(b"nvrtcCreateProgram\0"),
            destroy: function!(b"nvrtcDestroyProgram\0"),
            compile: function!(b"nvrtcCompileProgram\0"),
            log_size: function!(b"nvrtcGetProgramLogSize\0"),
            log: function!(b"nvrtcGetProgramLog\0"),
            cubin_size: function!(b"nvrtcGetCUBINSize\0"),
            cubin: function!(b"nvrtcGetCUBIN\0"),
            version: (major, minor),
        };
        std::mem::forget(dylib);
        Ok(library)
    }

    /// Compiles a text, or says why it does not compile.
    pub(crate) fn compile(&self, source: &str, options: &[String]) -> Result<Vec<u8>, String> {
        let source = CString::new(source).map_err(|error| error.to_string())?;
        let options: Vec<CString> = options
            .iter()
            .map(|option| CString::new(option.as_str()).map_err(|error| error.to_string()))
            .collect::<Result<_, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: `program` is valid for a write and the strings end with 0; there are no headers.
        let status = unsafe {
            (self.create)(
                &raw mut program,
                source.as_ptr(),
                c"kernels.cu".as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        if status != 0 {
            return Err(format!("nvrtcCreateProgram returns {status}"));
        }
        let count = c_int::try_from(options.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program was made above, and `options` are as many strings, which live through the call.
        let status = unsafe { (self.compile)(program, count, options.as_ptr()) };
        let result = if status == 0 {
            self.bytes(program, self.cubin_size, self.cubin)
        } else {
            let log = self.bytes(program, self.log_size, self.log).unwrap_or_default();
            let log: String =
                String::from_utf8_lossy(&log).trim_end_matches('\0').chars().take(8000).collect();
            Err(format!("nvrtcCompileProgram returns {status}: {log}"))
        };
        // SAFETY: the program was made above and is used no more.
        unsafe { (self.destroy)(&raw mut program) };
        result
    }

    fn bytes(&self, program: Program, size: GetSize, get: GetBytes) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the program lives, and `length` is valid for a write.
        let status = unsafe { size(program, &raw mut length) };
        let mut bytes = vec![0; length];
        // SAFETY: the buffer has as many bytes as the library says that it writes.
        let status = if status == 0 { unsafe { get(program, bytes.as_mut_ptr().cast()) } } else { status };
        if status == 0 { Ok(bytes) } else { Err(format!("NVRTC returns {status} for its output")) }
    }
}
