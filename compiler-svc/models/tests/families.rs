//! Every family computes what Transformers computes, in each way that its configs differ, and refuses the rest by name.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod support;

use std::collections::BTreeSet;

use roundhouse_backend_conformance::{Interpreter, MemoryWeights, Tensor};
use roundhouse_graph::{AttentionAttributes, Graph, Op, RotaryAttributes};
use roundhouse_models::{FAMILIES, build_graph};
use serde_json::{Value, json};
use support::Golden;

/// As long as the goldens' sequences, and between the two contexts from which their `longrope` configs take long factors.
const MAX_SEQ_LEN: u32 = 12;

fn golden(name: &str) -> Golden {
    Golden::families().into_iter().find(|golden| golden.name == name).unwrap()
}

fn logits(golden: &Golden, weights: &MemoryWeights) -> Vec<f32> {
    let model = build_graph(&golden.name, &golden.config, weights, MAX_SEQ_LEN).unwrap();
    let (batch, seq) = (golden.input_ids.len(), golden.input_ids[0].len());
    let positions = (0..i64::try_from(seq).unwrap()).cycle().take(batch * seq).collect();
    let inputs = [
        ("input_ids", Tensor::int(&[batch, seq], golden.input_ids.concat())),
        ("position_ids", Tensor::int(&[batch, seq], positions)),
    ];
    let outputs = Interpreter::new(&model.graph, weights).unwrap().run(inputs).unwrap();
    outputs["logits"].floats().to_vec()
}

#[test]
fn logits_are_those_of_transformers() {
    for golden in Golden::families() {
        // Logits are up to 7; fp32 sums of some 30 products, made in another order.
        let difference = support::difference(&logits(&golden, &golden.weights()), &golden.logits);
        assert!(difference < 2e-5, "{}: {difference}", golden.name);
    }
}

#[test]
fn every_family_has_a_golden() {
    let goldens = Golden::families();
    let found: BTreeSet<(&str, &str)> = goldens
        .iter()
        .map(|golden| {
            let text = |value: &'static str| golden.config.pointer(value).and_then(Value::as_str).unwrap();
            (text("/model_type"), text("/architectures/0"))
        })
        .collect();
    // Those with images have tests of their own.
    let text = FAMILIES.iter().filter(|family| family.components.is_none());
    assert_eq!(found, text.map(|family| (family.model_type, family.architecture)).collect());
}

/// The graph of a golden whose config `edit` changed, in an engine for `max_seq_len` tokens.
fn graph(name: &str, max_seq_len: u32, edit: impl Fn(&mut Value)) -> Graph {
    let mut golden = golden(name);
    let weights = golden.weights();
    edit(&mut golden.config);
    build_graph(name, &golden.config, &weights, max_seq_len).unwrap().graph
}

fn attentions(graph: &Graph) -> Vec<AttentionAttributes> {
    let attributes = |op: &Op| match op {
        Op::ScaledDotProductAttention(attributes) => Some(attributes.clone()),
        _ => None,
    };
    graph.nodes().filter_map(|(_, node)| attributes(&node.op)).collect()
}

fn windows(graph: &Graph) -> Vec<Option<u32>> {
    attentions(graph).into_iter().map(|attributes| attributes.window).collect()
}

/// Of each layer's queries, in order.
fn rotations(graph: &Graph) -> Vec<RotaryAttributes> {
    let attributes = |op: &Op| match op {
        Op::RotaryEmbedding(attributes) => Some(attributes.clone()),
        _ => None,
    };
    graph.nodes().filter_map(|(_, node)| attributes(&node.op)).step_by(2).collect()
}

/// Makes fields absent.
fn without<'a>(fields: &'a [&str]) -> impl Fn(&mut Value) + 'a {
    move |config| fields.iter().for_each(|&field| drop(config.as_object_mut().unwrap().remove(field)))
}

