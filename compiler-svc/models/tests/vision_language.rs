//! Vision-language checkpoints, as they are published and as Transformers has them in memory.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure")]

use std::path::{Path, PathBuf};

use roundhouse_backend::WeightSource as _;
use roundhouse_backend_conformance::MemoryWeights;
use roundhouse_engine::{Component, Patches};
use roundhouse_graph::{Graph, Op};
use roundhouse_models::{ModelGraph, build_graph};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const MAX_SEQ_LEN: u32 = 128;
const QWEN: &str = "tiny-qwen-2.5-vl";

fn folder(checkpoint: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap();
    workspace.join("tests/golden").join(checkpoint)
}

fn config() -> Value {
    serde_json::from_slice(&std::fs::read(folder(QWEN).join("config.json")).unwrap()).unwrap()
}

/// Tensors of the checkpoint's names and shapes.
fn weights(checkpoint: &str, rename: impl Fn(&str) -> String) -> MemoryWeights {
    let bytes = std::fs::read(folder(checkpoint).join("model.safetensors")).unwrap();
    let mut weights = MemoryWeights::new();
    for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let count = tensor.shape().iter().product();
        weights.insert(rename(&name), tensor.shape(), vec![0.5; count]);
    }
    weights
}

fn published() -> MemoryWeights {
    weights(QWEN, str::to_owned)
}

fn build(config: &Value, weights: &MemoryWeights) -> ModelGraph {
    build_graph("tiny", config, weights, MAX_SEQ_LEN).unwrap()
}

fn error(change: impl Fn(&mut Value)) -> String {
    let mut config = config();
    change(&mut config);
    build_graph("tiny", &config, &published(), MAX_SEQ_LEN).unwrap_err().to_string()
}

fn inputs(graph: &Graph) -> Vec<String> {
    let symbols = graph.symbols();
    let show = |&id| {
        let value = graph.value(id);
        let dims: Vec<String> = value.shape.iter().map(|dim| dim.display(symbols)).collect();
        format!("{} {} [{}]", value.name, value.dtype, dims.join(", "))
    };
    graph.inputs().iter().map(show).collect()
}

/// The ops of a graph in order, and what they read of a checkpoint.
fn form(graph: &Graph, rename: impl Fn(&str) -> String) -> (Vec<&'static str>, Vec<String>) {
    let ops = graph.nodes().map(|(_, node)| node.op.name()).collect();
    let tensors = graph.weights().flat_map(|(_, _, expr)| expr.tensors()).map(rename).collect();
    (ops, tensors)
}

#[test]
fn an_image_enters_by_pixels_orders_and_rows() {
    let model = build(&config(), &published());
    assert_eq!(
        inputs(&model.graph),
        [
            "input_ids i64 [batch, seq]",
            "position_ids i64 [batch, 3, seq]",
            "image_features f32 [image_rows, 64]",
            "image_indices i64 [batch, seq]",
        ]
    );
    let [(Component::Vision, vision), (Component::Projector, projector)] = &model.components[..] else {
        unreachable!("{:?}", model.components)
    };
    assert_eq!(
        inputs(vision),
        [
            "pixel_values f32 [4*tokens, 96]",
            "position_ids i64 [1, 2, 4*tokens]",
            "window_index i64 [tokens]",
            "window_segment_ids i64 [1, 4*tokens]",
            "image_segment_ids i64 [1, 4*tokens]",
        ]
    );
    assert_eq!(inputs(projector), ["hidden_states f32 [1, 4*tokens, 32]", "reverse_index i64 [tokens]"]);
    // No more tokens than a sequence holds.
    assert_eq!(vision.symbols()[0].max, i64::from(MAX_SEQ_LEN));
    let found = model.info.vision.unwrap();
    assert_eq!((found.image_token_id, found.feature_size), (Some(290), 64));
    let patches =
        Patches::Grid { patch_size: 4, temporal_patch_size: 2, spatial_merge_size: 2, window_size: 16 };
    assert_eq!(found.patches, patches);
    assert!(model.ignored_fields.is_empty(), "{:?}", model.ignored_fields);
}

#[test]
fn layers_attend_to_windows_or_images_as_the_config_says() {
    let model = build(&config(), &published());
    let vision = &model.components[0].1;
    let segments: Vec<&str> = vision
        .nodes()
        .filter(|(_, node)| matches!(node.op, Op::ScaledDotProductAttention(_)))
        .map(|(_, node)| vision.value(node.inputs[3]).name.as_str())
        .collect();
    let (windows, images) = ("window_segment_ids", "image_segment_ids");
    assert_eq!(segments, [windows, images, windows, images]);
}

#[test]
fn tensors_named_as_in_memory_and_a_text_config_give_the_same_graphs() {
    let in_memory = |name: &str| match name.strip_prefix("visual.") {
        Some(rest) => format!("model.visual.{rest}"),
        None => name.replace("model.", "model.language_model."),
    };
    let mut nested = config();
    let object = nested.as_object_mut().unwrap();
    let kept = |name: &str| {
        name.ends_with("_token_id") || ["architectures", "model_type", "vision_config"].contains(&name)
    };
    let text: Vec<String> = object.keys().filter(|name| !kept(name)).cloned().collect();
    let text: serde_json::Map<String, Value> =
        text.into_iter().map(|name| (name.clone(), object.remove(&name).unwrap())).collect();
    object.insert("text_config".to_owned(), Value::Object(text));
    object["vision_config"]["model_type"] = json!("qwen2_5_vl_vision");

    let (old, new) = (build(&config(), &published()), build(&nested, &weights(QWEN, in_memory)));
    assert_eq!(form(&old.graph, in_memory), form(&new.graph, str::to_owned));
    for ((component, old), (_, new)) in old.components.iter().zip(&new.components) {
        assert_eq!(form(old, in_memory), form(new, str::to_owned), "{component}");
    }
    assert_eq!(old.info.vision, new.info.vision);
}

