//! JPEG, baseline and progressive, to the very pixels that libjpeg-turbo gives by default (slow integer DCT, fancy
//! upsampling), which is what Pillow reads. The crate `zune-jpeg` upsamples and rounds otherwise, by up to four steps of 255.
//!
//! What is read: ITU-T T.81 with 8-bit samples, Huffman coding, grey, YCbCr and RGB, any whole sampling factors, restart
//! markers. What is refused by name: arithmetic coding, lossless and hierarchical frames, 12 bits, CMYK. Entropy-coded data
//! that is wrong or too short is refused, where libjpeg-turbo makes something up.

mod bits;
mod colour;
mod frame;
mod huffman;
mod idct;
mod markers;
mod progressive;
mod scan;
mod upsample;

use crate::limits::{Deadline, ImageLimits};
use crate::orientation::Orientation;
use crate::{ImageFormat, RgbImage, VisionError};

/// Decodes a whole file.
///
/// # Errors
/// [`VisionError::Truncated`], [`VisionError::Corrupt`], [`VisionError::Unsupported`], or a limit.
pub(super) fn decode(
    bytes: &[u8],
    limits: &ImageLimits,
    deadline: Deadline,
) -> Result<(RgbImage, Orientation), VisionError> {
    let mut file = markers::File::new(bytes, limits);
    while let Some(scan) = file.next_scan()? {
        file.decode_scan(&scan, deadline)?;
    }
    let (frame, space) = file.finish()?;
    let planes = frame.into_planes(deadline)?;
    let (width, height) = (planes.width, planes.height);
    let mut pixels = vec![0; width as usize * height as usize * 3];
    let mut rows = upsample::Upsampler::new(&planes)?;
    for (y, row) in pixels.chunks_exact_mut(width as usize * 3).enumerate() {
        if y.is_multiple_of(64) {
            deadline.check()?;
        }
        colour::to_rgb(space, &rows.row(y), row);
    }
    drop(rows);
    Ok((RgbImage::new(width, height, pixels)?, file.orientation()))
}

fn corrupt(what: impl Into<String>) -> VisionError {
    VisionError::Corrupt { format: ImageFormat::Jpeg, what: what.into() }
}

fn truncated(what: impl Into<String>) -> VisionError {
    VisionError::Truncated { format: ImageFormat::Jpeg, what: what.into() }
}

fn unsupported(what: impl Into<String>) -> VisionError {
    VisionError::Unsupported { format: ImageFormat::Jpeg, what: what.into() }
}
