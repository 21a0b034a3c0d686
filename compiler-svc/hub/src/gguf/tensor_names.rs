//! The Hugging Face names of each architecture's tensors, and how a file stores them.

use super::rope;

/// How a tensor of the file becomes the weight of its Hugging Face name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As it is.
    Same,
    /// Rows of this many heads are interleaved for ggml's rotary embedding and have to be put back in order.
    InterleavedHeads(u64),
    /// The matrix is stored transposed.
    Transposed,
    /// The factor of a norm is stored, which is `1 + weight`.
    OnePlusWeight,
    /// A vector is stored, or a matrix already, where the weight is a matrix of one row.
    OneRow,
}

/// What a tensor of the file is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TensorName {
    /// A weight of the model.
    Weight {
        /// Its Hugging Face name.
        name: String,
        /// How it is stored.
        layout: Layout,
    },
    /// The weights of all experts of a layer, one after the other: `{prefix}.N{suffix}`, as they are.
    Experts {
        /// What their Hugging Face names begin with.
        prefix: String,
        /// How they end.
        suffix: String,
    },
    /// Not a weight: what it says is in the config.
    Ignored,
}

/// The names of an architecture's modules: pairs of a stem in the file, without `.weight` or `.bias`, and a Hugging Face
/// name.
pub(super) struct TensorNames {
    /// Outside the layers.
    pub(super) outside: &'static [(&'static str, &'static str)],
    /// What a layer's names begin with, before its number.
    pub(super) layers: &'static str,
    /// In a layer, after `blk.N.` in the file.
    pub(super) layer: &'static [(&'static str, &'static str)],
    /// Of all experts of a layer.
    pub(super) experts: Experts,
    /// How the file stores some of them.
    pub(super) stored: Stored,
}

/// The experts of a layer.
pub(super) struct Experts {
    /// The module that has them by number.
    module: &'static str,
    /// Pairs of a stem in the file and the name of the module in an expert.
    parts: &'static [(&'static str, &'static str)],
}

const NO_EXPERTS: Experts = Experts { module: "", parts: &[] };

/// The experts of Qwen's models.
const QWEN_EXPERTS: Experts = Experts {
    module: "mlp.experts",
    parts: &[("ffn_gate_exps", "gate_proj"), ("ffn_up_exps", "up_proj"), ("ffn_down_exps", "down_proj")],
};

/// How an architecture's files store what they do not store as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// All as it is.
    Same,
    /// Rows of query and key projections interleaved.
    Interleaved,
    /// Norms as `1 + weight`.
    OnePlusNorms,
    /// The matrices of all layers transposed.
    TransposedLayers,
}

const QUERY: &str = "attn_q";
const KEY: &str = "attn_k";
/// The gate of the expert that all tokens share: older files have it as a vector.
const SHARED_EXPERT_GATE: &str = "ffn_gate_inp_shexp";

