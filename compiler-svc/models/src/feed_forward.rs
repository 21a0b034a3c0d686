//! Feed-forward networks.

use roundhouse_graph::{GeluApproximation, Op, ValueId};
use serde_json::Value;

use crate::graph_builder::GraphBuilder;
use crate::{Config, ConfigError, ModelError};

/// The activations, by their names in configs (Transformers' `ACT2FN`).
const ACTIVATIONS: [(&str, Op); 5] = [
    ("silu", Op::Silu),
    ("swish", Op::Silu),
    ("gelu", Op::Gelu { approximation: GeluApproximation::None }),
    ("gelu_new", Op::Gelu { approximation: GeluApproximation::Tanh }),
    ("gelu_pytorch_tanh", Op::Gelu { approximation: GeluApproximation::Tanh }),
];

/// The activation that a field names; `default` if it is absent.
///
/// # Errors
/// When it is another.
pub(crate) fn activation(config: &Config<'_>, field: &str, default: &str) -> Result<Op, ConfigError> {
    let name = config.optional_string(field)?.unwrap_or(default);
    match ACTIVATIONS.iter().find(|(known, _)| *known == name) {
        Some((_, op)) => Ok(op.clone()),
        None => {
            let names: Vec<&str> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
            Err(config.unsupported(field, &Value::from(name), &format!("one of {}", names.join(", "))))
        }
    }
}

/// A gated feed-forward network (Shazeer 2020): `down(activation(gate(x)) · up(x))`.
#[derive(Debug, Clone)]
pub(crate) struct GatedFeedForward {
    /// `hidden_size`.
    pub(crate) hidden_size: u32,
    /// `intermediate_size`.
    pub(crate) intermediate_size: u32,
    /// Of the gate.
    pub(crate) activation: Op,
    /// Whether all three projections have one.
    pub(crate) bias: bool,
}

impl GatedFeedForward {
    /// One without biases whose activation is `hidden_act`.
    ///
    /// # Errors
    /// When a field is missing, malformed or not supported.
    pub(crate) fn read(config: &Config<'_>, hidden_size: u32) -> Result<Self, ConfigError> {
        Ok(Self {
            hidden_size,
            intermediate_size: config.positive("intermediate_size")?,
            activation: activation(config, "hidden_act", "silu")?,
            bias: false,
        })
    }

    /// `x [batch, seq, hidden_size]` → the same, by `gate_proj`, `up_proj` and `down_proj` under `prefix`.
    pub(crate) fn build(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        x: ValueId,
    ) -> Result<ValueId, ModelError> {
        let sizes = [self.hidden_size, self.intermediate_size];
        let gate = builder.linear(&format!("{prefix}.gate_proj"), x, sizes, self.bias)?;
        let gate = builder.node(self.activation.clone(), &[gate])?;
        let up = builder.linear(&format!("{prefix}.up_proj"), x, sizes, self.bias)?;
        self.down(builder, prefix, gate, up)
    }

    /// As [`build`](Self::build), where `gate_up_proj` holds the rows of the gate and then those of `up`, which are fewer
    /// than 2^32.
    pub(crate) fn build_fused(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        x: ValueId,
    ) -> Result<ValueId, ModelError> {
        let (fused, width) = (format!("{prefix}.gate_up_proj"), self.intermediate_size);
        let sizes = [self.hidden_size, 2 * width];
        let gate = builder.linear_rows(&fused, x, sizes, ("gate", 0..width))?;
        let gate = builder.node(self.activation.clone(), &[gate])?;
        let up = builder.linear_rows(&fused, x, sizes, ("up", width..2 * width))?;
        self.down(builder, prefix, gate, up)
    }

    fn down(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        gate: ValueId,
        up: ValueId,
    ) -> Result<ValueId, ModelError> {
        let product = builder.node(Op::Mul, &[gate, up])?;
        let sizes = [self.intermediate_size, self.hidden_size];
        builder.linear(&format!("{prefix}.down_proj"), product, sizes, self.bias)
    }
}
