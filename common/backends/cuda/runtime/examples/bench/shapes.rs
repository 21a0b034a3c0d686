//! Published models by their shapes, with weights of no meaning.

use std::collections::BTreeMap;
use std::ops::Range;

use roundhouse_backend::{QuantizedTensor, WeightError, WeightSource};
use roundhouse_graph::{DType, Quantization, QuantizedLinearAttributes, WeightFormat};
use serde_json::{Value, json};

/// A model of a published shape.
pub(crate) struct Shape {
    /// Its config.json.
    pub(crate) config: Value,
    /// The checkpoint's tensors.
    pub(crate) weights: RandomWeights,
}

/// Weights that follow from their places: small numbers around 0, and around 1 for norms.
pub(crate) struct RandomWeights {
    /// Shapes by name.
    tensors: BTreeMap<String, Vec<u64>>,
    /// How the weights of the layers' products are quantised: of bytes of no meaning.
    quantized: Option<QuantizedLinearAttributes>,
}

/// What is quantised as the compiler does it: a format, and after another colon the columns of a group.
fn form(text: &str) -> Option<QuantizedLinearAttributes> {
    let (format, group) = text.split_once(':').map_or((text, None), |(format, group)| (format, Some(group)));
    let (format, usual, has_offsets) = match format {
        "int8" => (WeightFormat::Int8, 128, false),
        "int4" => (WeightFormat::Int4, 32, true),
        "int4-symmetric" => (WeightFormat::Int4, 32, false),
        "fp8" => (WeightFormat::Fp8, 128, false),
        _ => return None,
    };
    let group_size = group.map_or(Some(usual), |group| group.parse().ok())?;
    Some(QuantizedLinearAttributes { quantization: Quantization { format, group_size }, has_offsets })
}

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
    /// The one of this name, which a colon may part from how its weights are quantised: `llama-3.2-1b:int4`,
    /// `llama-3.2-1b:int8:64`, `:int4-symmetric`, `:fp8`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let Some((name, quantized)) = name.split_once(':') else { return Self::plain(name) };
        let mut shape = Self::plain(name)?;
        shape.weights.quantized = Some(form(quantized)?);
        Some(shape)
    }

    fn plain(name: &str) -> Option<Self> {
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
        Shape { config, weights: RandomWeights { tensors, quantized: None } }
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
    Shape { config, weights: RandomWeights { tensors, quantized: None } }
}

impl RandomWeights {
    /// Whether weights of products are quantised.
    pub(crate) const fn are_quantized(&self) -> bool {
        self.quantized.is_some()
    }

    /// How a tensor is quantised: as by the compiler, which leaves the output layer but in int8.
    fn form_of(&self, name: &str) -> Option<QuantizedLinearAttributes> {
        let attributes = self.quantized?;
        let output_layer = name == "lm_head.weight" && attributes.quantization.format == WeightFormat::Int8;
        let [_, columns] = self.tensors.get(name)?[..] else { return None };
        let whole = columns.is_multiple_of(u64::from(attributes.quantization.group_size).max(1));
        (whole && (output_layer || name.ends_with("_proj.weight"))).then_some(attributes)
    }

    /// The part of a quantised tensor that has this name: which, how it is quantised, and its shape.
    fn part(&self, name: &str) -> Option<(Part, QuantizedLinearAttributes, Vec<u64>)> {
        let (tensor, part) = name.rsplit_once('.')?;
        let attributes = self.form_of(tensor)?;
        let [rows, columns] = self.tensors.get(tensor)?[..] else { return None };
        let Quantization { format, group_size } = attributes.quantization;
        let groups = columns / u64::from(group_size);
        let (part, width) = match part {
            "values" => (Part::Values, columns * u64::from(format.bits()) / 8),
            "scales" => (Part::Scales(columns), groups),
            "offsets" => (Part::Offsets(columns), groups),
            _ => return None,
        };
        Some((part, attributes, vec![rows, width]))
    }
}

/// A part of a quantised tensor; scales and offsets with its columns.
enum Part {
    Values,
    Scales(u64),
    Offsets(u64),
}

/// As wide as keeps what flows through the layers about as large as it was.
fn spread(columns: u64) -> f32 {
    (3.0 / columns.max(1) as f32).sqrt()
}

/// Numbers that a place determines, between -1 and 1.
fn noise(rows: &Range<u64>, name: &str) -> impl Iterator<Item = f32> {
    let mut state =
        rows.start.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ name.len() as u64 ^ 0x2545_f491_4f6c_dd1d;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    })
}

impl WeightSource for RandomWeights {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        let whole = self.tensors.get(name).cloned();
        let shape = whole.or_else(|| self.part(name).map(|(_, _, shape)| shape));
        shape.ok_or_else(|| WeightError::NotFound { name: name.to_owned() })
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn quantized(&self, name: &str) -> Option<QuantizedTensor> {
        let QuantizedLinearAttributes { quantization, has_offsets } = self.form_of(name)?;
        Some(QuantizedTensor { quantization, has_offsets, scales_dtype: DType::F16 })
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        let shape = self.shape(name)?;
        let noise = noise(&rows, name);
        if let Some((part, attributes, _)) = self.part(name) {
            let format = attributes.quantization.format;
            let largest = match format {
                WeightFormat::Int8 => 127.0,
                WeightFormat::Int4 => 8.0,
                WeightFormat::Fp8 => 200.0,
            };
            let byte = |unit: f32| {
                let byte = ((unit + 1.0) * 128.0) as u8;
                // Two bytes of E4M3 are no numbers.
                f32::from(if format == WeightFormat::Fp8 && byte & 0x7f == 0x7f { byte - 1 } else { byte })
            };
            for (value, unit) in out.iter_mut().zip(noise) {
                *value = match part {
                    Part::Values => byte(unit),
                    Part::Scales(columns) => unit * spread(columns) / largest,
                    Part::Offsets(columns) => 0.1 * unit * spread(columns),
                };
            }
            return Ok(());
        }
        let center = if name.contains("norm") || name.contains("ln_") { 1.0 } else { 0.0 };
        let scale = if shape.len() < 2 { 0.1 } else { spread(shape.last().copied().unwrap_or(1)) };
        for (value, unit) in out.iter_mut().zip(noise) {
            *value = center + scale * unit;
        }
        Ok(())
    }
}
