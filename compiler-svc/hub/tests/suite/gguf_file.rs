//! A GGUF file as a checkpoint.

use roundhouse_backend::WeightSource;
use roundhouse_hub::{Checkpoint, HubError};
use serde_json::json;

use crate::checkpoint_files::{open, read, run};
use crate::gguf_files::{Gguf, Value};

pub(crate) fn open_gguf(file: &Gguf) -> Result<Checkpoint, HubError> {
    open_bytes(&file.bytes().1)
}

pub(crate) fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, HubError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    run(open(path.to_str().unwrap(), folder.path()))
}

#[test]
fn the_metadata_becomes_a_config() {
    let checkpoint = open_gguf(&Gguf::tiny()).unwrap();
    assert_eq!(
        checkpoint.config,
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
            "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": 259,
            "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
            "bos_token_id": null, "eos_token_id": 258, "pad_token_id": null,
        })
    );
    assert_eq!(checkpoint.generation_config, Some(json!({"eos_token_id": 258})));
    assert_eq!(checkpoint.tokenizer_config.as_ref().unwrap()["eos_token"], "<|end|>");
}

#[test]
fn what_the_file_has_decides_ties_and_biases() {
    let mut file = Gguf::tiny();
    file.tensor("output.weight", &[8, 259]);
    file.tensor("blk.0.attn_q.bias", &[8]);
    let config = open_gguf(&file).unwrap().config;
    assert_eq!((&config["tie_word_embeddings"], &config["attention_bias"]), (&json!(false), &json!(true)));
}

