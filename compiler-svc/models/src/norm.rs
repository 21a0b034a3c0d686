//! Normalisation with a weight.

use roundhouse_graph::{Op, ValueId};

use crate::ModelError;
use crate::graph_builder::GraphBuilder;

/// A family's RMS norm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RmsNorm {
    /// `rms_norm_eps`.
    pub(crate) epsilon: f32,
    /// Whether the factor is `1 + weight` (Gemma).
    pub(crate) unit_offset: bool,
}

impl RmsNorm {
    /// `x […, width]` normalised over its last axis, by `{prefix}.weight [width]`.
    pub(crate) fn apply(
        self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        x: ValueId,
        width: u32,
    ) -> Result<ValueId, ModelError> {
        let weight = builder.weight(&format!("{prefix}.weight"), &[width])?;
        builder.node(Op::RmsNorm { epsilon: self.epsilon, unit_offset: self.unit_offset }, &[x, weight])
    }
}
