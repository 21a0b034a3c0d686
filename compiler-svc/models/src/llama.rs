//! `LlamaForCausalLM`: Llama 2, 3, 3.1 and 3.2, SmolLM2, and the many checkpoints that share their architecture.

use roundhouse_backend::WeightSource;
use roundhouse_engine::ModelInfo;
use roundhouse_graph::{AttentionAttributes, Graph, Op, RotaryAttributes, ValueId};
use serde_json::{Value, json};

use crate::family::ModelFamily;
use crate::graph_builder::GraphBuilder;
use crate::head::head_weight;
use crate::{Config, ConfigError, ModelError, RopeParameters};

/// The family's line in the table.
pub(crate) const FAMILY: ModelFamily =
    ModelFamily { model_type: "llama", architecture: "LlamaForCausalLM", build };

/// What the config says of the architecture, named as there.
struct LlamaConfig {
    vocab_size: u32,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: u32,
    head_dim: u32,
    /// Columns of the queries: `num_attention_heads · head_dim`.
    query_width: u32,
    max_position_embeddings: u32,
    rms_norm_eps: f32,
    attention_bias: bool,
    mlp_bias: bool,
    tie_word_embeddings: bool,
    rotary: RotaryAttributes,
}

/// Fields that change the computation of other models, or of this one in other programs, with the values for which
/// they change nothing here.
fn refused_fields() -> Vec<(&'static str, Vec<Value>)> {
    let off = || vec![json!(false)];
    let one = || vec![json!(1)];
    vec![
        ("pretraining_tp", one()),
        ("quantization_config", vec![]),
        ("rope_interleaved", off()),
        ("partial_rotary_factor", one()),
        ("sliding_window", vec![]),
        ("use_sliding_window", off()),
        ("no_rope_layers", vec![]),
        ("attention_chunk_size", vec![]),
        ("is_causal", vec![json!(true)]),
        ("use_bidirectional_attention", off()),
        ("is_encoder_decoder", off()),
        ("add_cross_attention", off()),
        ("qk_norm", off()),
        ("use_qk_norm", off()),
        ("clip_qkv", vec![]),
        ("attn_logit_softcapping", vec![]),
        ("final_logit_softcapping", vec![]),
        ("query_pre_attn_scalar", vec![]),
        ("attention_multiplier", vec![]),
        ("embedding_multiplier", one()),
        ("residual_multiplier", one()),
        ("logits_scaling", one()),
        ("scale_emb", one()),
        ("scale_depth", vec![]),
        ("dim_model_base", vec![]),
        ("num_local_experts", one()),
        ("num_experts", one()),
        ("n_routed_experts", vec![]),
        ("per_layer_config", vec![]),
        ("block_configs", vec![]),
    ]
}

impl LlamaConfig {
    /// Reads and checks the config. Defaults are those of Transformers' `LlamaConfig`, for the fields whose absence
    /// says something; sizes have to be there.
    fn read(config: &Config<'_>) -> Result<Self, ConfigError> {
        for (name, neutral) in refused_fields() {
            config.refuse_unless(name, &neutral)?;
        }
        if let Some(Value::Array(layers)) = config.get("layer_types")
            && let Some(other) = layers.iter().find(|kind| kind.as_str() != Some("full_attention"))
        {
            return Err(config.unsupported("layer_types", other, "\"full_attention\" for every layer"));
        }
        match config.optional_string("hidden_act")?.unwrap_or("silu") {
            "silu" | "swish" => {}
            other => return Err(config.unsupported("hidden_act", &Value::from(other), "\"silu\"")),
        }

        let hidden_size = config.positive("hidden_size")?;
        let num_attention_heads = config.positive("num_attention_heads")?;
        let num_key_value_heads =
            config.optional_positive("num_key_value_heads")?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads, which is {num_attention_heads}");
            return Err(config.invalid("num_key_value_heads", &Value::from(num_key_value_heads), &expected));
        }
        let head_dim = match config.optional_positive("head_dim")? {
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
            return Err(config.invalid(
                "head_dim",
                &Value::from(head_dim),
                "an even number, for pairs to rotate",
            ));
        }
        let Some(query_width) = num_attention_heads.checked_mul(head_dim) else {
            let expected = format!("a size of which {num_attention_heads} heads fit a tensor");
            return Err(config.invalid("head_dim", &Value::from(head_dim), &expected));
        };
        Ok(Self {
            vocab_size: config.positive("vocab_size")?,
            hidden_size,
            intermediate_size: config.positive("intermediate_size")?,
            num_hidden_layers: config.positive("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            query_width,
            max_position_embeddings: config.optional_positive("max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: config.optional_positive_number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            attention_bias: config.boolean("attention_bias", false)?,
            mlp_bias: config.boolean("mlp_bias", false)?,
            tie_word_embeddings: config.boolean("tie_word_embeddings", false)?,
            rotary: RopeParameters::read(config, 10_000.0)?.attributes(head_dim),
        })
    }
}

fn build(config: &Config<'_>, weights: &dyn WeightSource) -> Result<(Graph, ModelInfo), ModelError> {
    let llama = LlamaConfig::read(config)?;
    let info = ModelInfo {
        model_type: FAMILY.model_type.to_owned(),
        architecture: FAMILY.architecture.to_owned(),
        vocab_size: llama.vocab_size,
        num_hidden_layers: llama.num_hidden_layers,
        max_position_embeddings: llama.max_position_embeddings,
        eos_token_ids: config.token_ids("eos_token_id")?,
        bos_token_id: config.token_ids("bos_token_id")?.first().copied(),
    };
    let graph = llama.graph(weights)?;
    Ok((graph, info))
}

impl LlamaConfig {
    fn graph(&self, weights: &dyn WeightSource) -> Result<Graph, ModelError> {
        let mut builder = GraphBuilder::new(FAMILY.model_type, self.max_position_embeddings, weights);
        let table_name = "model.embed_tokens.weight";
        let table_shape = [self.vocab_size, self.hidden_size];
        let table = builder.weight(table_name, &table_shape)?;
        let mut hidden = builder.node(Op::Embedding, &[builder.input_ids, table])?;
        for layer in 0..self.num_hidden_layers {
            hidden = self.decoder_layer(&mut builder, &format!("model.layers.{layer}"), hidden)?;
        }
        let hidden = self.rms_norm(&mut builder, "model.norm", hidden)?;
        let head_name = "lm_head.weight";
        let head =
            head_weight(&mut builder, head_name, table_shape, (table_name, table), self.tie_word_embeddings)?;
        let logits = builder.node(Op::Linear, &[hidden, head])?;
        // Old checkpoints carry the rotary angles as buffers; a tied one may carry its table twice.
        let ignored =
            |name: &str| name.ends_with(".rotary_emb.inv_freq") || (head == table && name == head_name);
        builder.finish(logits, FAMILY.architecture, ignored)
    }

