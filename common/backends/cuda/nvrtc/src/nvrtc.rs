//! The compiler.

use roundhouse_backend::LibrarySearch;
use roundhouse_cuda_kernels::{CompileError, Kernel, KernelCompiler, translation_unit};
use roundhouse_engine::ComputeCapability;

use crate::library::Library;
use crate::{NvrtcError, find};

const HOPPER: ComputeCapability = ComputeCapability::new(9, 0);

/// What kernels are compiled for, in ascending order.
const TARGETS: &[ComputeCapability] = &[
    ComputeCapability::new(8, 0),
    ComputeCapability::new(8, 6),
    ComputeCapability::new(8, 9),
    HOPPER,
    ComputeCapability::new(10, 0),
    ComputeCapability::new(12, 0),
];

/// NVRTC, loaded.
#[derive(Debug)]
pub struct Nvrtc {
    library: Library,
    release: String,
}

impl Nvrtc {
    /// Finds and loads it. A process has one: the first that is loaded serves all.
    ///
    /// # Errors
    /// [`NvrtcError`].
    pub fn open(search: &LibrarySearch) -> Result<Self, NvrtcError> {
        let path = find::find(search)?;
        let library = Library::load(&path)?;
        let (major, minor) = library.version;
        Ok(Self { library, release: format!("{major}.{minor}") })
    }

    /// Its version: `12.9`.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Compiles CUDA C++ to device code.
    ///
    /// # Errors
    /// What the compiler says of the text.
    pub fn compile_text(&self, text: &str, target: ComputeCapability) -> Result<Vec<u8>, CompileError> {
        // What Hopper alone has is in an architecture of its own.
        let own = if target == HOPPER { "a" } else { "" };
        let options = [
            format!("--gpu-architecture=sm_{}{}{own}", target.major, target.minor),
            "--std=c++17".to_owned(),
            "-default-device".to_owned(),
        ];
        self.library.compile(text, &options).map_err(|what| CompileError { target, what })
    }
}

impl KernelCompiler for Nvrtc {
    fn version(&self) -> String {
        format!("nvrtc.{}", self.release)
    }

    fn targets(&self) -> Vec<ComputeCapability> {
        TARGETS.to_vec()
    }

    fn compile(&self, kernels: &[Kernel], target: ComputeCapability) -> Result<Vec<u8>, CompileError> {
        self.compile_text(&translation_unit(kernels), target)
    }
}
