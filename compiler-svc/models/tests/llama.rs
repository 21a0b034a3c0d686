//! The Llama family: what it computes, and what it refuses.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod support;

use roundhouse_backend::{WeightError, WeightSource};
use roundhouse_backend_conformance::{Interpreter, MemoryWeights, Tensor};
use roundhouse_graph::{DType, Op, Origin};
use roundhouse_models::{FAMILIES, ModelError, ModelGraph, build_graph};
use serde_json::{Value, json};
use support::Golden;

/// As in the goldens' configs.
const MAX_SEQ_LEN: u32 = 64;

/// The positions of `batch` sequences from 0 on.
fn positions(batch: usize, seq: usize) -> Tensor {
    let row = 0..i64::try_from(seq).unwrap();
    Tensor::int(&[batch, seq], row.cycle().take(batch * seq).collect())
}

/// The largest absolute difference of a golden's logits and those of its graph.
fn difference(golden: &Golden, weights: &MemoryWeights) -> f32 {
    let model = build_graph(&golden.name, &golden.config, weights, MAX_SEQ_LEN).unwrap();
    let (batch, seq) = (golden.input_ids.len(), golden.input_ids[0].len());
    let input_ids = Tensor::int(&[batch, seq], golden.input_ids.concat());
    let interpreter = Interpreter::new(&model.graph, weights).unwrap();
    let outputs =
        interpreter.run([("input_ids", input_ids), ("position_ids", positions(batch, seq))]).unwrap();
    support::difference(outputs["logits"].floats(), &golden.logits)
}

#[test]
fn logits_are_those_of_transformers() {
    let goldens = Golden::all();
    assert_eq!(goldens.len(), 5);
    for golden in goldens {
        // Logits are up to 4.5; fp32 sums of 40 products leave an error of some 1e-6.
        let difference = difference(&golden, &golden.weights());
        assert!(difference < 2e-5, "{}: {difference}", golden.name);
    }
}

#[test]
fn the_graph_has_the_signature_of_every_model() {
    let golden = Golden::named("llama32_grouped_tied");
    let model = build_graph("tiny", &golden.config, &golden.weights(), MAX_SEQ_LEN).unwrap();
    let graph = &model.graph;
    assert_eq!(graph.name, "tiny");
    let names = |ids: &[roundhouse_graph::ValueId]| -> Vec<String> {
        ids.iter().map(|&id| graph.value(id).name.clone()).collect()
    };
    assert_eq!(names(graph.inputs()), ["input_ids", "position_ids"]);
    assert_eq!(names(graph.outputs()), ["logits"]);
    let symbols: Vec<&str> = graph.symbols().iter().map(|symbol| symbol.name.as_str()).collect();
    assert_eq!(symbols, ["batch", "seq"]);
    assert_eq!(graph.symbols()[1].max, 64, "max_position_embeddings");
    assert!(graph.values().all(|(_, value)| matches!(value.dtype, DType::F32 | DType::I64)));
    let attentions = graph.nodes().filter(|(_, node)| matches!(node.op, Op::ScaledDotProductAttention(_)));
    assert_eq!(attentions.count(), 2);
    for (_, value, expr) in graph.weights() {
        assert_eq!(expr.tensors(), [value.name.as_str()], "weights are named as the checkpoint's tensors");
    }
    let keys = graph.values().filter(|(_, value)| matches!(value.origin, Origin::Weight { .. })).count();
    assert_eq!(keys, golden.tensors.len(), "the tied table is one weight");
}

#[test]
fn the_info_comes_from_the_config() {
    let mut golden = Golden::named("llama2_multi_head");
    golden.config["eos_token_id"] = json!([2, 7]);
    golden.config["transformers_version"] = json!("4.40.0");
    golden.config["unsloth_version"] = json!("2024.9");
    let ModelGraph { info, ignored_fields, .. } =
        build_graph("x", &golden.config, &golden.weights(), MAX_SEQ_LEN).unwrap();
    assert_eq!(info.model_type, "llama");
    assert_eq!(info.architecture, "LlamaForCausalLM");
    assert_eq!((info.vocab_size, info.num_hidden_layers, info.max_position_embeddings), (48, 2, 64));
    assert_eq!((info.eos_token_ids, info.bos_token_id), (vec![2, 7], Some(1)));
    assert_eq!(ignored_fields, ["unsloth_version"]);
}

