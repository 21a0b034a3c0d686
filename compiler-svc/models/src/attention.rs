//! Self-attention over grouped heads, and the parts that families put together themselves.

use roundhouse_graph::{AttentionAttributes, Op, RotaryAttributes, ValueId};
use serde_json::Value;

use crate::graph_builder::GraphBuilder;
use crate::norm::RmsNorm;
use crate::{Config, ConfigError, ModelError};

/// What a family's configs mean by leaving a field of the heads out.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HeadDefaults {
    /// `num_key_value_heads`; `None` is as many as `num_attention_heads`.
    pub(crate) num_key_value_heads: Option<u32>,
    /// `head_dim`; `None` is `hidden_size / num_attention_heads`.
    pub(crate) head_dim: Option<u32>,
}

/// The heads of a model's attention, named as in its config.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) hidden_size: u32,
    pub(crate) num_attention_heads: u32,
    pub(crate) num_key_value_heads: u32,
    pub(crate) head_dim: u32,
    /// Columns of the queries: `num_attention_heads · head_dim`.
    pub(crate) query_width: u32,
    /// Columns of the keys, and of the values: `num_key_value_heads · head_dim`.
    pub(crate) key_value_width: u32,
}

impl Heads {
    /// Reads and checks them.
    ///
    /// # Errors
    /// When a field is missing or malformed, or they do not fit each other.
    pub(crate) fn read(
        config: &Config<'_>,
        hidden_size: u32,
        defaults: HeadDefaults,
    ) -> Result<Self, ConfigError> {
        let num_attention_heads = config.positive("num_attention_heads")?;
        let num_key_value_heads = config
            .positive_unless_null("num_key_value_heads", defaults.num_key_value_heads)?
            .unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads, which is {num_attention_heads}");
            return Err(config.invalid("num_key_value_heads", &Value::from(num_key_value_heads), &expected));
        }
        let head_dim = match config.optional_positive("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                let expected = format!(
                    "a multiple of num_attention_heads, which is {num_attention_heads}, where there is no head_dim"
                );
                return Err(config.invalid("hidden_size", &Value::from(hidden_size), &expected));
            }
        };
        if !head_dim.is_multiple_of(2) {
            let expected = "an even number, for pairs to rotate";
            return Err(config.invalid("head_dim", &Value::from(head_dim), expected));
        }
        let key_value_width = num_key_value_heads.checked_mul(head_dim);
        let query_width = num_attention_heads.checked_mul(head_dim);
        // Projections of one tensor are as wide as all three together.
        let fused = query_width.and_then(|width| width.checked_mul(3));
        let (Some(query_width), Some(key_value_width), Some(_)) = (query_width, key_value_width, fused)
        else {
            let expected = format!("a size of which {num_attention_heads} heads fit a tensor");
            return Err(config.invalid("head_dim", &Value::from(head_dim), &expected));
        };
        Ok(Self {
            hidden_size,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            query_width,
            key_value_width,
        })
    }

    /// `x [batch, seq, query_width] → [batch, num_attention_heads, seq, head_dim]`.
    pub(crate) fn split_query(
        &self,
        builder: &mut GraphBuilder<'_>,
        x: ValueId,
    ) -> Result<ValueId, ModelError> {
        builder.split_heads(x, self.num_attention_heads, self.head_dim)
    }

    /// `x [batch, seq, key_value_width] → [batch, num_key_value_heads, seq, head_dim]`.
    pub(crate) fn split_key_value(
        &self,
        builder: &mut GraphBuilder<'_>,
        x: ValueId,
    ) -> Result<ValueId, ModelError> {
        builder.split_heads(x, self.num_key_value_heads, self.head_dim)
    }

    /// Rotates queries and keys and attends: `query [batch, num_attention_heads, seq, head_dim]`, `key` and `value
    /// [batch, num_key_value_heads, seq, head_dim]` → `[batch, seq, query_width]`.
    pub(crate) fn attend(
        &self,
        builder: &mut GraphBuilder<'_>,
        [query, key, value]: [ValueId; 3],
        layer: &LayerAttention,
    ) -> Result<ValueId, ModelError> {
        let (mut query, mut key) = (query, key);
        if let Some(rotary) = &layer.rotary {
            let rotary = Op::RotaryEmbedding(rotary.clone());
            let position_ids = builder.input("position_ids")?;
            query = builder.node(rotary.clone(), &[query, position_ids])?;
            key = builder.node(rotary, &[key, position_ids])?;
        }
        let attention = Op::ScaledDotProductAttention(layer.attributes.clone());
        let attended = builder.node(attention, &[query, key, value])?;
        builder.merge_heads(attended, self.query_width)
    }
}

/// How one layer attends.
#[derive(Debug, Clone)]
pub(crate) struct LayerAttention {
    /// `None` in a layer without positions.
    pub(crate) rotary: Option<RotaryAttributes>,
    /// Window, scale and soft cap.
    pub(crate) attributes: AttentionAttributes,
}

impl LayerAttention {
    /// Causal attention, rotated; over `window` positions where that is fewer than `longest`, the longest sequence.
    pub(crate) fn new(rotary: Option<RotaryAttributes>, window: Option<u32>, longest: u32) -> Self {
        let window = window.filter(|&window| window < longest);
        Self { rotary, attributes: AttentionAttributes { window, ..AttentionAttributes::causal() } }
    }
}

/// Self-attention with a projection each for queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SelfAttention {
    /// The heads.
    pub(crate) heads: Heads,
    /// Whether `q_proj`, `k_proj` and `v_proj` have a bias.
    pub(crate) query_key_value_bias: bool,
    /// Whether `o_proj` has one.
    pub(crate) output_bias: bool,
    /// A norm of every head's queries and keys, `q_norm` and `k_norm` (Dehghani et al. 2023).
    pub(crate) head_norm: Option<RmsNorm>,
}

impl SelfAttention {
    /// `x [batch, seq, hidden_size]` → the same, by the projections under `prefix`.
    pub(crate) fn build(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        x: ValueId,
        layer: &LayerAttention,
    ) -> Result<ValueId, ModelError> {
        let heads = &self.heads;
        let project = |builder: &mut GraphBuilder<'_>, name: &str, width| {
            let sizes = [heads.hidden_size, width];
            builder.linear(&format!("{prefix}.{name}"), x, sizes, self.query_key_value_bias)
        };
        let query = project(builder, "q_proj", heads.query_width)?;
        let query = heads.split_query(builder, query)?;
        let key = project(builder, "k_proj", heads.key_value_width)?;
        let key = heads.split_key_value(builder, key)?;
        let value = project(builder, "v_proj", heads.key_value_width)?;
        let value = heads.split_key_value(builder, value)?;
        let (mut query, mut key) = (query, key);
        if let Some(norm) = self.head_norm {
            query = norm.apply(builder, &format!("{prefix}.q_norm"), query, heads.head_dim)?;
            key = norm.apply(builder, &format!("{prefix}.k_norm"), key, heads.head_dim)?;
        }
        let attended = heads.attend(builder, [query, key, value], layer)?;
        let sizes = [heads.query_width, heads.hidden_size];
        builder.linear(&format!("{prefix}.o_proj"), attended, sizes, self.output_bias)
    }
}
