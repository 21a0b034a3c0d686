//! Images for tests: told apart by their side.

use roundhouse_vision::{ImageDigest, ImageProcessor, RgbImage};
use serde_json::json;

use super::EncodedImage;

/// The digest of a black square.
pub(crate) fn digest(side: u32) -> ImageDigest {
    let processor =
        ImageProcessor::from_config(&json!({"image_processor_type": "Qwen2VLImageProcessor"}), None);
    let pixels = vec![0; (side * side * 3) as usize];
    processor.unwrap().digest(&RgbImage::new(side, side, pixels).unwrap())
}

/// It with so many tokens of two features.
pub(crate) fn image(side: u32, tokens: u32) -> EncodedImage {
    EncodedImage {
        digest: digest(side),
        features: vec![0.5; 2 * tokens as usize].into(),
        places: (0..tokens).map(|token| [token; 3]).collect(),
        extent: tokens,
    }
}
