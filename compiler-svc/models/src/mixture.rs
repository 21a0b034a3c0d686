//! Mixtures of experts (Shazeer et al. 2017): a router chooses some of many feed-forward networks for each token.

use roundhouse_backend::WeightError;
use roundhouse_graph::{ExpertAttributes, Op, ValueId, WeightExpr};
use serde_json::Value;

use crate::decoder::Layer;
use crate::feed_forward::{GatedFeedForward, activation};
use crate::graph_builder::GraphBuilder;
use crate::{Config, ConfigError, ModelError};

/// The fields that mixtures read themselves, for [`refuse_fields`](crate::refused_fields::refuse_fields).
pub(crate) const EXPERT_FIELDS: [&str; 2] = ["num_experts", "num_local_experts"];

/// What a family calls the parts of a mixture whose experts have tensors of their own. Transformers 5 calls them alike in
/// memory, and writes that down when it is told to (`save_original_format=False`): see [`STACKED`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpertNames {
    /// The module in a layer.
    pub(crate) module: &'static str,
    /// The gate of an expert.
    pub(crate) gate: &'static str,
    /// Its up projection.
    pub(crate) up: &'static str,
    /// Its down projection.
    pub(crate) down: &'static str,
}

/// The module in a layer whose experts are stacked: `experts.gate_up_proj [experts, 2 · intermediate, hidden]` and
/// `experts.down_proj [experts, hidden, intermediate]`.
const STACKED: &str = "mlp";

/// A mixture of experts.
#[derive(Debug, Clone)]
pub(crate) struct MixtureOfExperts {
    hidden_size: u32,
    intermediate_size: u32,
    num_experts: u32,
    attributes: ExpertAttributes,
    names: ExpertNames,
}

impl MixtureOfExperts {
    /// Reads one whose experts are of the size in `intermediate_field`; with `normalize`, the weights of those chosen add
    /// up to one. `None` where `num_experts` is 0.
    ///
    /// # Errors
    /// When a field is missing, malformed or not supported, or they do not fit each other.
    pub(crate) fn read(
        config: &Config<'_>,
        hidden_size: u32,
        intermediate_field: &str,
        normalize: bool,
        names: ExpertNames,
    ) -> Result<Option<Self>, ConfigError> {
        let num_experts = num_experts(config)?;
        let intermediate_size = config.positive(intermediate_field)?;
        let top_k = config.positive("num_experts_per_tok")?;
        let hidden_act = activation(config, "hidden_act", "silu")?;
        if num_experts == 0 {
            return Ok(None);
        }
        if top_k > num_experts {
            let expected = format!("at most the number of experts, which is {num_experts}");
            return Err(config.invalid("num_experts_per_tok", &Value::from(top_k), &expected));
        }
        if hidden_act != Op::Silu {
            let found = config.get("hidden_act").cloned().unwrap_or_default();
            return Err(config.unsupported("hidden_act", &found, "\"silu\", for experts"));
        }
        let rows = intermediate_size.checked_mul(2).map(|rows| rows.max(hidden_size));
        if rows.and_then(|rows| rows.checked_mul(num_experts)).is_none() {
            let expected = format!("a size of which {num_experts} experts fit a tensor");
            return Err(config.invalid(intermediate_field, &Value::from(intermediate_size), &expected));
        }
        let attributes = ExpertAttributes { top_k, normalize };
        Ok(Some(Self { hidden_size, intermediate_size, num_experts, attributes, names }))
    }

    /// `x [batch, seq, hidden_size]` → the same, by the router and the experts of `layer`.
    pub(crate) fn build(
        &self,
        builder: &mut GraphBuilder<'_>,
        layer: &Layer,
        x: ValueId,
    ) -> Result<ValueId, ModelError> {
        let stacked = layer.module(STACKED);
        let (module, gate_up, down) = match builder.checkpoint().shape(&gate_up_name(&stacked)) {
            Ok(_) => {
                let (gate_up, down) = self.stacked(builder, &stacked)?;
                (stacked, gate_up, down)
            }
            Err(WeightError::NotFound { .. }) => {
                let module = layer.module(self.names.module);
                let (gate_up, down) = self.joined(builder, &module)?;
                (module, gate_up, down)
            }
            Err(error) => return Err(error.into()),
        };
        let router = [self.hidden_size, self.num_experts];
        let router_logits = builder.linear(&format!("{module}.gate"), x, router, false)?;
        builder.node(Op::MixtureOfExperts(self.attributes), &[x, router_logits, gate_up, down])
    }

    /// The shapes of gate and up of all experts, and of down of all experts.
    fn shapes(&self) -> [[u32; 2]; 2] {
        let (hidden, intermediate) = (self.hidden_size, self.intermediate_size);
        [[2 * intermediate * self.num_experts, hidden], [hidden * self.num_experts, intermediate]]
    }