const OUTSIDE: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// The layers of Llama and of what is like it.
const LLAMA_LAYER: &[(&str, &str)] = &[
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

pub(super) const LLAMA: TensorNames = TensorNames {
    outside: OUTSIDE,
    layers: "model.layers",
    layer: LLAMA_LAYER,
    experts: NO_EXPERTS,
    stored: Stored::Interleaved,
};

pub(super) const MIXTRAL: TensorNames = TensorNames {
    layer: &[
        ("attn_norm", "input_layernorm"),
        (QUERY, "self_attn.q_proj"),
        (KEY, "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate_inp", "block_sparse_moe.gate"),
    ],
    experts: Experts {
        module: "block_sparse_moe.experts",
        parts: &[("ffn_gate_exps", "w1"), ("ffn_up_exps", "w3"), ("ffn_down_exps", "w2")],
    },
    ..LLAMA
};

pub(super) const QWEN2: TensorNames = TensorNames { stored: Stored::Same, ..LLAMA };

pub(super) const QWEN3: TensorNames = TensorNames {
    layer: &[
        ("attn_norm", "input_layernorm"),
        (QUERY, "self_attn.q_proj"),
        (KEY, "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
    ..QWEN2
};

pub(super) const QWEN2_MOE: TensorNames = TensorNames {
    layer: &[
        ("attn_norm", "input_layernorm"),
        (QUERY, "self_attn.q_proj"),
        (KEY, "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate_inp", "mlp.gate"),
        (SHARED_EXPERT_GATE, "mlp.shared_expert_gate"),
        ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
        ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    ],
    experts: QWEN_EXPERTS,
    ..QWEN2
};

pub(super) const QWEN3_MOE: TensorNames = TensorNames {
    layer: &[
        ("attn_norm", "input_layernorm"),
        (QUERY, "self_attn.q_proj"),
        (KEY, "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate_inp", "mlp.gate"),
    ],
    experts: QWEN_EXPERTS,
    ..QWEN2
};

pub(super) const GEMMA3: TensorNames = TensorNames {
    layer: &[
        ("attn_norm", "input_layernorm"),
        (QUERY, "self_attn.q_proj"),
        (KEY, "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    stored: Stored::OnePlusNorms,
    ..QWEN2
};

pub(super) const PHI3: TensorNames = TensorNames {
    layer: &[
        ("attn_norm", "input_layernorm"),
        ("attn_qkv", "self_attn.qkv_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_up", "mlp.gate_up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
    ..QWEN2
};

pub(super) const GPT2: TensorNames = TensorNames {
    outside: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    layers: "transformer.h",
    layer: &[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ],
    experts: NO_EXPERTS,
    stored: Stored::TransposedLayers,
};

impl TensorNames {
    /// What a tensor of the file is, in a model of this many heads. `None` when the architecture has no such tensor.
    pub(super) fn hugging_face(&self, name: &str, heads: u64, key_value_heads: u64) -> Option<TensorName> {
        if rope::FACTORS.contains(&name) {
            return Some(TensorName::Ignored);
        }
        let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        let find = |table: &[(&str, &'static str)], stem: &str| {
            table.iter().find(|(from, _)| *from == stem).map(|(_, to)| *to)
        };
        let is_norm = |stem: &str| stem.ends_with("norm");
        let Some((layer, stem)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            let layout = match self.stored {
                Stored::OnePlusNorms if is_norm(stem) => Layout::OnePlusWeight,
                _ => Layout::Same,
            };
            let name = format!("{}.{kind}", find(self.outside, stem)?);
            return Some(TensorName::Weight { name, layout });
        };
        let layer: u32 = layer.parse().ok().filter(|number: &u32| number.to_string() == layer)?;
        if let Some(part) = find(self.experts.parts, stem) {
            let prefix = format!("{}.{layer}.{}", self.layers, self.experts.module);
            return Some(TensorName::Experts { prefix, suffix: format!(".{part}.{kind}") });
        }
        let module = find(self.layer, stem)?;
        let layout = match self.stored {
            _ if stem == SHARED_EXPERT_GATE => Layout::OneRow,
            Stored::Interleaved if stem == QUERY => Layout::InterleavedHeads(heads),
            Stored::Interleaved if stem == KEY => Layout::InterleavedHeads(key_value_heads),
            Stored::OnePlusNorms if is_norm(stem) => Layout::OnePlusWeight,
            Stored::TransposedLayers if kind == "weight" && !is_norm(stem) => Layout::Transposed,
            _ => Layout::Same,
        };
        Some(TensorName::Weight { name: format!("{}.{layer}.{module}.{kind}", self.layers), layout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(name: &str, layout: Layout) -> Option<TensorName> {
        Some(TensorName::Weight { name: name.to_owned(), layout })
    }

    #[test]
    fn tensors_get_their_hugging_face_names() {
        let name = |name| LLAMA.hugging_face(name, 9, 3);
        let same = |name| weight(name, Layout::Same);
        assert_eq!(name("token_embd.weight"), same("model.embed_tokens.weight"));
        assert_eq!(name("output.weight"), same("lm_head.weight"));
        assert_eq!(
            name("blk.12.attn_q.weight"),
            weight("model.layers.12.self_attn.q_proj.weight", Layout::InterleavedHeads(9))
        );
        assert_eq!(
            name("blk.0.attn_k.bias"),
            weight("model.layers.0.self_attn.k_proj.bias", Layout::InterleavedHeads(3))
        );
        assert_eq!(name("blk.3.ffn_down.weight"), same("model.layers.3.mlp.down_proj.weight"));
        assert_eq!(name("rope_freqs.weight"), Some(TensorName::Ignored));
    }

    #[test]
    fn architectures_name_and_store_the_same_stem_differently() {
        let gemma3 = |name| GEMMA3.hugging_face(name, 4, 1);
        assert_eq!(
            gemma3("blk.7.ffn_norm.weight"),
            weight("model.layers.7.pre_feedforward_layernorm.weight", Layout::OnePlusWeight)
        );
        assert_eq!(
            gemma3("blk.7.attn_q_norm.weight"),
            weight("model.layers.7.self_attn.q_norm.weight", Layout::OnePlusWeight)
        );
        assert_eq!(gemma3("output_norm.weight"), weight("model.norm.weight", Layout::OnePlusWeight));
        assert_eq!(
            gemma3("blk.7.attn_q.weight"),
            weight("model.layers.7.self_attn.q_proj.weight", Layout::Same)
        );
        let gpt2 = |name| GPT2.hugging_face(name, 4, 4);
        assert_eq!(gpt2("position_embd.weight"), weight("transformer.wpe.weight", Layout::Same));
        assert_eq!(
            gpt2("blk.1.attn_qkv.weight"),
            weight("transformer.h.1.attn.c_attn.weight", Layout::Transposed)
        );
        assert_eq!(gpt2("blk.1.attn_qkv.bias"), weight("transformer.h.1.attn.c_attn.bias", Layout::Same));
        assert_eq!(gpt2("blk.1.ffn_norm.weight"), weight("transformer.h.1.ln_2.weight", Layout::Same));
        let phi3 = |name| PHI3.hugging_face(name, 4, 4);
        assert_eq!(
            phi3("blk.0.ffn_up.weight"),
            weight("model.layers.0.mlp.gate_up_proj.weight", Layout::Same)
        );
        assert_eq!(phi3("rope_factors_long.weight"), Some(TensorName::Ignored));
    }

    #[test]
    fn experts_are_many_weights_of_one_tensor() {
        let experts = |prefix: &str, suffix: &str| {
            Some(TensorName::Experts { prefix: prefix.to_owned(), suffix: suffix.to_owned() })
        };
        let mixtral = |name: &str| MIXTRAL.hugging_face(name, 4, 2);
        let module = "model.layers.7.block_sparse_moe";
        for (part, name) in [("gate", ".w1.weight"), ("down", ".w2.weight"), ("up", ".w3.weight")] {
            let found = mixtral(&format!("blk.7.ffn_{part}_exps.weight"));
            assert_eq!(found, experts(&format!("{module}.experts"), name));
        }
        assert_eq!(
            mixtral("blk.7.ffn_gate_inp.weight"),
            weight(&format!("{module}.gate.weight"), Layout::Same)
        );
        assert_eq!(
            mixtral("blk.7.attn_k.weight"),
            weight("model.layers.7.self_attn.k_proj.weight", Layout::InterleavedHeads(2))
        );
        assert_eq!(mixtral("blk.7.ffn_gate.weight"), None);
        for names in [QWEN2_MOE, QWEN3_MOE] {
            assert_eq!(
                names.hugging_face("blk.0.ffn_up_exps.weight", 4, 2),
                experts("model.layers.0.mlp.experts", ".up_proj.weight")
            );
            assert_eq!(
                names.hugging_face("blk.0.ffn_gate_inp.weight", 4, 2),
                weight("model.layers.0.mlp.gate.weight", Layout::Same)
            );
        }
        let shared = |name| QWEN2_MOE.hugging_face(name, 4, 2);
        assert_eq!(
            shared("blk.0.ffn_gate_inp_shexp.weight"),
            weight("model.layers.0.mlp.shared_expert_gate.weight", Layout::OneRow)
        );
        assert_eq!(
            shared("blk.0.ffn_down_shexp.weight"),
            weight("model.layers.0.mlp.shared_expert.down_proj.weight", Layout::Same)
        );
        assert_eq!(QWEN3_MOE.hugging_face("blk.0.ffn_down_shexp.weight", 4, 2), None);
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
            assert_eq!(LLAMA.hugging_face(name, 9, 3), None, "{name}");
        }
        assert_eq!(PHI3.hugging_face("blk.0.ffn_gate.weight", 4, 4), None);
        assert_eq!(QWEN2.hugging_face("blk.0.attn_q_norm.weight", 4, 4), None);
    }
}