#[test]
fn what_is_left_out_is_what_transformers_makes_of_it() {
    let long = |config: &mut Value| config["max_position_embeddings"] = json!(1 << 20);
    let graph = |name, fields: &[&str]| {
        graph(name, 1 << 20, |config| {
            long(config);
            without(fields)(config);
        })
    };
    assert_eq!(windows(&graph("mistral/window", &["sliding_window"])), [Some(4096); 2]);
    assert_eq!(windows(&graph("mistral/no_window", &[])), [None; 2], "null is no window");
    assert_eq!(windows(&graph("phi3/window", &["sliding_window"])), [None; 2]);
    assert_eq!(windows(&graph("qwen2/windows", &["use_sliding_window"])), [None; 2]);
    assert_eq!(windows(&graph("qwen2/windows", &["max_window_layers"])), [None; 2], "28 layers are below it");
    assert_eq!(windows(&graph("qwen3/windows_and_biases", &["sliding_window"])), [Some(4096); 2]);
    assert_eq!(windows(&graph("smollm3/layer_types", &["layer_types"])), [None, Some(5)]);
    let gemma3 = graph("gemma3_text/before_transformers_5", &["sliding_window", "query_pre_attn_scalar"]);
    assert_eq!(windows(&gemma3), [Some(4096), None]);
    assert!(attentions(&gemma3).iter().all(|attributes| attributes.scale == Some(1.0 / 16.0)));
    let gemma3 = graph("gemma3_text/before_transformers_5", &["sliding_window_pattern"]);
    assert_eq!(windows(&gemma3), [Some(5), Some(5)], "every sixth layer is full");
    let gemma3 = graph("gemma3_text/soft_caps", &[]);
    let bases: Vec<f32> = rotations(&gemma3).iter().map(|rotary| rotary.inv_freq[1].powi(-3)).collect();
    assert!((bases[0] / 1e4 - 1.0).abs() < 1e-5 && (bases[1] / 1e6 - 1.0).abs() < 1e-5, "{bases:?}");
    assert_eq!(rotations(&graph("smollm3/plain", &[])).len(), 3, "every fourth layer has none");
    assert_eq!(windows(&graph("mixtral/window", &["sliding_window"])), [None; 2]);
    assert_eq!(
        windows(&graph("qwen3_moe/window_biases_and_dense_layers", &["sliding_window"])),
        [Some(4096); 3]
    );
    let qwen2_moe = |fields: &[&str]| windows(&graph("qwen2_moe/windows_and_dense_layers", fields));
    assert_eq!(qwen2_moe(&["max_window_layers"]), [Some(5), None, Some(5), None], "28 layers are above it");
    assert_eq!(qwen2_moe(&["use_sliding_window"]), [None; 4]);
    assert_eq!(qwen2_moe(&["sliding_window"]), [Some(4096), None, None, None]);
    let bases: Vec<f32> = ["mixtral/window", "qwen2_moe/plain", "qwen3_moe/stacked"]
        .map(|name| rotations(&graph(name, &["rope_theta"]))[0].inv_freq[1].powi(-2))
        .into();
    for (found, expected) in bases.iter().zip([1e6, 1e4, 1e4]) {
        assert!((found / expected - 1.0).abs() < 1e-5, "{bases:?}");
    }
}

#[test]
fn a_window_that_no_sequence_outgrows_is_none() {
    assert_eq!(windows(&graph("mistral/window", 6, |_| {})), [Some(5); 2]);
    assert_eq!(windows(&graph("mistral/window", 5, |_| {})), [None; 2]);
    let short = |config: &mut Value| config["max_position_embeddings"] = json!(5);
    assert_eq!(windows(&graph("mistral/window", 100, short)), [None; 2]);
}

#[test]
fn longrope_takes_its_long_factors_where_sequences_may_outgrow_the_original_context() {
    let angle = |max_seq_len| rotations(&graph("phi3/longrope_short", max_seq_len, |_| {}))[0].inv_freq[0];
    assert_eq!((angle(16), angle(17), angle(1000)), (1.0 / 1.1, 1.0 / 1.5, 1.0 / 1.5));
    let short = |config: &mut Value| config["max_position_embeddings"] = json!(16);
    let graph = graph("phi3/longrope_short", 1000, short);
    assert_eq!(rotations(&graph)[0].inv_freq[0], 1.0 / 1.1, "no sequence is longer than the model allows");
}

/// What building fails with after `edit` changed the config of a good checkpoint.
fn refusal(name: &str, edit: impl Fn(&mut Value)) -> String {
    let mut golden = golden(name);
    let weights = golden.weights();
    edit(&mut golden.config);
    build_graph(name, &golden.config, &weights, MAX_SEQ_LEN).unwrap_err().to_string()
}

