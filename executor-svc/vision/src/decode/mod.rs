//! From encoded bytes to upright RGB pixels, to the very values that Transformers' processors see: its `load_image` opens the
//! file with Pillow, turns it as its orientation says, and converts it to RGB, which drops alpha without blending it with
//! anything. A colour that is transparent as a whole (a key, or one of a palette) is remembered, and the processors' own
//! conversion to RGB makes it white.

mod gif;
mod jpeg;
mod png;
mod reader;
mod webp;

use crate::limits::{Deadline, ImageLimits};
use crate::{ImageFormat, RgbImage, VisionError};

/// The format that these bytes begin as.
#[must_use]
pub fn format_of(bytes: &[u8]) -> Option<ImageFormat> {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(ImageFormat::Png),
        [0xFF, 0xD8, 0xFF, ..] => Some(ImageFormat::Jpeg),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(ImageFormat::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(ImageFormat::Gif),
        _ => None,
    }
}

/// Decodes an image. It runs for as long as [`ImageLimits::max_decode_time`]: call it off the asynchronous runtime.
///
/// PNG, JPEG (baseline and progressive), WebP and GIF, of which the first frame is taken; other animations are refused.
/// 16-bit PNGs become 8-bit as in Pillow: the high byte of colours, and of grey everything above 255 is white.
///
/// # Errors
/// What is wrong with the image, or which limit it passes. The limits are looked at before memory or time is spent.
pub fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<RgbImage, VisionError> {
    limits.check_encoded(bytes.len())?;
    let deadline = Deadline::start(limits);
    let (image, orientation) = match format_of(bytes).ok_or(VisionError::UnknownFormat)? {
        ImageFormat::Png => png::decode(bytes, limits, deadline),
        ImageFormat::Jpeg => jpeg::decode(bytes, limits, deadline),
        ImageFormat::WebP => webp::decode(bytes, limits, deadline),
        ImageFormat::Gif => gif::decode(bytes, limits, deadline),
    }?;
    Ok(image.upright(orientation))
}
