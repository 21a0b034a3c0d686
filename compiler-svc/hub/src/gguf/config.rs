//! The `config.json` that each architecture's metadata describes.

use serde_json::{Value, json};

use crate::HubError;

use super::architecture::unsupported;
use super::container::Container;
use super::metadata::Metadata;
use super::rope;

const EMBEDDING: &str = "token_embd.weight";

/// llama.cpp's own values for what files of Gemma 3 do not say.
const GEMMA3_SLIDING_WINDOW_PATTERN: u64 = 6;
const GEMMA3_LOCAL_THETA: f64 = 10_000.0;
/// The layers of Gemma 3 27B, the only one whose `query_pre_attn_scalar` is not the size of a head.
const GEMMA3_27B_LAYERS: u64 = 62;
/// llama.cpp's own values for what files of Qwen's mixtures of experts do not say.
const QWEN2_MOE_NORM_TOPK_PROB: bool = false;
const QWEN3_MOE_NORM_TOPK_PROB: bool = true;
/// llama.cpp's own value for what files of SmolLM3 do not say.
const SMOLLM3_NO_ROPE_LAYER_INTERVAL: u64 = 4;

/// What configs of all architectures are made of.
pub(super) struct ConfigReader<'a> {
    container: &'a Container,
    metadata: &'a Metadata,
    architecture: &'static str,
    heads: u64,
    key_value_heads: u64,
    hidden_size: u64,
    vocab_size: u64,
    head_dim: u64,
}