#[test]
fn fields_that_change_the_computation_are_refused_by_name() {
    let cases = [
        ("mistral/window", "layer_types", json!(["full_attention", "sliding_attention"])),
        ("mistral/no_window", "layer_types", json!(["sliding_attention", "sliding_attention"])),
        ("mistral/window", "hidden_act", json!("relu")),
        ("mistral/window", "num_local_experts", json!(8)),
        ("qwen2/plain", "layer_types", json!(["full_attention", "chunked_attention"])),
        ("qwen3/plain", "rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0})),
        ("qwen3/plain", "quantization_config", json!({"quant_method": "fp8"})),
        ("smollm3/plain", "attention_chunk_size", json!(4)),
        ("mixtral/window", "hidden_act", json!("gelu")),
        ("mixtral/window", "layer_types", json!(["sliding_attention", "full_attention"])),
        ("qwen2_moe/plain", "scoring_func", json!("sigmoid")),
        ("qwen2_moe/plain", "num_local_experts", json!(5)),
        ("qwen3_moe/plain", "n_shared_experts", json!(1)),
        ("qwen3_moe/plain", "use_qk_norm", json!(false)),
        ("qwen3_moe/plain", "qkv_bias", json!(true)),
        ("qwen3_moe/plain", "shared_expert_intermediate_size", json!(8)),
        ("qwen3_moe/plain", "layer_types", json!(["sliding_attention", "sliding_attention"])),
        ("qwen3_moe/plain", "routed_scaling_factor", json!(2.5)),
        ("qwen3/plain", "num_experts", json!(8)),
        ("phi3/plain", "rope_scaling", json!({"rope_type": "linear", "factor": 2.0})),
        ("phi3/plain", "attention_bias", json!(true)),
        ("phi3/plain", "lm_head_bias", json!(true)),
        ("phi3/plain", "full_attn_mod", json!(2)),
        ("gemma3_text/before_transformers_5", "use_bidirectional_attention", json!(true)),
        ("gemma3_text/before_transformers_5", "hidden_act", json!("gelu")),
        ("gemma3_text/nested_rope_parameters", "rope_scaling", json!({"rope_type": "linear", "factor": 2.0})),
        ("gemma3_text/nested_rope_parameters", "rope_parameters", json!({"rope_type": "default"})),
        ("gpt2/plain", "add_cross_attention", json!(true)),
        ("gpt2/plain", "activation_function", json!("relu")),
        ("olmo2/grouped", "clip_qkv", json!(8.0)),
        ("olmo2/grouped", "sliding_window", json!(5)),
    ];
    for (name, field, value) in cases {
        let text = refusal(name, |config| config[field] = value.clone());
        let expected = format!("config.json: {field}");
        assert!(text.starts_with(&expected) && text.contains("not supported: expected "), "{name}: {text}");
    }
}

#[test]
fn fields_that_contradict_each_other_are_refused_by_name() {
    let cases = [
        // A layer with a window, and no window.
        ("qwen2/layer_types", "use_sliding_window", json!(false), "layer_types"),
        ("smollm3/layer_types", "sliding_window", json!(null), "layer_types"),
        ("gemma3_text/before_transformers_5", "sliding_window", json!(null), "sliding_window"),
        // Lists of another length than the model.
        ("qwen2/layer_types", "num_hidden_layers", json!(3), "layer_types"),
        ("smollm3/windows_and_biases", "num_hidden_layers", json!(4), "no_rope_layers"),
        ("smollm3/windows_and_biases", "no_rope_layers", json!([0, 2]), "no_rope_layers"),
        ("phi3/longrope_short", "partial_rotary_factor", json!(0.5), "rope_scaling.short_factor"),
        ("qwen2_moe/stacked", "use_sliding_window", json!(false), "layer_types"),
        ("qwen2_moe/stacked", "sliding_window", json!(0), "sliding_window"),
        ("qwen2_moe/plain", "mlp_only_layers", json!([0, "1"]), "mlp_only_layers"),
        ("qwen2_moe/plain", "decoder_sparse_step", json!(0), "decoder_sparse_step"),
        // More experts a token than there are, and two numbers of them.
        ("qwen2_moe/plain", "num_experts_per_tok", json!(6), "num_experts_per_tok"),
        ("qwen3_moe/plain", "num_local_experts", json!(6), "num_local_experts"),
        ("mixtral/window", "num_local_experts", json!(0), "num_local_experts"),
        ("qwen3_moe/plain", "moe_intermediate_size", json!(1_000_000_000_u32), "moe_intermediate_size"),
        // No even number of dimensions.
        ("phi3/longrope_short", "partial_rotary_factor", json!(0.7), "partial_rotary_factor"),
        ("phi3/longrope_short", "partial_rotary_factor", json!(1.5), "partial_rotary_factor"),
        ("phi3/plain", "intermediate_size", json!(3_000_000_000_u32), "intermediate_size"),
        ("gpt2/plain", "n_head", json!(3), "n_embd"),
        ("gpt2/plain", "n_embd", json!(3_000_000_000_u32), "n_embd"),
    ];
    for (name, field, value, named) in cases {
        let text = refusal(name, |config| config[field] = value.clone());
        assert!(text.starts_with(&format!("config.json: {named} is ")), "{name} {field}: {text}");
    }
}

#[test]
fn sizes_have_to_be_there() {
    for name in ["mistral/window", "gpt2/plain", "gemma3_text/soft_caps", "phi3/plain", "qwen2_moe/plain"] {
        let fields =
            ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"];
        let gpt2 = ["vocab_size", "n_embd", "n_layer", "n_head"];
        for &field in if name.starts_with("gpt2") { &gpt2[..] } else { &fields[..] } {
            let text = refusal(name, without(&[field]));
            assert!(text.starts_with(&format!("config.json has no {field}: expected")), "{name}: {text}");
        }
    }
}

#[test]
fn sizes_of_experts_have_to_be_there() {
    let cases = [
        ("mixtral/window", "num_experts", "num_local_experts"),
        ("qwen2_moe/plain", "num_experts", "num_experts"),
        ("qwen2_moe/plain", "moe_intermediate_size", "moe_intermediate_size"),
        ("qwen2_moe/plain", "shared_expert_intermediate_size", "shared_expert_intermediate_size"),
        ("qwen3_moe/plain", "num_experts_per_tok", "num_experts_per_tok"),
    ];
    for (name, named, field) in cases {
        let text = refusal(name, without(&[field]));
        assert!(text.starts_with(&format!("config.json has no {named}: expected")), "{name}: {text}");
    }
}

#[test]
fn which_layers_are_mixtures_follows_from_the_config() {
    let cases = [
        (json!({"mlp_only_layers": null}), &[true, true, true][..]),
        (json!({"mlp_only_layers": [0, 2, 7]}), &[false, true, false]),
        (json!({"mlp_only_layers": [], "decoder_sparse_step": 2}), &[false, true, false, true]),
        (json!({"mlp_only_layers": [1], "decoder_sparse_step": 2}), &[false, false, false, true]),
        (json!({"decoder_sparse_step": 3}), &[false, false]),
        (json!({"num_experts": 0}), &[false, false]),
    ];
    // Its first layer is dense, its second a mixture.
    let mut golden = golden("qwen3_moe/window_biases_and_dense_layers");
    let tensors = golden.weights();
    for (changes, expected) in cases {
        let mut weights = MemoryWeights::new();
        for (name, shape) in &golden.tensors {
            let mut insert = |name: String| weights.insert(name, shape, vec![0.0; shape.iter().product()]);
            let of = |layer: usize| name.strip_prefix(&format!("model.layers.{layer}."));
            match (of(0), of(1), of(2)) {
                (None, None, None) => insert(name.clone()),
                (dense, sparse, _) => {
                    for (layer, &is_sparse) in expected.iter().enumerate() {
                        if let Some(rest) = if is_sparse { sparse } else { dense } {
                            insert(format!("model.layers.{layer}.{rest}"));
                        }
                    }
                }
            }
        }
        let mut config = golden.config.clone();
        config["num_hidden_layers"] = json!(expected.len());
        for (field, value) in changes.as_object().unwrap() {
            config[field] = value.clone();
        }
        // A layer of the other kind would lack its tensors.
        let graph = build_graph("x", &config, &weights, MAX_SEQ_LEN).unwrap().graph;
        let mixtures = graph.nodes().filter(|(_, node)| matches!(node.op, Op::MixtureOfExperts(_))).count();
        assert_eq!(mixtures, expected.iter().filter(|&&is_sparse| is_sparse).count(), "{changes}");
    }
    golden.config["mlp_only_layers"] = json!([1]);
    let text = build_graph("x", &golden.config, &tensors, MAX_SEQ_LEN).unwrap_err().to_string();
    assert!(text.contains("model.layers.0.mlp.experts.0.gate_proj.weight"), "{text}");
}

#[test]
fn gpt2_takes_its_sizes_under_the_names_of_other_models() {
    let mut golden = golden("gpt2/plain");
    let config = golden.config.as_object_mut().unwrap();
    let names = [
        ("n_embd", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_positions", "max_position_embeddings"),
    ];
    for (name, other) in names {
        let size = config.remove(name).unwrap();
        config.insert(other.to_owned(), size);
    }
    assert!(support::difference(&logits(&golden, &golden.weights()), &golden.logits) < 2e-5);
}

#[test]
fn buffers_of_old_checkpoints_are_no_weights() {
    let golden = golden("gpt2/without_prefix");
    let mut weights = golden.weights();
    weights.insert("h.0.attn.bias", &[1, 1, 64, 64], vec![1.0; 64 * 64]);
    weights.insert("h.1.attn.masked_bias", &[1], vec![-1e4]);
    assert!(support::difference(&logits(&golden, &weights), &golden.logits) < 2e-5);
    weights.insert("h.1.attn.rotary.weight", &[1], vec![1.0]);
    let text = build_graph("x", &golden.config, &weights, MAX_SEQ_LEN).unwrap_err().to_string();
    assert!(text.contains("h.1.attn.rotary.weight"), "{text}");
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let cases = [
        ("phi3/plain", "model.layers.1.self_attn.qkv_proj.weight", &[47, 16][..]),
        ("phi3/plain", "model.layers.0.mlp.gate_up_proj.weight", &[24, 16]),
        ("gpt2/plain", "transformer.h.0.attn.c_attn.weight", &[48, 16]),
        ("mixtral/window", "model.layers.1.block_sparse_moe.experts.3.w2.weight", &[24, 16]),
        ("qwen3_moe/plain", "model.layers.0.mlp.experts.4.up_proj.weight", &[12, 15]),
        ("qwen3_moe/plain", "model.layers.0.mlp.gate.weight", &[4, 16]),
        ("qwen2_moe/stacked", "model.layers.0.mlp.experts.gate_up_proj", &[5, 16, 24]),
    ];
    for (name, tensor, shape) in cases {
        let golden = golden(name);
        let mut weights = golden.weights();
        weights.insert(tensor, shape, vec![0.0; shape.iter().product()]);
        let text = build_graph("x", &golden.config, &weights, MAX_SEQ_LEN).unwrap_err().to_string();
        assert!(text.contains(tensor) && text.contains(&format!("{shape:?}")), "{text}");
    }
}

#[test]
fn what_transformers_ignores_is_reported() {
    let mut golden = golden("phi3/plain");
    golden.config["auto_map"] = json!({"AutoConfig": "configuration_phi3.Phi3Config"});
    golden.config["resid_pdrop"] = json!(0.0);
    golden.config["some_new_field"] = json!(3);
    let model = build_graph("x", &golden.config, &golden.weights(), MAX_SEQ_LEN).unwrap();
    assert_eq!(model.ignored_fields, ["some_new_field"]);
    let mut golden = self::golden("qwen3_moe/plain");
    golden.config["use_qk_norm"] = json!(true);
    golden.config["qkv_bias"] = json!(false);
    golden.config["shared_expert_intermediate_size"] = json!(0);
    let model = build_graph("x", &golden.config, &golden.weights(), MAX_SEQ_LEN).unwrap();
    assert_eq!(model.ignored_fields, Vec::<String>::new(), "what Qwen3-Coder's config says is so");
    let mut golden = self::golden("mixtral/window");
    golden.config["router_jitter_noise"] = json!(0.1);
    golden.config["output_router_logits"] = json!(true);
    golden.config["router_aux_loss_coef"] = json!(0.02);
    let model = build_graph("x", &golden.config, &golden.weights(), MAX_SEQ_LEN).unwrap();
    assert_eq!(model.ignored_fields, Vec::<String>::new(), "they are of training");
}
