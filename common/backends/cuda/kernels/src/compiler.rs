//! What makes device code of kernels.

use roundhouse_engine::ComputeCapability;

use crate::Kernel;

/// Kernels could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernels for {target}: {what}")]
pub struct CompileError {
    /// What they were for.
    pub target: ComputeCapability,
    /// The compiler's words.
    pub what: String,
}

/// Makes device code of kernels.
pub trait KernelCompiler: Send + Sync {
    /// Which one and its exact version, which is a part of what makes engines differ: `nvrtc.12.9.86`.
    fn version(&self) -> String;

    /// What it can make code for, in ascending order.
    fn targets(&self) -> Vec<ComputeCapability>;

    /// An image for a device to load, in which every kernel is a function of its [`Kernel::name`].
    ///
    /// # Errors
    /// When a source does not compile for the target.
    fn compile(&self, kernels: &[Kernel], target: ComputeCapability) -> Result<Vec<u8>, CompileError>;
}