impl<'a> ConfigReader<'a> {
    /// Reads the sizes.
    ///
    /// # Errors
    /// When one is missing or they contradict each other.
    pub(super) fn new(
        container: &'a Container,
        architecture: &'static str,
        heads: u64,
        key_value_heads: u64,
    ) -> Result<Self, HubError> {
        let metadata = &container.metadata;
        let key = |name: &str| format!("{architecture}.{name}");
        let hidden_size_key = key("embedding_length");
        let hidden_size = metadata.required(&hidden_size_key, metadata.u64(&hidden_size_key)?)?;
        let head_dim = match metadata.u64(&key("attention.key_length"))? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let what = format!("hidden size {hidden_size} is no multiple of {heads} heads");
                return Err(HubError::corrupt(&metadata.path, what));
            }
        };
        if let Some(value) = metadata.u64(&key("attention.value_length"))?.filter(|&value| value != head_dim)
        {
            let found = format!("values of {value}, keys of {head_dim} dimensions");
            return Err(unsupported(metadata, found, "the same"));
        }
        let Some(embedding) = container.tensors.get(EMBEDDING) else {
            return Err(HubError::corrupt(&metadata.path, format!("tensor {EMBEDDING:?} is missing")));
        };
        let vocab_size = embedding.shape.first().copied().unwrap_or(0);
        Ok(Self {
            container,
            metadata,
            architecture,
            heads,
            key_value_heads,
            hidden_size,
            vocab_size,
            head_dim,
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn number(&self, name: &str) -> Result<u64, HubError> {
        let key = self.key(name);
        self.metadata.required(&key, self.metadata.u64(&key)?)
    }

    fn epsilon(&self, name: &str) -> Result<f64, HubError> {
        let key = self.key(name);
        Ok(shortest(self.metadata.required(&key, self.metadata.f64(&key)?)?))
    }

    fn optional_u64(&self, name: &str) -> Result<Option<u64>, HubError> {
        self.metadata.u64(&self.key(name))
    }

    fn optional_f64(&self, name: &str) -> Result<Option<f64>, HubError> {
        Ok(self.metadata.f64(&self.key(name))?.map(shortest))
    }

    fn has(&self, tensor: &str) -> bool {
        self.container.tensors.contains_key(tensor)
    }

    fn theta(&self) -> Result<f64, HubError> {
        Ok(self.optional_f64("rope.freq_base")?.unwrap_or(rope::DEFAULT_THETA))
    }

    /// Refuses a rotary embedding of a part of each head.
    fn whole_heads_are_rotated(&self) -> Result<(), HubError> {
        let head_dim = self.head_dim;
        match self.optional_u64("rope.dimension_count")?.filter(|&rotary| rotary != head_dim) {
            None => Ok(()),
            Some(rotary) => {
                let found = format!("a rotary embedding of {rotary} of {head_dim} dimensions of a head");
                Err(unsupported(self.metadata, found, "all dimensions"))
            }
        }
    }

    /// The fields that all classes have, GPT-2's names aside.
    fn common(&self, class: &str, model_type: &str) -> Result<Value, HubError> {
        let token = |name: &str| self.metadata.u64(&format!("tokenizer.ggml.{name}_token_id"));
        Ok(json!({
            "architectures": [class],
            "model_type": model_type,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": !self.has("output.weight"),
            "bos_token_id": token("bos")?,
            "eos_token_id": token("eos")?,
            "pad_token_id": token("padding")?,
        }))
    }

    /// The fields of Llama's config that those like it share, but for the activation and the rotary embedding.
    fn like_llama(&self, class: &str, model_type: &str) -> Result<Value, HubError> {
        let fields = json!({
            "hidden_size": self.hidden_size,
            "intermediate_size": self.number("feed_forward_length")?,
            "num_hidden_layers": self.number("block_count")?,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.number("context_length")?,
            "rms_norm_eps": self.epsilon("attention.layer_norm_rms_epsilon")?,
            "rope_theta": self.theta()?,
        });
        Ok(with(self.common(class, model_type)?, fields))
    }

    /// As [`like_llama`](Self::like_llama), with SiLU and the scaling of a rotary embedding of whole heads.
    fn silu_rotated(&self, class: &str, model_type: &str) -> Result<Value, HubError> {
        self.whole_heads_are_rotated()?;
        let mut config = with(self.like_llama(class, model_type)?, json!({"hidden_act": "silu"}));
        if let Some(scaling) = rope::scaling(self.container, self.architecture, self.theta()?, self.head_dim)?
        {
            config["rope_scaling"] = scaling;
        }
        Ok(config)
    }

    fn qwen_experts(&self) -> Result<Value, HubError> {
        Ok(json!({
            "num_experts": self.number("expert_count")?,
            "num_experts_per_tok": self.number("expert_used_count")?,
            "moe_intermediate_size": self.number("expert_feed_forward_length")?,
        }))
    }

    fn biases(&self) -> Value {
        json!({
            "attention_bias": self.has("blk.0.attn_q.bias"),
            "mlp_bias": self.has("blk.0.ffn_gate.bias"),
        })
    }
}

pub(super) fn llama(reader: &ConfigReader<'_>) -> Result<Value, HubError> {
    // Mistral is converted to the same architecture. Without a window it computes the same.
    match reader.optional_u64("attention.sliding_window")?.filter(|&window| window > 0) {
        None => Ok(with(reader.silu_rotated("LlamaForCausalLM", "llama")?, reader.biases())),
        Some(window) => {
            let config = reader.silu_rotated("MistralForCausalLM", "mistral")?;
            Ok(with(config, json!({"sliding_window": window})))
        }
    }
}

pub(super) fn qwen2(reader: &ConfigReader<'_>) -> Result<Value, HubError> {
    reader.silu_rotated("Qwen2ForCausalLM", "qwen2")
}

pub(super) fn qwen3(reader: &ConfigReader<'_>) -> Result<Value, HubError> {
    let config = reader.silu_rotated("Qwen3ForCausalLM", "qwen3")?;
    Ok(with(config, json!({"attention_bias": reader.has("blk.0.attn_q.bias")})))
}

/// A Llama with experts.
pub(super) fn mixtral(reader: &ConfigReader<'_>) -> Result<Value, HubError> {
    let fields = json!({
        "num_local_experts": reader.number("expert_count")?,
        "num_experts_per_tok": reader.number("expert_used_count")?,
        "sliding_window": reader.optional_u64("attention.sliding_window")?.filter(|&window| window > 0),
    });
    Ok(with(reader.silu_rotated("MixtralForCausalLM", "mixtral")?, fields))
}

pub(super) fn qwen2_moe(reader: &ConfigReader<'_>) -> Result<Value, HubError> {
    let config = with(reader.silu_rotated("Qwen2MoeForCausalLM", "qwen2_moe")?, reader.qwen_experts()?);
    let shared = reader.number("expert_shared_feed_forward_length")?;
    let biases = reader.has("blk.0.attn_q.bias");
    Ok(with(
        config,
        json!({
            "norm_topk_prob": QWEN2_MOE_NORM_TOPK_PROB,
            "shared_expert_intermediate_size": shared,
            "qkv_bias": biases,
        }),
    ))
}

pub(super) fn qwen3_moe(reader: &ConfigReader<'_>) -> Result<Value, HubError> {
    let config = with(reader.silu_rotated("Qwen3MoeForCausalLM", "qwen3_moe")?, reader.qwen_experts()?);
    let biases = reader.has("blk.0.attn_q.bias");
    Ok(with(config, json!({"norm_topk_prob": QWEN3_MOE_NORM_TOPK_PROB, "attention_bias": biases})))
}

pub(super) fn smollm3(reader: &ConfigReader<'_>) -> Result<Value, HubError> {
    let config = with(reader.silu_rotated("SmolLM3ForCausalLM", "smollm3")?, reader.biases());
    Ok(with(config, json!({"no_rope_layer_interval": SMOLLM3_NO_ROPE_LAYER_INTERVAL})))
}

pub(super) fn gemma3(reader: &ConfigReader<'_>) -> Result<Value, HubError> {
    reader.whole_heads_are_rotated()?;
    let layers = reader.number("block_count")?;
    let query_pre_attn_scalar =
        if layers == GEMMA3_27B_LAYERS { reader.hidden_size / reader.heads } else { reader.head_dim };
    let mut config = with(
        reader.like_llama("Gemma3ForCausalLM", "gemma3_text")?,
        json!({
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": reader.number("attention.sliding_window")?,
            "query_pre_attn_scalar": query_pre_attn_scalar,
            "rope_local_base_freq": reader.optional_f64("rope.freq_base_swa")?.unwrap_or(GEMMA3_LOCAL_THETA),
            "attn_logit_softcapping": reader.optional_f64("attn_logit_softcapping")?,
            "final_logit_softcapping": reader.optional_f64("final_logit_softcapping")?,
        }),
    );
    let key = reader.key("attention.sliding_window_pattern");
    match reader.metadata.bools(&key) {
        Some(sliding) => {
            let name = |&sliding: &bool| if sliding { "sliding_attention" } else { "full_attention" };
            config["layer_types"] = sliding.iter().map(name).collect();
        }
        None => {
            let pattern = reader.metadata.u64(&key)?.unwrap_or(GEMMA3_SLIDING_WINDOW_PATTERN);
            config["sliding_window_pattern"] = json!(pattern);
        }
    }
    if let Some(scaling) =
        rope::scaling(reader.container, reader.architecture, reader.theta()?, reader.head_dim)?
    {
        config["rope_scaling"] = scaling;
    }
    Ok(config)
}

pub(super) fn phi3(reader: &ConfigReader<'_>) -> Result<Value, HubError> {
    let rotary = reader.optional_u64("rope.dimension_count")?.unwrap_or(reader.head_dim);
    let Some(partial_rotary_factor) = partial_rotary_factor(rotary, reader.head_dim) else {
        let what = format!("a rotary embedding of {rotary} of {} dimensions of a head", reader.head_dim);
        return Err(HubError::corrupt(&reader.metadata.path, what));
    };
    let mut config = with(
        reader.like_llama("Phi3ForCausalLM", "phi3")?,
        json!({
            "hidden_act": "silu",
            "partial_rotary_factor": partial_rotary_factor,
            // The converter writes zero where a config has none.
            "sliding_window": reader.optional_u64("attention.sliding_window")?.filter(|&window| window > 0),
            "original_max_position_embeddings": reader.optional_u64("rope.scaling.original_context_length")?,
        }),
    );
    if let Some(scaling) = rope::longrope(reader.container, reader.architecture, rotary)? {
        config["rope_scaling"] = scaling;
    }
    Ok(config)
}

pub(super) fn gpt2(reader: &ConfigReader<'_>) -> Result<Value, HubError> {
    let fields = json!({
        "activation_function": "gelu_new",
        "n_embd": reader.hidden_size,
        "n_layer": reader.number("block_count")?,
        "n_head": reader.heads,
        "n_positions": reader.number("context_length")?,
        "n_inner": reader.number("feed_forward_length")?,
        "layer_norm_epsilon": reader.epsilon("attention.layer_norm_epsilon")?,
    });
    Ok(with(reader.common("GPT2LMHeadModel", "gpt2")?, fields))
}

/// An object with the fields of another added.
fn with(mut config: Value, fields: Value) -> Value {
    if let (Value::Object(config), Value::Object(fields)) = (&mut config, fields) {
        config.extend(fields);
    }
    config
}

/// The `partial_rotary_factor` of which `head_dim`, rounded down, is `rotary`.
fn partial_rotary_factor(rotary: u64, head_dim: u64) -> Option<f64> {
    if rotary == 0 || rotary > head_dim {
        return None;
    }
    let factor = rotary as f64 / head_dim as f64;
    Some(if (head_dim as f64 * factor) as u64 == rotary { factor } else { factor.next_up() })
}

/// Metadata has single-precision numbers: `9.999999747378752e-06` was `1e-05` in the config it was made of.
pub(super) fn shortest(value: f64) -> f64 {
    let single = value as f32;
    if f64::from(single) == value { single.to_string().parse().unwrap_or(value) } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_precision_numbers_get_their_shortest_form() {
        assert_eq!(shortest(f64::from(1e-5f32)), 1e-5);
        assert_eq!(shortest(500_000.0), 500_000.0);
        assert_eq!(shortest(0.1), 0.1);
    }

    #[test]
    fn a_part_of_a_head_gives_its_dimensions_back() {
        for head_dim in 1..300 {
            for rotary in 1..=head_dim {
                let factor = partial_rotary_factor(rotary, head_dim).unwrap();
                assert_eq!((head_dim as f64 * factor) as u64, rotary, "of {head_dim}");
            }
        }
        assert_eq!(partial_rotary_factor(96, 128), Some(0.75));
        assert_eq!(partial_rotary_factor(129, 128), None);
        assert_eq!(partial_rotary_factor(0, 128), None);
    }
}
