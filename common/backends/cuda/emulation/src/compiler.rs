//! Images for the emulated device.

use roundhouse_cuda_kernels::{CompileError, Kernel, KernelCompiler};
use roundhouse_engine::ComputeCapability;

/// Makes images for [`crate::EmulatedDevice`]: they name kernels, which are compiled when they are first asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmulationCompiler;

impl KernelCompiler for EmulationCompiler {
    fn version(&self) -> String {
        "emulation.1".to_owned()
    }

    fn targets(&self) -> Vec<ComputeCapability> {
        vec![ComputeCapability::new(9, 0)]
    }

    fn compile(&self, kernels: &[Kernel], target: ComputeCapability) -> Result<Vec<u8>, CompileError> {
        serde_json::to_vec(kernels).map_err(|error| CompileError { target, what: error.to_string() })
    }
}
