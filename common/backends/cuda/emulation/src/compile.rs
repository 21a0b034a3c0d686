//! Kernels to shared libraries.

use std::path::{Path, PathBuf};
use std::process::Command;

use roundhouse_cuda_kernels::{Kernel, translation_unit_on};
use sha2::{Digest, Sha256};

const PRELUDE: &str = concat!(include_str!("../include/fibers.h"), include_str!("../include/intrinsics.h"));
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-march=native",
    // The kernels read memory as words of other types, as CUDA lets them.
    "-fno-strict-aliasing",
    // As a device does it: one rounding an operation unless fmaf is written.
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-w",
    "-x",
    "c++",
];

/// Why a kernel cannot be emulated.
#[derive(Debug, thiserror::Error)]
pub enum EmulationError {
    /// There is no C++ compiler.
    #[error("no C++ compiler: `{command}`: {source}; install one, or name it in CXX")]
    NoCompiler {
        /// What was run.
        command: String,
        /// Why it could not be.
        source: std::io::Error,
    },
    /// The compiler refuses the kernel.
    #[error("kernel {kernel} does not compile for the emulation: {log}")]
    Compile {
        /// The kernel.
        kernel: String,
        /// What the compiler says.
        log: String,
    },
    /// A file cannot be written or loaded.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// A change of the kernels' text, to see that a mistake is noticed.
#[derive(Debug, Clone)]
pub struct Mistake {
    /// What is in the text of the kernels that have it.
    pub right: String,
    /// What is put in its place.
    pub wrong: String,
}

/// Compiles one kernel to a shared library in `folder`, unless it is there already, and returns its path.
///
/// # Errors
/// [`EmulationError`].
pub fn compile(folder: &Path, kernel: &Kernel, mistake: Option<&Mistake>) -> Result<PathBuf, EmulationError> {
    let name = kernel.name();
    let mut source = translation_unit_on(PRELUDE, std::slice::from_ref(kernel));
    if let Some(Mistake { right, wrong }) = mistake {
        source = source.replace(right, wrong);
    }
    source.push_str("EMULATION_ENTRY(");
    source.push_str(&name);
    source.push_str(")\n");
    compile_source(folder, &name, &source)
}

fn compile_source(folder: &Path, name: &str, source: &str) -> Result<PathBuf, EmulationError> {
    let command = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut digest = Sha256::new();
    digest.update(&command);
    digest.update(FLAGS.join(" "));
    digest.update(source);
    let digest: String = digest.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    let library = folder.join(format!("{digest}.so"));
    if library.is_file() {
        return Ok(library);
    }
    let file = |path: &Path, error: &dyn std::fmt::Display| EmulationError::File {
        path: path.to_owned(),
        message: error.to_string(),
    };
    std::fs::create_dir_all(folder).map_err(|error| file(folder, &error))?;
    // Another process may compile the same: each has a folder of its own, and the last step is a rename.
    let scratch = tempfile::tempdir_in(folder).map_err(|error| file(folder, &error))?;
    let (text, output) = (scratch.path().join("kernel.cpp"), scratch.path().join("kernel.so"));
    std::fs::write(&text, source).map_err(|error| file(&text, &error))?;
    let run = Command::new(&command).args(FLAGS).arg(&text).arg("-o").arg(&output).output();
    let run = run.map_err(|source| EmulationError::NoCompiler { command: command.clone(), source })?;
    if !run.status.success() {
        let log = String::from_utf8_lossy(&run.stderr).chars().take(4000).collect();
        return Err(EmulationError::Compile { kernel: name.to_owned(), log });
    }
    std::fs::rename(&output, &library).map_err(|error| file(&library, &error))?;
    Ok(library)
}
