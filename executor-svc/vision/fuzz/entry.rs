//! What the fuzz target and the test of mutated files run: bytes from outside, decoded and processed.

use std::sync::LazyLock;
use std::time::Duration;

use roundhouse_vision::{ImageLimits, ImageProcessor, decode};
use serde_json::json;

const LIMITS: ImageLimits = ImageLimits {
    max_encoded_bytes: 1 << 20,
    max_pixels: 1 << 18,
    max_side: 4096,
    max_decode_bytes: 16 << 20,
    max_decode_time: Duration::from_secs(5),
};

/// A processor of each family, with limits that keep it quick.
static PROCESSORS: LazyLock<Vec<ImageProcessor>> = LazyLock::new(|| {
    [
        json!({"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 784, "max_pixels": 50_176}),
        json!({
            "image_processor_type": "Eagle2ImageProcessor",
            "size": {"height": 28, "width": 28},
            "max_dynamic_tiles": 6
        }),
        json!({
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": 112},
            "max_image_size": {"longest_edge": 28}
        }),
    ]
    .iter()
    .map(|config| ImageProcessor::from_config(config, Some(1)).expect("the config is a supported one"))
    .collect()
});

/// Decodes and processes; whatever the bytes are, it returns. Whether they were an image.
///
/// # Panics
/// If what comes out is not what was promised.
pub(crate) fn run(bytes: &[u8]) -> bool {
    let Ok(image) = decode(bytes, &LIMITS) else { return false };
    assert!(image.width() > 0 && image.height() > 0);
    assert_eq!(image.pixels().len(), image.width() as usize * image.height() as usize * 3);
    for processor in PROCESSORS.iter() {
        // Shapes may be refused.
        let Ok(processed) = processor.process(&image) else { continue };
        assert_eq!(processed.pixel_values.len(), processed.layout.shape.iter().product::<usize>());
        assert!(processed.pixel_values.iter().all(|value| value.is_finite()));
        assert!(processed.layout.tokens > 0);
    }
    true
}