    /// `hidden [batch, seq, hidden_size]` → the same.
    fn decoder_layer(
        &self,
        builder: &mut GraphBuilder<'_>,
        layer: &str,
        hidden: ValueId,
    ) -> Result<ValueId, ModelError> {
        let normed = self.rms_norm(builder, &format!("{layer}.input_layernorm"), hidden)?;
        let attended = self.attention(builder, &format!("{layer}.self_attn"), normed)?;
        let hidden = builder.node(Op::Add, &[hidden, attended])?;
        let normed = self.rms_norm(builder, &format!("{layer}.post_attention_layernorm"), hidden)?;
        let fed_forward = self.mlp(builder, &format!("{layer}.mlp"), normed)?;
        builder.node(Op::Add, &[hidden, fed_forward])
    }

    fn attention(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        x: ValueId,
    ) -> Result<ValueId, ModelError> {
        let key_value_width = self.num_key_value_heads * self.head_dim;
        let mut project = |name: &str, width: u32, heads: u32| {
            let sizes = [self.hidden_size, width];
            let x = builder.linear(&format!("{prefix}.{name}"), x, sizes, self.attention_bias)?;
            builder.split_heads(x, heads, self.head_dim)
        };
        let query = project("q_proj", self.query_width, self.num_attention_heads)?;
        let key = project("k_proj", key_value_width, self.num_key_value_heads)?;
        let value = project("v_proj", key_value_width, self.num_key_value_heads)?;
        let rotary = Op::RotaryEmbedding(self.rotary.clone());
        let query = builder.node(rotary.clone(), &[query, builder.position_ids])?;
        let key = builder.node(rotary, &[key, builder.position_ids])?;
        let attention = Op::ScaledDotProductAttention(AttentionAttributes::causal());
        let attended = builder.node(attention, &[query, key, value])?;
        let attended = builder.merge_heads(attended, self.query_width)?;
        let sizes = [self.query_width, self.hidden_size];
        builder.linear(&format!("{prefix}.o_proj"), attended, sizes, self.attention_bias)
    }

    /// SwiGLU (Shazeer 2020).
    fn mlp(&self, builder: &mut GraphBuilder<'_>, prefix: &str, x: ValueId) -> Result<ValueId, ModelError> {
        let up = [self.hidden_size, self.intermediate_size];
        let down = [self.intermediate_size, self.hidden_size];
        let gate = builder.linear(&format!("{prefix}.gate_proj"), x, up, self.mlp_bias)?;
        let gate = builder.node(Op::Silu, &[gate])?;
        let up = builder.linear(&format!("{prefix}.up_proj"), x, up, self.mlp_bias)?;
        let product = builder.node(Op::Mul, &[gate, up])?;
        builder.linear(&format!("{prefix}.down_proj"), product, down, self.mlp_bias)
    }

    fn rms_norm(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        x: ValueId,
    ) -> Result<ValueId, ModelError> {
        let weight = builder.weight(&format!("{prefix}.weight"), &[self.hidden_size])?;
        let norm = Op::RmsNorm { epsilon: self.rms_norm_eps, unit_offset: false };
        builder.node(norm, &[x, weight])
    }
}