#[test]
fn query_and_key_rows_go_back_to_halves_and_others_stay() {
    let mut file = Gguf::tiny();
    file.tensor("blk.0.attn_v.weight", &[8, 8]);
    file.tensor("blk.0.attn_q.bias", &[8]);
    let checkpoint = open_gguf(&file).unwrap();
    let row = |name: &str, row: usize| (read(&checkpoint, name)[row * 8] / 8.0) as usize;
    let rows = |name: &str| (0..8).map(|index| row(name, index)).collect::<Vec<_>>();
    let halves = [0, 2, 1, 3, 4, 6, 5, 7];
    assert_eq!(rows("model.layers.0.self_attn.q_proj.weight"), halves);
    assert_eq!(rows("model.layers.0.self_attn.k_proj.weight"), halves);
    assert_eq!(rows("model.layers.0.self_attn.v_proj.weight"), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(read(&checkpoint, "model.layers.0.self_attn.q_proj.bias"), halves.map(|row| row as f32));
    let mut part = vec![0.0; 16];
    checkpoint.read_rows("model.layers.0.self_attn.q_proj.weight", 1..3, &mut part).unwrap();
    assert_eq!((part[0], part[8]), (16.0, 8.0));
}

#[test]
fn qwen_rows_stay_as_they_are() {
    for name in ["qwen2", "qwen3"] {
        let mut file = Gguf::tiny();
        for (key, _) in &mut file.pairs {
            *key = key.replace("llama.", &format!("{name}."));
        }
        file.set("general.architecture", name);
        let checkpoint = open_gguf(&file).unwrap();
        assert_eq!(checkpoint.config["model_type"], name);
        let query = read(&checkpoint, "model.layers.0.self_attn.q_proj.weight");
        assert!((0..64).map(|value| value as f32).eq(query));
    }
}

#[test]
fn rope_scaling_is_read_from_metadata() {
    let scaling = |pairs: &[(&str, Value)]| {
        let mut file = Gguf::tiny();
        for (key, value) in pairs {
            file.set(&format!("llama.rope.scaling.{key}"), value.clone());
        }
        open_gguf(&file)
    };
    let linear = scaling(&[("type", "linear".into()), ("factor", Value::F32(4.0))]).unwrap();
    assert_eq!(linear.config["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    let yarn =
        [("type", "yarn".into()), ("factor", Value::F32(2.5)), ("original_context_length", Value::U32(64))];
    assert_eq!(
        scaling(&yarn).unwrap().config["rope_scaling"],
        json!({"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 64})
    );
    assert_eq!(scaling(&[("type", "none".into())]).unwrap().config.get("rope_scaling"), None);
    let error = scaling(&[("type", "longrope".into()), ("factor", Value::F32(2.0))]).unwrap_err();
    assert!(matches!(&error, HubError::Unsupported { found, .. } if found.contains("longrope")), "{error}");
}

#[test]
fn rope_frequency_factors_are_llama3_or_refused() {
    let mut file = Gguf::tiny();
    file.tensor("rope_freqs.weight", &[2]).data =
        [1.0f32, 1.0].into_iter().flat_map(f32::to_le_bytes).collect();
    let checkpoint = open_gguf(&file).unwrap();
    assert_eq!(checkpoint.config.get("rope_scaling"), None);
    assert!(!checkpoint.names().iter().any(|name| name.contains("rope")));
    let mut file = Gguf::tiny();
    file.tensor("rope_freqs.weight", &[2]);
    assert!(matches!(open_gguf(&file), Err(HubError::Unsupported { .. })));
}

#[test]
fn what_is_not_supported_is_named_with_what_is() {
    let message = |change: &dyn Fn(&mut Gguf)| {
        let mut file = Gguf::tiny();
        change(&mut file);
        match open_gguf(&file) {
            Err(HubError::Unsupported { found, supported, .. }) => format!("{found}; {supported}"),
            other => panic!("{other:?}"),
        }
    };
    type Case<'a> = (&'a dyn Fn(&mut Gguf), &'a [&'a str]);
    let cases: [Case<'_>; 9] = [
        (
            &|file| file.set("general.architecture", "mamba"),
            &["\"mamba\"", "llama, phi3, qwen2, qwen2moe, qwen3, qwen3moe"],
        ),
        (&|file| file.tensor("output.weight", &[8, 259]).kind = 10, &["\"output.weight\"", "Q2_K", "Q4_K"]),
        (
            &|file| {
                file.tensor("blk.0.ffn_gate_exps.weight", &[8]);
            },
            &["ffn_gate_exps"],
        ),
        (
            &|file| {
                for (key, _) in &mut file.pairs {
                    *key = key.replace("llama.", "phi3.");
                }
                file.set("general.architecture", "phi3");
                file.set("phi3.expert_count", Value::U32(8));
            },
            &["\"phi3.expert_count\" = 8", "dense layers"],
        ),
        (&|file| file.set("split.count", Value::U32(3)), &["split.count", "one file"]),
        (&|file| file.set("llama.rope.dimension_count", Value::U32(2)), &["2 of 4"]),
        (&|file| file.set("tokenizer.ggml.model", "bert"), &["\"bert\"", "gpt2, llama"]),
        (&|file| file.set("tokenizer.ggml.pre", "poro-chat"), &["\"poro-chat\"", "smollm"]),
        (&|file| file.version = 1, &["version 1"]),
    ];
    for (change, parts) in cases {
        let message = message(change);
        assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks {parts:?}");
    }
    let mut file = Gguf::tiny();
    file.version = 3u32.swap_bytes();
    assert!(open_gguf(&file).unwrap_err().to_string().contains("big-endian"));
    file = Gguf::tiny();
    file.unset("tokenizer.ggml.model");
    assert!(matches!(open_gguf(&file), Err(HubError::MissingTokenizer { .. })));
}

#[test]
fn the_digest_is_of_the_content() {
    let first = open_gguf(&Gguf::tiny()).unwrap();
    assert_eq!(open_gguf(&Gguf::tiny()).unwrap().digest, first.digest);
    let mut other = Gguf::tiny();
    other.tensors[0].data[0] ^= 1;
    assert_ne!(open_gguf(&other).unwrap().digest, first.digest);
    assert_eq!(first.weight_bytes, (259 * 8 + 8 + 64 + 64) * 4);
}
