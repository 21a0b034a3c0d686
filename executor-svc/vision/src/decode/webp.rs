//! WebP, lossy and lossless, by the crate `image-webp`.

use image_webp::{DecodingError, WebPDecoder};

use super::reader::{DeadlineReader, input_error};
use crate::limits::{Deadline, ImageLimits};
use crate::orientation::Orientation;
use crate::{ImageFormat, RgbImage, VisionError};

/// Bytes a pixel that the decoder holds beside its output: planes of luma and chroma, or the values of lossless coding, and
/// alpha.
const WORK_BYTES: u64 = 6;

/// Decodes a whole file.
///
/// # Errors
/// [`VisionError::Truncated`], [`VisionError::Corrupt`], [`VisionError::Unsupported`], or a limit.
pub(super) fn decode(
    bytes: &[u8],
    limits: &ImageLimits,
    deadline: Deadline,
) -> Result<(RgbImage, Orientation), VisionError> {
    let failed = |error| meaning(error, deadline);
    let mut decoder = WebPDecoder::new(DeadlineReader::new(bytes, deadline)).map_err(failed)?;
    decoder.set_memory_limit(limits.max_decode_bytes);
    let (width, height) = decoder.dimensions();
    limits.check_size(width, height)?;
    if decoder.is_animated() {
        return Err(VisionError::Unsupported { format: ImageFormat::WebP, what: "animation".to_owned() });
    }
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let pixel_count = u64::from(width) * u64::from(height);
    limits.check_memory(pixel_count * (3 + channels + WORK_BYTES))?;
    let exif = decoder.exif_metadata().map_err(failed)?;
    let xmp = decoder.xmp_metadata().map_err(failed)?;
    let orientation = Orientation::of(exif.as_deref(), xmp.as_deref());

    let mut pixels = vec![0; (pixel_count * channels) as usize];
    decoder.read_image(&mut pixels).map_err(failed)?;
    if channels == 4 {
        pixels =
            pixels.as_chunks::<4>().0.iter().flat_map(|&[red, green, blue, _]| [red, green, blue]).collect();
    }
    Ok((RgbImage::new(width, height, pixels)?, orientation))
}

fn meaning(error: DecodingError, deadline: Deadline) -> VisionError {
    let format = ImageFormat::WebP;
    match error {
        DecodingError::IoError(error) => input_error(&error, format, deadline),
        DecodingError::UnsupportedFeature(what) => VisionError::Unsupported { format, what },
        error => VisionError::Corrupt { format, what: error.to_string() },
    }
}
