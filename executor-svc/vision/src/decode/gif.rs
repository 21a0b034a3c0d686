//! GIF, by the crate `gif`: its first frame on the screen that Pillow gives it.

use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::reader::{DeadlineReader, input_error};
use crate::limits::{Deadline, ImageLimits};
use crate::orientation::Orientation;
use crate::{ImageFormat, RgbImage, VisionError};

/// Decodes the first frame of a file; what follows is not looked at.
///
/// # Errors
/// [`VisionError::Truncated`], [`VisionError::Corrupt`], or a limit.
pub(super) fn decode(
    bytes: &[u8],
    limits: &ImageLimits,
    deadline: Deadline,
) -> Result<(RgbImage, Orientation), VisionError> {
    let failed = |error| meaning(error, deadline);
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    let memory = NonZeroU64::new(limits.max_decode_bytes as u64).unwrap_or(NonZeroU64::MIN);
    options.set_memory_limit(MemoryLimit::Bytes(memory));
    let mut decoder = options.read_info(DeadlineReader::new(bytes, deadline)).map_err(failed)?;
    let (screen_width, screen_height) = (u32::from(decoder.width()), u32::from(decoder.height()));
    let frame = decoder.next_frame_info().map_err(failed)?.ok_or_else(|| corrupt("it has no frame"))?;
    let (left, top) = (u32::from(frame.left), u32::from(frame.top));
    let (frame_width, frame_height) = (u32::from(frame.width), u32::from(frame.height));
    // Outside of the frame the screen is transparent where there is transparency, and of the first colour elsewhere.
    let transparent = frame.transparent;
    let background = transparent.unwrap_or(0);
    limits.check_size(frame_width, frame_height)?;
    // A frame that goes beyond the screen makes it larger.
    let (width, height) = (screen_width.max(left + frame_width), screen_height.max(top + frame_height));
    limits.check_size(width, height)?;
    let pixel_count = u64::from(width) * u64::from(height);
    let frame_bytes = u64::from(frame_width) * u64::from(frame_height);
    limits.check_memory(pixel_count * 3 + frame_bytes * 2)?;

    let mut indices = vec![0; frame_bytes as usize];
    decoder.read_into_buffer(&mut indices).map_err(failed)?;
    let palette = decoder.palette().map_err(failed)?;
    let mut colours = [[0; 3]; 256];
    for (colour, rgb) in colours.iter_mut().zip(palette.as_chunks::<3>().0) {
        *colour = *rgb;
    }
    let mut pixels = vec![0; pixel_count as usize * 3];
    for pixel in pixels.as_chunks_mut::<3>().0 {
        *pixel = colours[usize::from(background)];
    }
    let rows = pixels.chunks_exact_mut(width as usize * 3).skip(top as usize);
    for (row, indices) in rows.zip(indices.chunks_exact(frame_width as usize)) {
        let (row, _) = row[left as usize * 3..].as_chunks_mut::<3>();
        for (pixel, &index) in row.iter_mut().zip(indices) {
            *pixel = colours[usize::from(index)];
        }
    }
    let image = RgbImage::new(width, height, pixels)?;
    Ok((image.on_white(transparent.map(|index| colours[usize::from(index)])), Orientation::Upright))
}

fn corrupt(what: impl Into<String>) -> VisionError {
    VisionError::Corrupt { format: ImageFormat::Gif, what: what.into() }
}

fn meaning(error: DecodingError, deadline: Deadline) -> VisionError {
    match error {
        DecodingError::Io(error) => input_error(&error, ImageFormat::Gif, deadline),
        error => corrupt(error.to_string()),
    }
}
