//! The configs and weights of the architectures that are not like Llama.

use roundhouse_backend::WeightSource;
use roundhouse_hub::HubError;
use serde_json::{Value as Json, json};

use crate::checkpoint_files::read;
use crate::gguf_file::open_gguf;
use crate::gguf_files::{Gguf, Value};

/// The tiny file under another architecture's name.
fn renamed(architecture: &str) -> Gguf {
    let mut file = Gguf::tiny();
    for (key, _) in &mut file.pairs {
        *key = key.replace("llama.", &format!("{architecture}."));
    }
    file.set("general.architecture", architecture);
    file
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// These fields of a file's config, as one object.
fn config(file: &Gguf, fields: &[&str]) -> Json {
    let config = open_gguf(file).unwrap().config;
    fields.iter().map(|&field| (field.to_owned(), config[field].clone())).collect()
}

fn gemma3() -> Gguf {
    let mut file = renamed("gemma3");
    file.set("gemma3.attention.sliding_window", Value::U32(16));
    file
}

#[test]
fn gemma3_is_read_with_what_llama_cpp_knows_of_it() {
    let fields = [
        "architectures",
        "model_type",
        "hidden_activation",
        "sliding_window",
        "sliding_window_pattern",
        "layer_types",
        "query_pre_attn_scalar",
        "rope_theta",
        "rope_local_base_freq",
        "rope_scaling",
        "final_logit_softcapping",
    ];
    let mut file = gemma3();
    file.set("gemma3.rope.freq_base", Value::F32(1e6));
    file.set("gemma3.rope.scaling.type", "linear");
    file.set("gemma3.rope.scaling.factor", Value::F32(8.0));
    assert_eq!(
        config(&file, &fields),
        json!({
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 16, "sliding_window_pattern": 6,
            "layer_types": null, "query_pre_attn_scalar": 4, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": null,
        })
    );
    // Newer files say more.
    file.set("gemma3.rope.freq_base_swa", Value::F32(5e3));
    file.set("gemma3.attention.sliding_window_pattern", Value::U32(2));
    file.set("gemma3.final_logit_softcapping", Value::F32(30.0));
    let newer = ["sliding_window_pattern", "rope_local_base_freq", "final_logit_softcapping"];
    assert_eq!(
        config(&file, &newer),
        json!({"sliding_window_pattern": 2, "rope_local_base_freq": 5e3, "final_logit_softcapping": 30.0})
    );
    // An array of bools, of which there are two.
    let array = [7u32.to_le_bytes().to_vec(), 2u64.to_le_bytes().to_vec(), vec![1, 0]].concat();
    file.set("gemma3.attention.sliding_window_pattern", Value::Raw(9, array));
    assert_eq!(
        config(&file, &["layer_types"]),
        json!({"layer_types": ["sliding_attention", "full_attention"]})
    );
    // 27B divides by the width of a head of its hidden size.
    file.set("gemma3.block_count", Value::U32(62));
    file.set("gemma3.attention.key_length", Value::U32(6));
    assert_eq!(config(&file, &["query_pre_attn_scalar"]), json!({"query_pre_attn_scalar": 4}));
    file.unset("gemma3.attention.sliding_window");
    let error = open_gguf(&file).unwrap_err();
    assert!(error.to_string().contains("gemma3.attention.sliding_window"), "{error}");
}

#[test]
fn gemma3_norms_are_stored_with_one_added() {
    let mut file = gemma3();
    file.tensor("blk.0.attn_q_norm.weight", &[4]).data = floats(&[1.0, 1.25, 0.5, 3.0]);
    file.tensor("blk.0.post_ffw_norm.weight", &[8]);
    let checkpoint = open_gguf(&file).unwrap();
    assert_eq!(read(&checkpoint, "model.layers.0.self_attn.q_norm.weight"), [0.0, 0.25, -0.5, 2.0]);
    let counting = |first: f32| (0..8).map(move |index| first + index as f32);
    assert!(
        read(&checkpoint, "model.layers.0.post_feedforward_layernorm.weight").into_iter().eq(counting(-1.0))
    );
    assert!(read(&checkpoint, "model.norm.weight").into_iter().eq(counting(-1.0)));
    let query = read(&checkpoint, "model.layers.0.self_attn.q_proj.weight");
    assert!(query.into_iter().eq((0..64).map(|value| value as f32)), "matrices stay");
}

fn phi3() -> Gguf {
    let mut file = renamed("phi3");
    file.tensors.retain(|tensor| !tensor.name.starts_with("blk."));
    file.tensor("blk.0.attn_qkv.weight", &[8, 24]);
    file
}

#[test]
fn phi3_has_its_longrope_factors_in_tensors() {
    let fields =
        ["partial_rotary_factor", "sliding_window", "original_max_position_embeddings", "rope_scaling"];
    let mut file = phi3();
    file.set("phi3.attention.sliding_window", Value::U32(0));
    assert_eq!(
        config(&file, &fields),
        json!({
            "partial_rotary_factor": 1.0, "sliding_window": null, "original_max_position_embeddings": null,
            "rope_scaling": null,
        })
    );
    file.set("phi3.attention.sliding_window", Value::U32(12));
    file.set("phi3.rope.dimension_count", Value::U32(2));
    file.set("phi3.rope.scaling.original_context_length", Value::U32(16));
    file.set("phi3.rope.scaling.attn_factor", Value::F32(1.19));
    file.tensor("rope_factors_long.weight", &[1]).data = floats(&[4.2]);
    let error = open_gguf(&file).unwrap_err();
    assert!(error.to_string().contains("rope_factors_short.weight"), "{error}");
    file.tensor("rope_factors_short.weight", &[1]).data = floats(&[1.1]);
    assert_eq!(
        config(&file, &fields),
        json!({
            "partial_rotary_factor": 0.5, "sliding_window": 12, "original_max_position_embeddings": 16,
            "rope_scaling": {
                "rope_type": "longrope", "short_factor": [1.1], "long_factor": [4.2], "attention_factor": 1.19,
            },
        })
    );
    let checkpoint = open_gguf(&file).unwrap();
    assert_eq!(checkpoint.shape("model.layers.0.self_attn.qkv_proj.weight").unwrap(), [24, 8]);
    assert!(!checkpoint.names().iter().any(|name| name.contains("rope")));
    file.set("phi3.rope.dimension_count", Value::U32(5));
    assert!(matches!(open_gguf(&file), Err(HubError::Corrupt { .. })));
}

fn gpt2() -> Gguf {
    let mut file = renamed("gpt2");
    file.unset("gpt2.attention.layer_norm_rms_epsilon");
    file.set("gpt2.attention.layer_norm_epsilon", Value::F32(1e-5));
    file.tensors.retain(|tensor| !tensor.name.starts_with("blk."));
    file.tensor("position_embd.weight", &[8, 32]);
    file
}

#[test]
fn gpt2_has_the_names_of_its_own_config() {
    assert_eq!(
        open_gguf(&gpt2()).unwrap().config,
        json!({
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
            "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32, "n_inner": 16,
            "layer_norm_epsilon": 1e-5, "vocab_size": 259, "tie_word_embeddings": true,
            "bos_token_id": null, "eos_token_id": 258, "pad_token_id": null,
        })
    );
}

#[test]
fn gpt2_matrices_are_turned_around() {
    let mut file = gpt2();
    // Three outputs of two inputs, counting up.
    file.tensor("blk.0.attn_qkv.weight", &[2, 3]);
    file.tensor("blk.0.attn_qkv.bias", &[3]);
    file.tensor("blk.0.ffn_up.weight", &[4, 2]);
    let checkpoint = open_gguf(&file).unwrap();
    let name = "transformer.h.0.attn.c_attn.weight";
    assert_eq!(checkpoint.shape(name).unwrap(), [2, 3]);
    assert_eq!(read(&checkpoint, name), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    assert_eq!(read(&checkpoint, "transformer.h.0.attn.c_attn.bias"), [0.0, 1.0, 2.0]);
    let other = "transformer.h.0.mlp.c_fc.weight";
    assert_eq!(read(&checkpoint, other), [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]);
    let mut row = [0.0; 3];
    checkpoint.read_rows(name, 1..2, &mut row).unwrap();
    assert_eq!(row, [1.0, 3.0, 5.0]);
    checkpoint.read_rows(name, 2..2, &mut []).unwrap();
    assert!(checkpoint.read_rows(name, 1..3, &mut [0.0; 6]).is_err());
    let mut file = gpt2();
    file.tensor("blk.0.attn_qkv.weight", &[8]);
    assert!(matches!(open_gguf(&file), Err(HubError::Corrupt { .. })));
}

#[test]
fn smollm3_is_llama_with_layers_without_positions() {
    let mut file = renamed("smollm3");
    file.tensor("blk.0.attn_v.weight", &[8, 8]);
    let fields = ["architectures", "model_type", "no_rope_layer_interval", "attention_bias"];
    assert_eq!(
        config(&file, &fields),
        json!({
            "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "no_rope_layer_interval": 4,
            "attention_bias": false,
        })
    );
    let checkpoint = open_gguf(&file).unwrap();
    let query = read(&checkpoint, "model.layers.0.self_attn.q_proj.weight");
    assert_eq!(query[8], 16.0, "rows are interleaved as Llama's");
}

#[test]
fn a_llama_with_a_window_is_a_mistral() {
    let mut file = Gguf::tiny();
    file.set("llama.attention.sliding_window", Value::U32(16));
    assert_eq!(
        config(&file, &["architectures", "model_type", "sliding_window"]),
        json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 16})
    );
    file.set("llama.attention.sliding_window", Value::U32(0));
    assert_eq!(config(&file, &["model_type"]), json!({"model_type": "llama"}));
}