#[test]
fn configs_that_mean_something_else_are_refused_by_name() {
    let vision =
        |name: &'static str, value: Value| error(move |config| config["vision_config"][name] = value.clone());
    for (found, field) in [
        (error(|config| config["vision_config"] = Value::Null), "vision_config"),
        (vision("deepstack_visual_indexes", json!([1])), "vision_config.deepstack_visual_indexes"),
        (vision("fullatt_block_indexes", json!([4])), "vision_config.fullatt_block_indexes"),
        (vision("hidden_act", json!("relu")), "vision_config.hidden_act"),
        (vision("out_hidden_size", json!(32)), "vision_config.out_hidden_size"),
        (vision("num_heads", json!(3)), "vision_config.hidden_size"),
        (vision("window_size", json!(7)), "vision_config.window_size"),
        (
            vision("rope_parameters", json!({"rope_type": "default"})),
            "vision_config.rope_parameters.rope_type",
        ),
        (error(|config| config["rope_scaling"]["mrope_section"] = json!([2, 3, 4])), "mrope_section"),
        (error(|config| config["rope_scaling"]["mrope_section"] = json!([4, 4])), "mrope_section"),
        (error(|config| config["rope_scaling"]["type"] = json!("dynamic")), "rope_scaling.type"),
        (error(|config| config["attention_multiplier"] = json!(2)), "attention_multiplier"),
    ] {
        assert!(found.starts_with("config.json") && found.contains(field), "{field}: {found}");
    }
}

#[test]
fn tensors_that_no_component_reads_are_refused() {
    for name in ["visual.blocks.0.attn.q_norm.weight", "visual.merger.mlp.4.weight", "model.extra.weight"] {
        let mut weights = published();
        weights.insert(name.to_owned(), &[4], vec![0.0; 4]);
        let error = build_graph("tiny", &config(), &weights, MAX_SEQ_LEN).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let missing = weights(QWEN, |name| name.replace("merger.ln_q", "merger.norm"));
    assert!(missing.shape("visual.merger.ln_q.weight").is_err());
    let error = build_graph("tiny", &config(), &missing, MAX_SEQ_LEN).unwrap_err().to_string();
    assert!(error.contains("visual.merger"), "{error}");
}

mod eagle2 {
    use super::*;

    fn config() -> Value {
        serde_json::from_slice(&std::fs::read(folder("tiny-eagle2").join("config.json")).unwrap()).unwrap()
    }

    fn error(change: impl Fn(&mut Value)) -> String {
        let mut config = config();
        change(&mut config);
        let weights = weights("tiny-eagle2", str::to_owned);
        build_graph("tiny", &config, &weights, MAX_SEQ_LEN).unwrap_err().to_string()
    }

    #[test]
    fn tiles_enter_as_pixels_and_leave_as_rows() {
        let weights = weights("tiny-eagle2", str::to_owned);
        let model = build(&config(), &weights);
        let expected = [
            "input_ids i64 [batch, seq]",
            "position_ids i64 [batch, seq]",
            "image_features f32 [image_rows, 64]",
            "image_indices i64 [batch, seq]",
        ];
        assert_eq!(inputs(&model.graph), expected);
        let [(Component::Vision, vision), (Component::Projector, projector)] = &model.components[..] else {
            unreachable!("{:?}", model.components)
        };
        assert_eq!(inputs(vision), ["pixel_values f32 [tiles, 3, 16, 16]"]);
        assert_eq!(inputs(projector), ["hidden_states f32 [tiles, 16, 32]"]);
        // No more tiles of 4 tokens than a sequence holds.
        assert_eq!(vision.symbols()[0].max, i64::from(MAX_SEQ_LEN / 4));
        let found = model.info.vision.unwrap();
        assert_eq!((found.image_token_id, found.image_token.as_str()), (None, "<IMG_CONTEXT>"));
        assert_eq!(found.patches, Patches::Tiles { image_size: 16, tokens: 4 });
        assert!(model.ignored_fields.is_empty(), "{:?}", model.ignored_fields);
    }

    #[test]
    fn configs_that_mean_something_else_are_refused_by_name() {
        let vision = |name: &'static str, value: Value| {
            error(move |config| config["vision_config"][name] = value.clone())
        };
        for (found, field) in [
            (vision("model_type", json!("MOB-siglip-convnext")), "vision_config.model_type"),
            (vision("moe_version_type", json!("feat_concat")), "vision_config.moe_version_type"),
            (vision("hidden_act", json!("relu")), "vision_config.hidden_act"),
            (vision("patch_size", json!(5)), "vision_config.image_size"),
            (vision("patch_size", json!(32)), "vision_config.patch_size"),
            (error(|config| config["select_layer"] = json!(-2)), "select_layer"),
            (error(|config| config["downsample_ratio"] = json!(1)), "downsample_ratio"),
            (error(|config| config["use_llm_lora"] = json!(16)), "use_llm_lora"),
            (error(|config| config["llm_config"] = Value::Null), "llm_config"),
            (
                error(|config| config["llm_config"]["architectures"] = json!(["LlamaForCausalLM"])),
                "llm_config.architectures",
            ),
        ] {
            assert!(found.starts_with("config.json") && found.contains(field), "{field}: {found}");
        }
    }
}
