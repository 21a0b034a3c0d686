//! Whatever a preprocessor_config.json says is either reproduced or refused by name.

#![expect(clippy::expect_used, reason = "a panic in a test's helper is a failed test")]

use roundhouse_vision::{Fault, ImageProcessor, VisionError, tokens_per_tile};
use serde_json::{Value, json};

fn refusal(config: &Value, tokens: Option<usize>) -> String {
    let error = ImageProcessor::from_config(config, tokens).expect_err(&config.to_string());
    assert!(matches!(error, VisionError::UnsupportedProcessor { .. }), "{error}");
    assert_eq!((error.fault(), error.reason()), (Fault::Operator, "IMAGE_PROCESSOR_UNSUPPORTED"));
    error.to_string()
}

fn with(family: &str, field: &str, value: Value) -> Value {
    let mut config = json!({"image_processor_type": family});
    config[field] = value;
    config
}

#[test]
fn fields_that_would_change_the_result_are_refused_by_name() {
    for (family, field, value) in [
        ("Qwen2VLImageProcessor", "do_resize", json!(false)),
        ("Qwen2VLImageProcessor", "do_normalize", json!(false)),
        ("Qwen2VLImageProcessor", "do_rescale", json!(false)),
        ("Qwen2VLImageProcessor", "do_center_crop", json!(true)),
        ("Qwen2VLImageProcessor", "sharpness", json!(2)),
        ("Qwen2VLImageProcessor", "resample", json!(0)),
        ("Qwen2VLImageProcessor", "size", json!({"height": 448, "width": 448})),
        ("Qwen2VLImageProcessor", "patch_size", json!(0)),
        ("Qwen2VLImageProcessor", "patch_size", json!("14")),
        ("Qwen2VLImageProcessor", "image_mean", json!([0.5, 0.5])),
        ("Qwen2VLImageProcessor", "image_std", json!([0.5, 0.0, 0.5])),
        ("Eagle2ImageProcessor", "pad_during_tiling", json!(true)),
        ("Eagle2ImageProcessor", "do_center_crop", json!(true)),
        ("Eagle2ImageProcessor", "crop_size", json!({"height": 224, "width": 224})),
        ("Eagle2ImageProcessor", "size", json!({"shortest_edge": 448})),
        ("Eagle2ImageProcessor", "max_dynamic_tiles", json!(1000)),
        ("Idefics3ImageProcessor", "do_resize", json!(false)),
        ("Idefics3ImageProcessor", "max_image_size", json!({"longest_edge": 5000})),
    ] {
        let config = with(family, field, value);
        let text = refusal(&config, Some(1));
        let named = text.contains(field) || (field == "max_dynamic_tiles" && text.contains("1000 tiles"));
        assert!(named, "{config}: {text}");
    }
}

#[test]
fn fields_without_effect_are_passed_over() {
    for (family, field, value) in [
        ("Qwen2VLImageProcessor", "processor_class", json!("Qwen2VLProcessor")),
        ("Qwen2VLImageProcessorFast", "disable_grouping", json!(true)),
        ("Qwen2VLImageProcessor", "crop_size", Value::Null),
        ("Eagle25VLImageProcessorFast", "do_center_crop", Value::Null),
        ("Eagle2ImageProcessor", "do_resize", json!(false)),
        ("SmolVLMImageProcessor", "do_pad", json!(true)),
    ] {
        let config = with(family, field, value);
        assert!(ImageProcessor::from_config(&config, Some(1)).is_ok(), "{config}");
    }
}

#[test]
fn families_are_told_by_name_and_tiled_ones_need_to_know_their_tokens() {
    for config in [json!({}), json!([]), json!({"image_processor_type": "CLIPImageProcessor"})] {
        refusal(&config, Some(1));
    }
    for family in ["Eagle2ImageProcessor", "Idefics3ImageProcessor"] {
        let config = json!({"image_processor_type": family});
        assert!(refusal(&config, None).contains("tokens"));
        refusal(&config, Some(0));
    }
}

#[test]
fn tokens_of_a_tile_follow_from_patches_and_pixel_shuffle() {
    assert_eq!(tokens_per_tile(448, 14, 0.5), Some(256));
    assert_eq!(tokens_per_tile(512, 16, 0.25), Some(64));
    for (size, patch, ratio) in [(448, 0, 0.5), (450, 14, 0.5), (14, 14, 0.5), (448, 14, 0.3)] {
        assert_eq!(tokens_per_tile(size, patch, ratio), None);
    }
}

#[test]
fn shapes_that_a_model_does_not_take_are_the_callers_fault() {
    let config = json!({"image_processor_type": "Qwen2VLImageProcessor"});
    let processor = ImageProcessor::from_config(&config, None).unwrap();
    assert!(processor.layout(2000, 10).is_ok());
    let error = processor.layout(2001, 10).unwrap_err();
    assert_eq!((error.reason(), error.fault()), ("IMAGE_SHAPE_UNSUPPORTED", Fault::Caller));
    assert!(matches!(processor.layout(0, 10), Err(VisionError::NoPixels { .. })));
}