/// Two experts of four rows, one of them for each token, in an architecture.
fn with_experts(architecture: &str) -> Gguf {
    let mut file = renamed(architecture);
    for (key, value) in [("expert_count", 2), ("expert_used_count", 1), ("expert_feed_forward_length", 4)] {
        file.set(&format!("{architecture}.{key}"), Value::U32(value));
    }
    file.tensor("blk.0.ffn_gate_exps.weight", &[8, 4, 2]);
    file.tensor("blk.0.ffn_down_exps.weight", &[4, 8, 2]);
    file
}

#[test]
fn experts_get_a_tensor_each() {
    for (architecture, module, gate, down) in [
        ("llama", "block_sparse_moe", "w1", "w2"),
        ("qwen2moe", "mlp", "gate_proj", "down_proj"),
        ("qwen3moe", "mlp", "gate_proj", "down_proj"),
    ] {
        let mut file = with_experts(architecture);
        file.set(&format!("{architecture}.expert_shared_feed_forward_length"), Value::U32(4));
        file.tensor("blk.0.ffn_gate_inp.weight", &[8, 2]);
        let checkpoint = open_gguf(&file).unwrap();
        let name = |expert, part| format!("model.layers.0.{module}.experts.{expert}.{part}.weight");
        for (part, shape) in [(gate, [4, 8]), (down, [8, 4])] {
            for expert in 0..2 {
                assert_eq!(checkpoint.shape(&name(expert, part)).unwrap(), shape);
                let first = expert * 32;
                let counting = (first..first + 32).map(|value| value as f32);
                assert!(read(&checkpoint, &name(expert, part)).into_iter().eq(counting), "{architecture}");
            }
        }
        let mut row = [0.0; 8];
        checkpoint.read_rows(&name(1, gate), 2..3, &mut row).unwrap();
        assert_eq!(row[0], 48.0);
        assert!(
            checkpoint.read_rows(&name(0, gate), 4..5, &mut row).is_err(),
            "the next expert is another tensor"
        );
        assert_eq!(checkpoint.shape(&format!("model.layers.0.{module}.gate.weight")).unwrap(), [2, 8]);
        let bytes = (259 * 8 + 8 + 64 + 64 + 64 + 64 + 16) * 4;
        assert_eq!(checkpoint.weight_bytes, bytes, "every byte once");
    }
}