    /// Both weights, of tensors that hold those of all experts.
    fn stacked(
        &self,
        builder: &mut GraphBuilder<'_>,
        module: &str,
    ) -> Result<(ValueId, ValueId), ModelError> {
        let [gate_up_shape, down_shape] = self.shapes();
        let (hidden, intermediate) = (self.hidden_size, self.intermediate_size);
        let mut weight = |tensor: &str, [rows, columns]: [u32; 2], shape: [u32; 2]| {
            let matrix = WeightExpr::Matrix { name: tensor.to_owned() };
            builder.derived(tensor, tensor, &[self.num_experts, rows, columns], &shape, |_| matrix)
        };
        let gate_up = weight(&gate_up_name(module), [2 * intermediate, hidden], gate_up_shape)?;
        let down = weight(&format!("{module}.experts.down_proj"), [hidden, intermediate], down_shape)?;
        Ok((gate_up, down))
    }

    /// Both weights, joined of a tensor an expert and projection.
    fn joined(&self, builder: &mut GraphBuilder<'_>, module: &str) -> Result<(ValueId, ValueId), ModelError> {
        let [gate_up_shape, down_shape] = self.shapes();
        let (hidden, intermediate) = (self.hidden_size, self.intermediate_size);
        let experts = || (0..self.num_experts).map(|expert| format!("{module}.experts.{expert}"));
        let ExpertNames { gate, up, down, .. } = self.names;
        let of_each = |parts: &[&str]| -> Vec<String> {
            experts()
                .flat_map(|expert| parts.iter().map(move |part| format!("{expert}.{part}.weight")))
                .collect()
        };
        let gate_up = builder.joined(
            &gate_up_name(module),
            &of_each(&[gate, up]),
            &[intermediate, hidden],
            &gate_up_shape,
        )?;
        let name = format!("{module}.experts.down_proj");
        let down = builder.joined(&name, &of_each(&[down]), &[hidden, intermediate], &down_shape)?;
        Ok((gate_up, down))
    }
}

fn gate_up_name(module: &str) -> String {
    format!("{module}.experts.gate_up_proj")
}

/// `num_experts`, or as newer versions of Transformers call it, `num_local_experts`; the number may be 0.
fn num_experts(config: &Config<'_>) -> Result<u32, ConfigError> {
    let [name, other] = EXPERT_FIELDS;
    match (config.optional_unsigned(name)?, config.optional_unsigned(other)?) {
        (Some(count), Some(alias)) if count != alias => {
            Err(config.invalid(other, &Value::from(alias), &format!("the same as {name}, which is {count}")))
        }
        (Some(count), _) | (None, Some(count)) => Ok(count),
        (None, None) => Err(config.missing(name, "an integer of zero or more, below 2^32")),
    }
}

/// The feed-forward networks of a model some of whose layers are mixtures, as Qwen's configs have them.
#[derive(Debug, Clone)]
pub(crate) struct SparseFeedForward {
    mixture: Option<MixtureOfExperts>,
    dense: GatedFeedForward,
    /// By layer.
    is_sparse: Vec<bool>,
}

impl SparseFeedForward {
    /// Every `decoder_sparse_step`-th layer is `mixture`, but for those in `mlp_only_layers`.
    ///
    /// # Errors
    /// When a field is missing, malformed or not supported.
    pub(crate) fn read(
        config: &Config<'_>,
        hidden_size: u32,
        num_hidden_layers: u32,
        mixture: Option<MixtureOfExperts>,
    ) -> Result<Self, ConfigError> {
        const DENSE: &str = "mlp_only_layers";
        let step = config.optional_positive("decoder_sparse_step")?.unwrap_or(1);
        let dense = config.optional_list(DENSE)?.unwrap_or_default();
        if let Some(found) = dense.iter().find(|value| value.as_u64().is_none()) {
            return Err(config.invalid(DENSE, found, "a list of numbers of layers, from 0 on"));
        }
        let is_sparse = |layer: u32| {
            mixture.is_some()
                && (layer + 1).is_multiple_of(step)
                && !dense.iter().any(|value| value.as_u64() == Some(u64::from(layer)))
        };
        Ok(Self {
            is_sparse: (0..num_hidden_layers).map(is_sparse).collect(),
            mixture,
            dense: GatedFeedForward::read(config, hidden_size)?,
        })
    }

    /// `x [batch, seq, hidden_size]` → the same. `beside` makes of the output of a mixture what the family makes of it.
    pub(crate) fn build(
        &self,
        builder: &mut GraphBuilder<'_>,
        layer: &Layer,
        x: ValueId,
        beside: impl FnOnce(&mut GraphBuilder<'_>, ValueId) -> Result<ValueId, ModelError>,
    ) -> Result<ValueId, ModelError> {
        match &self.mixture {
            Some(mixture) if self.is_sparse.get(layer.index) == Some(&true) => {
                let mixed = mixture.build(builder, layer, x)?;
                beside(builder, mixed)
            }
            _ => self.dense.build(builder, &layer.module("mlp"), x),
        }
    }
}
