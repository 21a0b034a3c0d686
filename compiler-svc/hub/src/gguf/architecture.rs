//! What is known of each GGUF architecture: its tensors' Hugging Face names and its config.

use serde_json::{Value, json};

use crate::HubError;

use super::container::Container;
use super::metadata::Metadata;
use super::rope;

/// One architecture of llama.cpp that Hugging Face models are converted to. A new one is a new row of [`KNOWN`].
struct Known {
    /// `general.architecture`.
    name: &'static str,
    /// The config's `architectures`.
    class: &'static str,
    /// The config's `model_type`.
    model_type: &'static str,
    /// Whether the converter interleaves the rows of query and key projections for ggml's rotary embedding.
    interleaved: bool,
    /// Tensors of a layer beside [`LAYER`]'s.
    layer: &'static [(&'static str, &'static str)],
}

const KNOWN: [Known; 3] = [
    Known { name: "llama", class: "LlamaForCausalLM", model_type: "llama", interleaved: true, layer: &[] },
    Known { name: "qwen2", class: "Qwen2ForCausalLM", model_type: "qwen2", interleaved: false, layer: &[] },
    Known {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        model_type: "qwen3",
        interleaved: false,
        layer: &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")],
    },
];

/// Tensors outside the layers, without `.weight`.
const OUTSIDE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Tensors of a layer, without `blk.N.` and `.weight` or `.bias`.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    (QUERY, "self_attn.q_proj"),
    (KEY, "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
const QUERY: &str = "attn_q";
const KEY: &str = "attn_k";
const EMBEDDING: &str = "token_embd.weight";

/// What a tensor of the file is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TensorName {
    /// A weight of the model.
    Weight {
        /// Its Hugging Face name.
        name: String,
        /// Heads whose rows have to be put back in order.
        interleaved_heads: Option<u64>,
    },
    /// Not a weight: what it says is in the config.
    Ignored,
}

/// A file's architecture.
pub(crate) struct Architecture {
    known: &'static Known,
    heads: u64,
    key_value_heads: u64,
}

impl Architecture {
    /// Finds a file's architecture.
    ///
    /// # Errors
    /// When it is not supported, or its head counts are not there.
    pub(crate) fn of(container: &Container) -> Result<Self, HubError> {
        let metadata = &container.metadata;
        let name = metadata.required("general.architecture", metadata.string("general.architecture")?)?;
        let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
            return Err(unsupported(metadata, format!("architecture {name:?}"), &names().join(", ")));
        };
        for (key, unsupported_from) in [("split.count", 2), (&format!("{name}.expert_count") as &str, 1)] {
            if let Some(value) = metadata.u64(key)?.filter(|&value| value >= unsupported_from) {
                return Err(unsupported(metadata, format!("{key:?} = {value}"), "one file, dense layers"));
            }
        }
        let count = |key: &str, otherwise: Option<u64>| -> Result<u64, HubError> {
            let key = format!("{name}.{key}");
            let count = metadata.required(&key, metadata.u64(&key)?.or(otherwise))?;
            // More heads than that are no model's, and cannot overflow in products below.
            if (1..=1 << 16).contains(&count) {
                Ok(count)
            } else {
                Err(HubError::corrupt(&metadata.path, format!("metadata {key:?} is {count}")))
            }
        };
        let heads = count("attention.head_count", None)?;
        Ok(Self { known, heads, key_value_heads: count("attention.head_count_kv", Some(heads))? })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.known.name
    }

    /// What a tensor of the file is. `None` when this architecture has no such tensor.
    pub(crate) fn hugging_face_name(&self, name: &str) -> Option<TensorName> {
        if name == rope::FREQUENCY_FACTORS {
            return Some(TensorName::Ignored);
        }
        let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        let find = |table: &[(&str, &'static str)], stem: &str| {
            table.iter().find(|(from, _)| *from == stem).map(|(_, to)| *to)
        };
        let Some((layer, stem)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            let name = format!("{}.{kind}", find(&OUTSIDE, stem)?);
            return Some(TensorName::Weight { name, interleaved_heads: None });
        };
        let layer: u32 = layer.parse().ok().filter(|number: &u32| number.to_string() == layer)?;
        let module = find(&LAYER, stem).or_else(|| find(self.known.layer, stem))?;
        let interleaved_heads = match stem {
            QUERY if self.known.interleaved => Some(self.heads),
            KEY if self.known.interleaved => Some(self.key_value_heads),
            _ => None,
        };
        Some(TensorName::Weight { name: format!("model.layers.{layer}.{module}.{kind}"), interleaved_heads })
    }

    /// The `config.json` that the metadata describes.
    ///
    /// # Errors
    /// When it is incomplete or contradicts itself.
    pub(crate) fn config(&self, container: &Container) -> Result<Value, HubError> {
        let metadata = &container.metadata;
        let key = |name: &str| format!("{}.{name}", self.known.name);
        let number = |name: &str| {
            let key = key(name);
            metadata.required(&key, metadata.u64(&key)?)
        };
        let hidden_size = number("embedding_length")?;
        let head_dim = match metadata.u64(&key("attention.key_length"))? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(self.heads) => hidden_size / self.heads,
            None => {
                let what = format!("hidden size {hidden_size} is no multiple of {} heads", self.heads);
                return Err(HubError::corrupt(&metadata.path, what));
            }
        };
        if let Some(rotary) = metadata.u64(&key("rope.dimension_count"))?.filter(|&rotary| rotary != head_dim)
        {
            let found = format!("a rotary embedding of {rotary} of {head_dim} dimensions of a head");
            return Err(unsupported(metadata, found, "all dimensions"));
        }
        if let Some(value) = metadata.u64(&key("attention.value_length"))?.filter(|&value| value != head_dim)
        {
            return Err(unsupported(
                metadata,
                format!("values of {value}, keys of {head_dim} dimensions"),
                "the same",
            ));
        }
        let Some(embedding) = container.tensors.get(EMBEDDING) else {
            return Err(HubError::corrupt(&metadata.path, format!("tensor {EMBEDDING:?} is missing")));
        };
        let epsilon_key = key("attention.layer_norm_rms_epsilon");
        let epsilon = metadata.required(&epsilon_key, metadata.f64(&epsilon_key)?)?;
        let token = |name: &str| metadata.u64(&format!("tokenizer.ggml.{name}_token_id"));
        let has = |name: &str| container.tensors.contains_key(name);
        let rope_theta = metadata.f64(&key("rope.freq_base"))?.unwrap_or(rope::DEFAULT_THETA);
        let mut config = json!({
            "architectures": [self.known.class],
            "model_type": self.known.model_type,
            "hidden_act": "silu",
            "hidden_size": hidden_size,
            "intermediate_size": number("feed_forward_length")?,
            "num_hidden_layers": number("block_count")?,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": head_dim,
            "max_position_embeddings": number("context_length")?,
            "rms_norm_eps": shortest(epsilon),
            "rope_theta": shortest(rope_theta),
            "vocab_size": embedding.shape.first().copied().unwrap_or(0),
            "tie_word_embeddings": !has("output.weight"),
            "attention_bias": has("blk.0.attn_q.bias"),
            "mlp_bias": has("blk.0.ffn_gate.bias"),
            "bos_token_id": token("bos")?,
            "eos_token_id": token("eos")?,
            "pad_token_id": token("padding")?,
        });
        if let Some(scaling) = rope::scaling(container, self.known.name, rope_theta, head_dim)? {
            config["rope_scaling"] = scaling;
        }
        Ok(config)
    }
}

