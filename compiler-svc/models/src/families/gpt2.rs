//! `GPT2LMHeadModel`: GPT-2 (Radford et al. 2019). Learned positions, layer norms with bias, projections stored
//! transposed.

use std::ops::Range;

use roundhouse_backend::{WeightError, WeightSource};
use roundhouse_engine::ModelInfo;
use roundhouse_graph::{AttentionAttributes, Graph, Op, ValueId, WeightExpr};
use serde_json::Value;

use crate::attention::{Heads, LayerAttention};
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::activation;
use crate::graph_builder::{GraphBuilder, rows_of};
use crate::head::head_weight;
use crate::refused_fields::refuse_fields;
use crate::{Config, ConfigError, ModelError, layer_types};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    models: "GPT-2 (all sizes), DistilGPT-2",
    build,
    components: None,
};

/// What the config says of the architecture, named as there.
struct Gpt2Config {
    vocab_size: u32,
    n_positions: u32,
    n_layer: u32,
    n_inner: u32,
    heads: Heads,
    activation: Op,
    layer_norm_epsilon: f32,
    tie_word_embeddings: bool,
    /// Whether scores are divided by `√head_dim`.
    scale_attn_weights: bool,
    /// Whether they are divided by the layer's number, from 1 on.
    scale_attn_by_inverse_layer_idx: bool,
}

impl Gpt2Config {
    fn read(config: &Config<'_>) -> Result<Self, ConfigError> {
        refuse_fields(config, &[])?;
        // It says in which precision to attend; the graph attends in fp32.
        let _ = config.boolean("reorder_and_upcast_attn", false)?;
        let n_layer = size(config, "n_layer", "num_hidden_layers")?;
        layer_types::uniform(config, n_layer, None)?;
        let n_embd = size(config, "n_embd", "hidden_size")?;
        let n_head = size(config, "n_head", "num_attention_heads")?;
        if !n_embd.is_multiple_of(n_head) {
            let expected = format!("a multiple of n_head, which is {n_head}");
            return Err(config.invalid("n_embd", &Value::from(n_embd), &expected));
        }
        if n_embd > u32::MAX / 4 {
            let expected = "a size of which four fit a tensor";
            return Err(config.invalid("n_embd", &Value::from(n_embd), expected));
        }
        let positions = config.optional_positive("n_positions")?;
        let positions = positions.or(config.optional_positive("max_position_embeddings")?);
        let epsilon = config.optional_positive_number("layer_norm_epsilon")?.unwrap_or(1e-5);
        Ok(Self {
            vocab_size: config.positive("vocab_size")?,
            n_positions: positions.unwrap_or(1024),
            n_layer,
            n_inner: config.optional_positive("n_inner")?.unwrap_or(4 * n_embd),
            heads: Heads {
                hidden_size: n_embd,
                num_attention_heads: n_head,
                num_key_value_heads: n_head,
                head_dim: n_embd / n_head,
                query_width: n_embd,
                key_value_width: n_embd,
            },
            activation: activation(config, "activation_function", "gelu_new")?,
            layer_norm_epsilon: epsilon as f32,
            tie_word_embeddings: config.boolean("tie_word_embeddings", true)?,
            scale_attn_weights: config.boolean("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: config.boolean("scale_attn_by_inverse_layer_idx", false)?,
        })
    }
}

/// A size under its name in GPT-2's configs, or under that of other models, which Transformers takes too.
fn size(config: &Config<'_>, name: &str, other: &str) -> Result<u32, ConfigError> {
    match config.optional_positive(name)? {
        None if config.contains(other) => config.positive(other),
        _ => config.positive(name),
    }
}

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let gpt2 = Gpt2Config::read(source.config)?;
    let info = FAMILY.info(source.config, gpt2.vocab_size, gpt2.n_layer, gpt2.n_positions)?;
    Ok((gpt2.graph(source.weights)?, info))
}

impl Gpt2Config {
    fn graph(&self, weights: &dyn WeightSource) -> Result<Graph, ModelError> {
        let mut builder = GraphBuilder::decoder(FAMILY.model_type, self.n_positions, None, weights);
        // The first checkpoints hold the model without its head, so their names lack what the class adds.
        let model = match weights.shape("transformer.wte.weight") {
            Ok(_) => "transformer.",
            Err(WeightError::NotFound { .. }) => "",
            Err(error) => return Err(error.into()),
        };
        let table_name = format!("{model}wte.weight");
        let hidden_size = self.heads.hidden_size;
        let table_shape = [self.vocab_size, hidden_size];
        let table = builder.weight(&table_name, &table_shape)?;
        let positions = builder.weight(&format!("{model}wpe.weight"), &[self.n_positions, hidden_size])?;
        let (input_ids, position_ids) = (builder.input("input_ids")?, builder.input("position_ids")?);
        let tokens = builder.node(Op::Embedding, &[input_ids, table])?;
        let positions = builder.node(Op::Embedding, &[position_ids, positions])?;
        let mut hidden = builder.node(Op::Add, &[tokens, positions])?;
        for layer in 0..self.n_layer {
            hidden = self.layer(&mut builder, &format!("{model}h.{layer}"), layer, hidden)?;
        }
        let hidden = self.layer_norm(&mut builder, &format!("{model}ln_f"), hidden)?;
        let head_name = "lm_head.weight";
        let embedding = (table_name.as_str(), table);
        let head = head_weight(&mut builder, head_name, table_shape, embedding, self.tie_word_embeddings)?;
        let logits = builder.node(Op::Linear, &[hidden, head])?;
        // Old checkpoints carry the causal mask as buffers; a tied one may carry its table twice.
        let ignored = |name: &str| {
            name.ends_with(".attn.bias")
                || name.ends_with(".attn.masked_bias")
                || (head == table && name == head_name)
        };
        builder.finish(logits, FAMILY.architecture, ignored)
    }

