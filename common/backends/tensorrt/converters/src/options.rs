//! The options as converters need them.

use roundhouse_engine::{ComputeCapability, EngineOptions, TensorRtOptions};
use roundhouse_graph::{DType, Graph};

use crate::ConvertError;

/// The first compute capability with bfloat16 arithmetic.
const BF16: ComputeCapability = ComputeCapability::new(8, 0);

/// The options of an engine with TensorRT's own filled in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) engine: EngineOptions,
    pub(crate) tensorrt: TensorRtOptions,
}

impl Options {
    pub(crate) fn new(options: &EngineOptions) -> Self {
        Self { engine: *options, tensorrt: options.tensorrt.unwrap_or_default() }
    }

    /// Whether the targets have the arithmetic that a graph asks for. Without targets any GPU will do.
    pub(crate) fn check(&self, graph: &Graph) -> Result<(), ConvertError> {
        let Some((_, value)) = graph.values().find(|(_, value)| value.dtype == DType::Bf16) else {
            return Ok(());
        };
        match self.engine.targets.iter().find(|&target| target < BF16) {
            Some(target) => Err(ConvertError::Option {
                option: "targets",
                reason: format!("{target} has no bf16 arithmetic, which {:?} needs: {BF16} has", value.name),
            }),
            None => Ok(()),
        }
    }
}
