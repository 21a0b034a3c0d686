//! Published models by their shapes, with weights of no meaning.

use std::collections::BTreeMap;
use std::ops::Range;

use roundhouse_backend::{WeightError, WeightSource};
use serde_json::{Value, json};

/// A model of a published shape.
pub(crate) struct Shape {
    /// Its config.json.
    pub(crate) config: Value,
    /// The checkpoint's tensors.
    pub(crate) weights: RandomWeights,
}

/// Weights that follow from their places: small numbers around 0, and around 1 for norms.
pub(crate) struct RandomWeights(BTreeMap<String, Vec<u64>>);

/// The names of all shapes.
pub(crate) const NAMES: [&str; 6] =
    ["gpt2", "qwen2.5-0.5b", "gemma-3-1b", "llama-3.2-1b", "qwen2.5-7b", "llama-3.1-8b"];

/// The sizes of a decoder of the Llama kind.
struct Sizes {
    architecture: &'static str,
    model_type: &'static str,
    hidden: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    intermediate: u64,
    vocab: u64,
    positions: u64,
    tied: bool,
}

impl Shape {
    /// The one of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let llama = Sizes {
            architecture: "LlamaForCausalLM",
            model_type: "llama",
            hidden: 2048,
            layers: 16,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            intermediate: 8192,
            vocab: 128_256,
            positions: 131_072,
            tied: true,
        };
        let qwen = Sizes {
            architecture: "Qwen2ForCausalLM",
            model_type: "qwen2",
            hidden: 896,
            layers: 24,
            heads: 14,
            kv_heads: 2,
            intermediate: 4864,
            vocab: 151_936,
            positions: 32_768,
            ..llama
        };
        let sizes = match name {
            "gpt2" => return Some(gpt2()),
            "llama-3.2-1b" => llama,
            "llama-3.1-8b" => {
                Sizes { hidden: 4096, layers: 32, head_dim: 128, intermediate: 14_336, tied: false, ..llama }
            }
            "qwen2.5-0.5b" => qwen,
            "qwen2.5-7b" => Sizes {
                hidden: 3584,
                layers: 28,
                heads: 28,
                kv_heads: 4,
                head_dim: 128,
                intermediate: 18_944,
                vocab: 152_064,
                positions: 131_072,
                tied: false,
                ..qwen
            },
            "gemma-3-1b" => Sizes {
                architecture: "Gemma3ForCausalLM",
                model_type: "gemma3_text",
                hidden: 1152,
                layers: 26,
                heads: 4,
                kv_heads: 1,
                head_dim: 256,
                intermediate: 6912,
                vocab: 262_144,
                positions: 32_768,
                tied: true,
            },
            _ => return None,
        };
        Some(sizes.shape())
    }
}

impl Sizes {
    fn shape(&self) -> Shape {
        let gemma = self.model_type == "gemma3_text";
        let mut config = json!({
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "tie_word_embeddings": self.tied,
        });
        if self.model_type != "qwen2" {
            config["head_dim"] = json!(self.head_dim);
        }
        if gemma {
            config["sliding_window"] = json!(512);
        }
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[u64]| {
            tensors.insert(name, shape.to_vec());
        };
        add("model.embed_tokens.weight".to_owned(), &[self.vocab, self.hidden]);
        add("model.norm.weight".to_owned(), &[self.hidden]);
        if !self.tied {
            add("lm_head.weight".to_owned(), &[self.vocab, self.hidden]);
        }
        for layer in 0..self.layers {
            let name = |module: &str| format!("model.layers.{layer}.{module}");
            for (module, shape) in [
                ("self_attn.q_proj", [queries, self.hidden]),
                ("self_attn.k_proj", [keys, self.hidden]),
                ("self_attn.v_proj", [keys, self.hidden]),
                ("self_attn.o_proj", [self.hidden, queries]),
                ("mlp.gate_proj", [self.intermediate, self.hidden]),
                ("mlp.up_proj", [self.intermediate, self.hidden]),
                ("mlp.down_proj", [self.hidden, self.intermediate]),
            ] {
                add(name(&format!("{module}.weight")), &shape);
                if self.model_type == "qwen2"
                    && ["q_proj", "k_proj", "v_proj"].iter().any(|p| module.ends_with(p))
                {
                    add(name(&format!("{module}.bias")), &shape[..1]);
                }
            }
            add(name("input_layernorm.weight"), &[self.hidden]);
            add(name("post_attention_layernorm.weight"), &[self.hidden]);
            if gemma {
                add(name("pre_feedforward_layernorm.weight"), &[self.hidden]);
                add(name("post_feedforward_layernorm.weight"), &[self.hidden]);
                add(name("self_attn.q_norm.weight"), &[self.head_dim]);
                add(name("self_attn.k_norm.weight"), &[self.head_dim]);
            }
        }
        Shape { config, weights: RandomWeights(tensors) }
    }
}

fn gpt2() -> Shape {
    const HIDDEN: u64 = 768;
    let config = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": HIDDEN,
        "n_layer": 12,
        "n_head": 12,
        "vocab_size": 50_257,
        "n_positions": 1024,
    });
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[u64]| {
        tensors.insert(format!("transformer.{name}"), shape.to_vec());
    };
    add("wte.weight".to_owned(), &[50_257, HIDDEN]);
    add("wpe.weight".to_owned(), &[1024, HIDDEN]);
    for layer in (0..12).map(|layer| format!("h.{layer}.")).chain([String::new()]) {
        let norms: &[&str] = if layer.is_empty() { &["ln_f"] } else { &["ln_1", "ln_2"] };
        for norm in norms {
            add(format!("{layer}{norm}.weight"), &[HIDDEN]);
            add(format!("{layer}{norm}.bias"), &[HIDDEN]);
        }
        if layer.is_empty() {
            continue;
        }
        for (module, inputs, outputs) in [
            ("attn.c_attn", HIDDEN, 3 * HIDDEN),
            ("attn.c_proj", HIDDEN, HIDDEN),
            ("mlp.c_fc", HIDDEN, 4 * HIDDEN),
            ("mlp.c_proj", 4 * HIDDEN, HIDDEN),
        ] {
            add(format!("{layer}{module}.weight"), &[inputs, outputs]);
            add(format!("{layer}{module}.bias"), &[outputs]);
        }
    }
    Shape { config, weights: RandomWeights(tensors) }
}

impl WeightSource for RandomWeights {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        self.0.get(name).cloned().ok_or_else(|| WeightError::NotFound { name: name.to_owned() })
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        let shape = self.shape(name)?;
        let center = if name.contains("norm") || name.contains("ln_") { 1.0 } else { 0.0 };
        // As wide as keeps what flows through the layers about as large as it was.
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let scale = if shape.len() < 2 { 0.1 } else { (3.0 / columns as f32).sqrt() };
        let mut state =
            rows.start.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ name.len() as u64 ^ 0x2545_f491_4f6c_dd1d;
        for value in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let unit = (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0;
            *value = center + scale * unit;
        }
        Ok(())
    }
}