    /// `hidden [batch, seq, n_embd]` → the same.
    fn layer(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        layer: u32,
        hidden: ValueId,
    ) -> Result<ValueId, ModelError> {
        let normed = self.layer_norm(builder, &format!("{prefix}.ln_1"), hidden)?;
        let attended = self.attention(builder, &format!("{prefix}.attn"), layer, normed)?;
        let hidden = builder.node(Op::Add, &[attended, hidden])?;
        let normed = self.layer_norm(builder, &format!("{prefix}.ln_2"), hidden)?;
        let sizes = [self.heads.hidden_size, self.n_inner];
        let inner = conv1d(builder, &format!("{prefix}.mlp.c_fc"), normed, sizes, None)?;
        let inner = builder.node(self.activation.clone(), &[inner])?;
        let sizes = [self.n_inner, self.heads.hidden_size];
        let fed_forward = conv1d(builder, &format!("{prefix}.mlp.c_proj"), inner, sizes, None)?;
        builder.node(Op::Add, &[hidden, fed_forward])
    }

    fn attention(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        layer: u32,
        x: ValueId,
    ) -> Result<ValueId, ModelError> {
        let width = self.heads.hidden_size;
        let fused = format!("{prefix}.c_attn");
        let mut project = |part, index: u32| {
            let rows = index * width..(index + 1) * width;
            conv1d(builder, &fused, x, [width, 3 * width], Some((part, rows)))
        };
        let query = project("query", 0)?;
        let key = project("key", 1)?;
        let value = project("value", 2)?;
        let query = self.heads.split_query(builder, query)?;
        let key = self.heads.split_key_value(builder, key)?;
        let value = self.heads.split_key_value(builder, value)?;
        let mut scale =
            if self.scale_attn_weights { f64::from(self.heads.head_dim).sqrt().recip() } else { 1.0 };
        if self.scale_attn_by_inverse_layer_idx {
            scale /= f64::from(layer + 1);
        }
        let attributes = AttentionAttributes { scale: Some(scale as f32), ..AttentionAttributes::causal() };
        let layer = LayerAttention { rotary: None, attributes };
        let attended = self.heads.attend(builder, [query, key, value], &layer)?;
        conv1d(builder, &format!("{prefix}.c_proj"), attended, [width, width], None)
    }

    fn layer_norm(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        x: ValueId,
    ) -> Result<ValueId, ModelError> {
        let width = [self.heads.hidden_size];
        let weight = builder.weight(&format!("{prefix}.weight"), &width)?;
        let bias = builder.weight(&format!("{prefix}.bias"), &width)?;
        builder.node(Op::LayerNorm { epsilon: self.layer_norm_epsilon }, &[x, weight, bias])
    }
}

/// Transformers' `Conv1D`: a linear layer whose weight is stored as `[inputs, outputs]`. With `part`, only these of its
/// outputs, under a name.
fn conv1d(
    builder: &mut GraphBuilder<'_>,
    prefix: &str,
    x: ValueId,
    [inputs, outputs]: [u32; 2],
    part: Option<(&str, Range<u32>)>,
) -> Result<ValueId, ModelError> {
    let (part, rows) = part.unwrap_or(("transposed", 0..outputs));
    let whole = rows == (0..outputs);
    let select = |tensor| if whole { tensor } else { rows_of(tensor, &rows) };
    let count = rows.end - rows.start;
    let tensor = format!("{prefix}.weight");
    let name = format!("{tensor}.{part}");
    let weight = builder.derived(&name, &tensor, &[inputs, outputs], &[count, inputs], |tensor| {
        select(WeightExpr::Transpose { of: Box::new(tensor) })
    })?;
    let tensor = format!("{prefix}.bias");
    let name = if whole { tensor.clone() } else { format!("{tensor}.{part}") };
    let bias = builder.derived(&name, &tensor, &[outputs], &[count], select)?;
    builder.node(Op::Linear, &[x, weight, bias])
}