#[test]
fn experts_of_few_bits_are_whole_blocks() {
    let mut file = with_experts("qwen3moe");
    // Q8_0: two experts of two rows of a block each, in which all numbers are the block's number.
    let blocks = (1..=4_u8).flat_map(|number| [&[0x00, 0x3c][..], &[number; 32]].concat());
    let tensor = file.tensor("blk.0.ffn_up_exps.weight", &[32, 2, 2]);
    (tensor.kind, tensor.data) = (8, blocks.collect());
    let checkpoint = open_gguf(&file).unwrap();
    for (expert, numbers) in [(0, [1.0, 2.0]), (1, [3.0, 4.0])] {
        let found = read(&checkpoint, &format!("model.layers.0.mlp.experts.{expert}.up_proj.weight"));
        assert_eq!(found, numbers.map(|number| [number; 32]).concat());
    }
}

#[test]
fn experts_are_as_many_as_the_metadata_says() {
    let mut three = with_experts("qwen3moe");
    three.tensor("blk.0.ffn_up_exps.weight", &[8, 4, 3]);
    let mut flat = with_experts("qwen3moe");
    flat.tensor("blk.0.ffn_up_exps.weight", &[8, 8]);
    // Many matrices of nothing.
    let mut many = with_experts("qwen3moe");
    many.set("qwen3moe.expert_count", Value::U32(u32::MAX));
    many.tensor("blk.0.ffn_up_exps.weight", &[8, 0, u64::from(u32::MAX)]);
    let error = open_gguf(&many).unwrap_err();
    assert!(matches!(error, HubError::Corrupt { .. }), "{error}");
    for file in [three, flat] {
        let error = open_gguf(&file).unwrap_err();
        assert!(matches!(error, HubError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("blk.0.ffn_up_exps.weight"), "{error}");
    }
    let mut none = with_experts("qwen3moe");
    none.set("qwen3moe.expert_count", Value::U32(0));
    let error = open_gguf(&none).unwrap_err();
    assert!(
        matches!(&error, HubError::Unsupported { found, .. } if found.contains("expert_count")),
        "{error}"
    );
    for key in ["expert_used_count", "expert_feed_forward_length"] {
        let mut file = with_experts("qwen3moe");
        file.unset(&format!("qwen3moe.{key}"));
        assert!(open_gguf(&file).unwrap_err().to_string().contains(key));
    }
}

#[test]
fn the_gate_of_a_shared_expert_is_a_row() {
    for dimensions in [&[8][..], &[8, 1], &[8, 2]] {
        let mut file = with_experts("qwen2moe");
        file.set("qwen2moe.expert_shared_feed_forward_length", Value::U32(6));
        file.tensor("blk.0.ffn_gate_inp_shexp.weight", dimensions);
        let opened = open_gguf(&file);
        if dimensions == [8, 2] {
            assert!(matches!(opened, Err(HubError::Corrupt { .. })));
            continue;
        }
        let checkpoint = opened.unwrap();
        let name = "model.layers.0.mlp.shared_expert_gate.weight";
        assert_eq!(checkpoint.shape(name).unwrap(), [1, 8]);
        assert!(read(&checkpoint, name).into_iter().eq((0..8).map(|value| value as f32)));
    }
}

#[test]
fn mixtures_of_experts_are_read_with_what_llama_cpp_knows_of_them() {
    let fields = ["architectures", "model_type", "num_experts_per_tok", "intermediate_size"];
    let mut mixtral = with_experts("llama");
    mixtral.set("llama.attention.sliding_window", Value::U32(16));
    let own = ["num_local_experts", "sliding_window"];
    assert_eq!(
        config(&mixtral, &[&fields[..], &own].concat()),
        json!({
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_experts_per_tok": 1,
            "intermediate_size": 16, "num_local_experts": 2, "sliding_window": 16,
        })
    );
    mixtral.unset("llama.attention.sliding_window");
    assert_eq!(config(&mixtral, &["sliding_window"]), json!({"sliding_window": null}));
    let mut qwen2 = with_experts("qwen2moe");
    qwen2.set("qwen2moe.expert_shared_feed_forward_length", Value::U32(6));
    qwen2.tensor("blk.0.attn_q.bias", &[8]);
    let own = [
        "num_experts",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "norm_topk_prob",
        "qkv_bias",
    ];
    assert_eq!(
        config(&qwen2, &[&fields[..], &own].concat()),
        json!({
            "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts_per_tok": 1,
            "intermediate_size": 16, "num_experts": 2, "moe_intermediate_size": 4,
            "shared_expert_intermediate_size": 6, "norm_topk_prob": false, "qkv_bias": true,
        })
    );
    let own = ["num_experts", "moe_intermediate_size", "norm_topk_prob", "attention_bias"];
    assert_eq!(
        config(&with_experts("qwen3moe"), &[&fields[..], &own].concat()),
        json!({
            "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts_per_tok": 1,
            "intermediate_size": 16, "num_experts": 2, "moe_intermediate_size": 4, "norm_topk_prob": true,
            "attention_bias": false,
        })
    );
}
