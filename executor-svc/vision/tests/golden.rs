//! Pixels and values are those of Pillow and Transformers (`tests/golden/vision_preprocessing.py` made the files).

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test's helper is a failed test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use roundhouse_vision::{Arrangement, ImageLimits, ImageProcessor, RgbImage, decode, tokens_per_tile};
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// How far a value may be from the reference's.
const TOLERANCE: f32 = 1e-3;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/vision")
}

fn read(name: &str) -> Vec<u8> {
    let path = folder().join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

fn image(name: &str) -> RgbImage {
    decode(&read(name), &ImageLimits::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn processor(name: &str) -> ImageProcessor {
    // As the configs of the models have it, which these processors belong to.
    let tokens = match name {
        "eagle2" => tokens_per_tile(448, 14, 0.5),
        "eagle2-small-tiles" => tokens_per_tile(56, 14, 0.5),
        "idefics3" => tokens_per_tile(364, 14, 0.5),
        "smolvlm-one-tile" => tokens_per_tile(128, 16, 0.5),
        _ => None,
    };
    ImageProcessor::from_config(&json(&format!("{name}.preprocessor_config.json")), tokens).unwrap()
}

#[test]
fn every_kind_of_file_decodes_to_the_pixels_of_pillow() {
    let bytes = read("decoding.golden.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut seen = 0;
    for name in tensors.names() {
        let Some(case) = name.strip_suffix(".rgb") else { continue };
        let expected = tensors.tensor(name).unwrap();
        let file = tensors.tensor(&format!("{case}.file")).unwrap();
        let image =
            decode(file.data(), &ImageLimits::default()).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!([image.height() as usize, image.width() as usize, 3], expected.shape(), "{case}");
        let differences = image.pixels().iter().zip(expected.data()).filter(|(a, b)| a != b).count();
        assert_eq!(differences, 0, "{case}: of {} samples", expected.data().len());
        seen += 1;
    }
    assert!(seen >= 87, "{seen} files");
}

#[test]
fn pixel_values_are_those_of_transformers_for_every_image_and_processor() {
    let bytes = read("pixel_values.golden.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut images = BTreeMap::new();
    let mut processors: BTreeMap<String, ImageProcessor> = BTreeMap::new();
    let cases = json("cases.json");
    for case in cases.as_array().unwrap() {
        let (name, file) = (case["processor"].as_str().unwrap(), case["image"].as_str().unwrap());
        let key = format!("{name}.{file}");
        let image = images.entry(file.to_owned()).or_insert_with(|| image(file));
        let processor = processors.entry(name.to_owned()).or_insert_with(|| processor(name));
        let processed = processor.process(image).unwrap();

        assert_eq!(serde_json::json!(processed.layout.shape), case["shape"], "{key}");
        assert_eq!(processed.layout.tokens as u64, case["tokens"].as_u64().unwrap(), "{key}");
        match processed.layout.arrangement {
            Arrangement::Grid { grid_thw, .. } => {
                assert_eq!(serde_json::json!(grid_thw), case["image_grid_thw"], "{key}");
            }
            Arrangement::Tiles { rows, columns, whole_image, tokens_per_tile } => {
                let tiles = (rows * columns).max(1) + usize::from(whole_image);
                assert_eq!(tiles * tokens_per_tile, processed.layout.tokens, "{key}");
                assert_eq!(tiles, processed.layout.shape[0], "{key}");
            }
        }
        let words = |name: &str| {
            let tensor = tensors.tensor(&format!("{key}.{name}")).unwrap();
            tensor.data().as_chunks::<4>().0.to_vec()
        };
        for (place, value) in words("places").into_iter().zip(words("values")) {
            let (place, expected) = (u32::from_le_bytes(place) as usize, f32::from_le_bytes(value));
            let found = processed.pixel_values[place];
            assert!((found - expected).abs() <= TOLERANCE, "{key} at {place}: {found}, expected {expected}");
        }
        let sum: f64 = processed.pixel_values.iter().map(|&value| f64::from(value)).sum();
        let expected = case["sum"].as_f64().unwrap();
        let most = f64::from(TOLERANCE) * processed.pixel_values.len() as f64;
        assert!((sum - expected).abs() <= most, "{key}: sum {sum}, expected {expected}");
        // All values and all bits of them: the arithmetic is the reference's.
        let mut hash = Sha256::new();
        for value in &processed.pixel_values {
            hash.update(value.to_le_bytes());
        }
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, case["sha256"].as_str().unwrap(), "{key}: some values differ");
    }
    assert_eq!((images.len(), processors.len()), (12, 6));
}

#[test]
fn layouts_are_known_from_the_size_alone() {
    let mut processors: BTreeMap<String, ImageProcessor> = BTreeMap::new();
    let cases = json("layouts.json");
    for case in cases.as_array().unwrap() {
        let name = case["processor"].as_str().unwrap();
        let processor = processors.entry(name.to_owned()).or_insert_with(|| processor(name));
        let number = |value: &Value| value.as_u64().unwrap();
        let (width, height) = (number(&case["size"][0]), number(&case["size"][1]));
        let layout = processor.layout(width as u32, height as u32).unwrap();
        let found = match layout.arrangement {
            Arrangement::Grid { grid_thw: [_, high, wide], .. } => [high, wide],
            Arrangement::Tiles { rows, columns, .. } => [columns, rows],
        };
        assert_eq!(serde_json::json!(found), case["layout"], "{name}: {width}×{height}");
    }
}

#[test]
fn digests_tell_images_and_processors_apart() {
    let (qwen, eagle) = (processor("qwen2.5-vl"), processor("eagle2"));
    let (photo, grey) = (image("photo.jpg"), image("grey.jpg"));
    assert_eq!(qwen.digest(&photo), qwen.process(&photo).unwrap().digest);
    assert_eq!(qwen.digest(&photo), processor("qwen2.5-vl").digest(&image("photo.jpg")));
    assert_ne!(qwen.digest(&photo), qwen.digest(&grey));
    assert_ne!(qwen.digest(&photo), eagle.digest(&photo));
    let (wide, high) = (RgbImage::new(2, 1, vec![0; 6]).unwrap(), RgbImage::new(1, 2, vec![0; 6]).unwrap());
    assert_ne!(qwen.digest(&wide), qwen.digest(&high));
    assert_eq!(qwen.digest(&wide).to_string().len(), 64);
}