/// What building fails with after `edit` changed the config of a good checkpoint.
fn refusal(edit: impl Fn(&mut Value)) -> String {
    let mut golden = Golden::named("llama2_multi_head");
    let weights = golden.weights();
    edit(&mut golden.config);
    build_graph("x", &golden.config, &weights, MAX_SEQ_LEN).unwrap_err().to_string()
}

#[test]
fn fields_that_change_the_computation_are_refused_by_name() {
    let cases = [
        ("pretraining_tp", json!(2)),
        ("quantization_config", json!({"quant_method": "gptq"})),
        ("rope_interleaved", json!(true)),
        ("partial_rotary_factor", json!(0.5)),
        ("sliding_window", json!(4096)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("is_causal", json!(false)),
        ("hidden_act", json!("relu2")),
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("residual_multiplier", json!(0.22)),
        ("logits_scaling", json!(8.0)),
        ("num_local_experts", json!(8)),
        ("clip_qkv", json!(8.0)),
    ];
    for (field, value) in cases {
        let text = refusal(|config| config[field] = value.clone());
        let expected = format!("config.json: {field} is ");
        assert!(text.starts_with(&expected) && text.contains("not supported: expected "), "{text}");
    }
}

#[test]
fn neutral_values_of_those_fields_are_accepted() {
    let mut golden = Golden::named("llama2_multi_head");
    let fields = json!({
        "pretraining_tp": 1, "rope_interleaved": false, "sliding_window": null, "quantization_config": null,
        "layer_types": ["full_attention", "full_attention"], "hidden_act": "swish", "rope_scaling": null,
        "residual_multiplier": 1.0, "head_dim": 6,
    });
    for (field, value) in fields.as_object().unwrap() {
        golden.config[field] = value.clone();
    }
    assert!(difference(&golden, &golden.weights()) < 2e-5);
}

#[test]
fn rope_variants_that_are_not_known_are_refused_by_name() {
    let text = refusal(|config| config["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0}));
    let expected = "config.json: rope_scaling.type is \"dynamic\", which is not supported: expected default, \
                    linear, llama3, yarn or longrope";
    assert_eq!(text, expected);
    for kind in ["su", "mrope", "proportional"] {
        let text =
            refusal(|config| config["rope_parameters"] = json!({"rope_type": kind, "rope_theta": 1e4}));
        assert!(text.starts_with(&format!("config.json: rope_parameters.rope_type is \"{kind}\"")), "{text}");
    }
    let text = refusal(|config| config["rope_scaling"] = json!({"rope_type": "linear"}));
    assert_eq!(text, "config.json has no rope_scaling.factor: expected a number above zero");
    let text = refusal(|config| config["rope_scaling"] = json!({"rope_type": "default", "factor": 2.0}));
    assert!(text.starts_with("config.json: rope_scaling.factor is 2.0, which is not supported"), "{text}");
    let text = refusal(|config| {
        config["rope_parameters"] = json!({"rope_type": "default", "partial_rotary_factor": 0.25});
    });
    assert!(text.starts_with("config.json: rope_parameters.partial_rotary_factor is 0.25"), "{text}");
    let text = refusal(|config| {
        config["rope_scaling"] =
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4});
    });
    assert!(
        text.starts_with("config.json: rope_scaling.high_freq_factor is 4.0: expected a number above"),
        "{text}"
    );
    let text = refusal(|config| config["rope_scaling"] = json!({"rope_type": "yarn"}));
    assert_eq!(text, "config.json has no rope_scaling.factor: expected a number above zero");
}

#[test]
fn sizes_that_do_not_fit_each_other_are_refused_by_name() {
    let text = refusal(|config| config["num_key_value_heads"] = json!(3));
    assert_eq!(
        text,
        "config.json: num_key_value_heads is 3: expected a divisor of num_attention_heads, which is 4"
    );
    let text = refusal(|config| config["hidden_size"] = json!(26));
    assert!(
        text.starts_with("config.json: hidden_size is 26: expected a multiple of num_attention_heads"),
        "{text}"
    );
    let text = refusal(|config| config["head_dim"] = json!(7));
    assert!(text.starts_with("config.json: head_dim is 7: expected an even number"), "{text}");
    let text = refusal(|config| config["head_dim"] = json!(4_000_000_000_u32));
    assert!(text.starts_with("config.json: head_dim is 4000000000: expected"), "{text}");
    for field in
        ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    {
        let text = refusal(|config| {
            config.as_object_mut().unwrap().remove(field);
        });
        assert!(text.starts_with(&format!("config.json has no {field}: expected")), "{text}");
    }
}

#[test]
fn another_architecture_is_refused_with_those_that_are_supported() {
    let text = refusal(|config| config["architectures"] = json!(["MambaForCausalLM"]));
    assert!(
        text.starts_with("architecture MambaForCausalLM (model_type \"llama\") is not supported"),
        "{text}"
    );
    for family in FAMILIES {
        assert!(text.contains(family.architecture), "{text}");
    }
    let text = refusal(|config| config["model_type"] = json!("minicpm"));
    assert!(
        text.starts_with("architecture LlamaForCausalLM (model_type \"minicpm\") is not supported"),
        "{text}"
    );
    let text = refusal(|config| {
        let config = config.as_object_mut().unwrap();
        config.remove("architectures");
        config.remove("model_type");
    });
    assert!(text.starts_with("config.json has no architectures"), "{text}");
    let text = refusal(|config| config["architectures"] = json!([]));
    assert!(text.starts_with("config.json: architectures is []: expected"), "{text}");
    let error = build_graph("x", &json!("llama"), &MemoryWeights::new(), MAX_SEQ_LEN).unwrap_err();
    assert!(matches!(error, ModelError::Config(_)));
}

#[test]
fn a_tensor_of_another_shape_is_an_error_that_shows_both() {
    let golden = Golden::named("llama32_grouped_tied");
    let mut weights = golden.weights();
    let name = "model.layers.1.self_attn.k_proj.weight";
    weights.insert(name, &[24, 24], vec![0.0; 24 * 24]);
    let error = build_graph("x", &golden.config, &weights, MAX_SEQ_LEN).unwrap_err();
    let ModelError::Weight(WeightError::Shape { name: found_name, expected, found }) = error else {
        panic!("{error}");
    };
    assert_eq!((found_name.as_str(), expected, found), (name, vec![12, 24], vec![24, 24]));
}

#[test]
fn missing_and_unused_tensors_are_named() {
    let golden = Golden::named("llama2_multi_head");
    let without = |name: &str| {
        let mut golden = golden.clone();
        golden.tensors.remove(name).unwrap();
        build_graph("x", &golden.config, &golden.weights(), MAX_SEQ_LEN).unwrap_err()
    };
    let error = without("model.layers.0.mlp.up_proj.weight");
    assert!(matches!(error, ModelError::Weight(WeightError::NotFound { .. })), "{error}");
    assert!(error.to_string().contains("model.layers.0.mlp.up_proj.weight"));
    let error = without("lm_head.weight");
    assert!(matches!(error, ModelError::MissingHead { .. }), "{error}");
    assert!(error.to_string().contains("tie_word_embeddings is false"), "{error}");

    let mut weights = golden.weights();
    weights.insert("model.layers.0.self_attn.q_norm.weight", &[6], vec![1.0; 6]);
    weights.insert("model.layers.0.self_attn.rotary_emb.inv_freq", &[3], vec![1.0; 3]);
    let error = build_graph("x", &golden.config, &weights, MAX_SEQ_LEN).unwrap_err();
    assert!(matches!(error, ModelError::UnusedTensors { count: 1, .. }), "{error}");
    assert!(error.to_string().contains("model.layers.0.self_attn.q_norm.weight"), "{error}");
}

fn values(weights: &MemoryWeights, name: &str) -> Vec<f32> {
    let shape = weights.shape(name).unwrap();
    let mut values = vec![0.0; shape.iter().product::<u64>() as usize];
    weights.read_rows(name, 0..shape[0], &mut values).unwrap();
    values
}

#[test]
fn a_tied_head_is_the_table_unless_the_checkpoint_says_otherwise() {
    let golden = Golden::named("llama32_grouped_tied");
    let table = values(&golden.weights(), "model.embed_tokens.weight");
    let reads_its_own_head = |head: Vec<f32>| {
        let mut weights = golden.weights();
        weights.insert("lm_head.weight", &[48, 24], head);
        build_graph("x", &golden.config, &weights, MAX_SEQ_LEN)
            .unwrap()
            .graph
            .find("lm_head.weight")
            .is_some()
    };
    assert!(!reads_its_own_head(table.clone()), "a copy of the table is not stored twice");
    let mut other = table;
    other[47 * 24 + 3] += 1.0;
    assert!(reads_its_own_head(other), "Transformers unties what differs");
}