/// Metadata has single-precision numbers: `9.999999747378752e-06` was `1e-05` in the config it was made of.
pub(crate) fn shortest(value: f64) -> f64 {
    let single = value as f32;
    if f64::from(single) == value { single.to_string().parse().unwrap_or(value) } else { value }
}

pub(crate) fn unsupported(metadata: &Metadata, found: String, supported: &str) -> HubError {
    HubError::Unsupported {
        place: metadata.path.display().to_string(),
        found,
        supported: supported.to_owned(),
    }
}

fn names() -> Vec<&'static str> {
    KNOWN.iter().map(|known| known.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Architecture {
        Architecture { known: &KNOWN[0], heads: 9, key_value_heads: 3 }
    }

    #[test]
    fn tensors_get_their_hugging_face_names() {
        let weight =
            |name: &str, heads| Some(TensorName::Weight { name: name.to_owned(), interleaved_heads: heads });
        let name = |name| llama().hugging_face_name(name);
        assert_eq!(name("token_embd.weight"), weight("model.embed_tokens.weight", None));
        assert_eq!(name("output.weight"), weight("lm_head.weight", None));
        assert_eq!(name("blk.12.attn_q.weight"), weight("model.layers.12.self_attn.q_proj.weight", Some(9)));
        assert_eq!(name("blk.0.attn_k.bias"), weight("model.layers.0.self_attn.k_proj.bias", Some(3)));
        assert_eq!(name("blk.3.ffn_down.weight"), weight("model.layers.3.mlp.down_proj.weight", None));
        assert_eq!(name("rope_freqs.weight"), Some(TensorName::Ignored));
    }

    #[test]
    fn tensors_that_the_architecture_does_not_have_get_none() {
        for name in [
            "",
            "blk.0.ffn_gate_exps.weight",
            "blk.x.attn_q.weight",
            "blk.01.attn_q.weight",
            "blk.0.attn_q",
            "blk.0.attn_q_norm.weight",
            "token_embd.scale",
            "v.blk.0.attn_q.weight",
        ] {
            assert_eq!(llama().hugging_face_name(name), None, "{name}");
        }
    }

    #[test]
    fn single_precision_numbers_get_their_shortest_form() {
        assert_eq!(shortest(f64::from(1e-5f32)), 1e-5);
        assert_eq!(shortest(500_000.0), 500_000.0);
        assert_eq!(shortest(0.1), 0.1);
    }
}
