//! PNG, by the crate `png`: which pixels Pillow makes of its samples.

use png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Transformations};

use super::reader::{DeadlineReader, input_error};
use crate::limits::{Deadline, ImageLimits};
use crate::orientation::Orientation;
use crate::{ImageFormat, RgbImage, VisionError};

/// Bytes that the metadata before the pixels may take.
const METADATA_BYTES: usize = 8 << 20;

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
    let input = DeadlineReader::new(bytes, deadline);
    let mut decoder = Decoder::new_with_limits(input, Limits { bytes: METADATA_BYTES });
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(failed)?;
    let (width, height, interlaced) = (header.width, header.height, header.interlaced);
    limits.check_size(width, height)?;
    let image = u64::from(width) * u64::from(height) * 3;
    let raw_row = header.raw_row_length() as u64;
    // An interlaced file is decoded as a whole before its pixels are in order.
    limits.check_memory(image + if interlaced { raw_row * u64::from(height) } else { raw_row * 4 })?;
    // Rows need some memory of their own.
    decoder.set_limits(Limits { bytes: METADATA_BYTES.saturating_add(limits.max_decode_bytes) });

    let mut reader = decoder.read_info().map_err(failed)?;
    if reader.info().animation_control.is_some() {
        return Err(VisionError::Unsupported { format: ImageFormat::Png, what: "animation".to_owned() });
    }
    let samples = Samples {
        colours: reader.info().color_type,
        bits: reader.info().bit_depth,
        palette: reader.info().palette.as_deref().unwrap_or_default().to_vec(),
    };
    let transparent = chunk(bytes, b"tRNS").and_then(|chunk| samples.transparent(chunk));
    let mut pixels = vec![0; image as usize];
    let mut rows = pixels.chunks_exact_mut(width as usize * 3);
    if interlaced {
        let size = reader.output_buffer_size().unwrap_or_default();
        let mut raw = vec![0; size];
        let info = reader.next_frame(&mut raw).map_err(failed)?;
        for (raw, row) in raw.chunks_exact(info.line_size).zip(&mut rows) {
            samples.to_rgb(raw, row);
        }
    } else {
        for row in &mut rows {
            deadline.check()?;
            let raw = reader.next_row().map_err(failed)?;
            let raw = raw.ok_or_else(|| corrupt("it has too few rows"))?;
            samples.to_rgb(raw.data(), row);
        }
    }
    let image = RgbImage::new(width, height, pixels)?;
    Ok((image.on_white(transparent), Orientation::of(chunk(bytes, b"eXIf"), None)))
}

/// What the samples of a file are.
struct Samples {
    colours: ColorType,
    bits: BitDepth,
    /// RGB.
    palette: Vec<u8>,
}

impl Samples {
    /// Makes a row of pixels of a row of samples as the file has them.
    fn to_rgb(&self, raw: &[u8], row: &mut [u8]) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        match (self.colours, self.bits) {
            (ColorType::Rgb, BitDepth::Sixteen) => {
                each(pixels, raw.chunks_exact(6), |raw| [raw[0], raw[2], raw[4]])
            }
            (ColorType::Rgba, BitDepth::Sixteen) => {
                each(pixels, raw.chunks_exact(8), |raw| [raw[0], raw[2], raw[4]])
            }
            (ColorType::Rgb, _) => each(pixels, raw.chunks_exact(3), |raw| [raw[0], raw[1], raw[2]]),
            (ColorType::Rgba, _) => each(pixels, raw.chunks_exact(4), |raw| [raw[0], raw[1], raw[2]]),
            (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => {
                each(pixels, raw.chunks_exact(4), |raw| [raw[0]; 3])
            }
            (ColorType::GrayscaleAlpha, _) => each(pixels, raw.chunks_exact(2), |raw| [raw[0]; 3]),
            // Pillow's mode "I;16" is cut off at 255.
            (ColorType::Grayscale, BitDepth::Sixteen) => {
                each(pixels, raw.chunks_exact(2), |raw| [if raw[0] > 0 { 255 } else { raw[1] }; 3]);
            }
            (ColorType::Grayscale, _) => {
                // From so many bits to eight.
                let scale = 255 / self.largest();
                self.unpack(raw, pixels, |sample| [sample * scale; 3]);
            }
            (ColorType::Indexed, _) => {
                self.unpack(raw, pixels, |index| self.colour(index));
            }
        }
    }

    /// A colour of the palette. Indices past its end are black in Pillow.
    fn colour(&self, index: u8) -> [u8; 3] {
        let at = usize::from(index) * 3;
        self.palette.get(at..at + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]])
    }

    /// The one colour that a tRNS chunk makes transparent, as Pillow understands it: it does not scale grey of 2 and 4 bits up
    /// as it does the pixels, of red, green and blue it takes the low bytes, and of a palette it knows one colour that is
    /// wholly transparent where all others are opaque.
    fn transparent(&self, chunk: &[u8]) -> Option<[u8; 3]> {
        match (self.colours, chunk) {
            (ColorType::Indexed, alphas) => {
                let index = alphas.iter().position(|&alpha| alpha == 0)?;
                let others_are_opaque =
                    alphas.iter().enumerate().all(|(at, &alpha)| at == index || alpha == 255);
                others_are_opaque.then(|| self.colour(index as u8))
            }
            // Modes "1" and "I;16" of Pillow take it for a red.
            (ColorType::Grayscale, [high, low]) if matches!(self.bits, BitDepth::One | BitDepth::Sixteen) => {
                (*low == 0 && (*high == 0 || self.bits == BitDepth::Sixteen)).then_some([0; 3])
            }
            (ColorType::Grayscale, [high, low]) => Some([if *high > 0 { 255 } else { *low }; 3]),
            (ColorType::Rgb, [_, red, _, green, _, blue]) => Some([*red, *green, *blue]),
            _ => None,
        }
    }

    /// The largest sample of one byte or less.
    fn largest(&self) -> u8 {
        match self.bits {
            BitDepth::One => 1,
            BitDepth::Two => 3,
            BitDepth::Four => 15,
            BitDepth::Eight | BitDepth::Sixteen => 255,
        }
    }

    /// Makes pixels of samples that share bytes, the first in the highest bits.
    fn unpack(&self, raw: &[u8], pixels: &mut [[u8; 3]], pixel: impl Fn(u8) -> [u8; 3]) {
        let bits = self.largest().count_ones() as usize;
        let in_a_byte = 8 / bits;
        for (pixels, &byte) in pixels.chunks_mut(in_a_byte).zip(raw) {
            for (index, out) in pixels.iter_mut().enumerate() {
                *out = pixel((byte >> (8 - bits * (index + 1))) & self.largest());
            }
        }
    }
}

fn each<'a>(pixels: &mut [[u8; 3]], raw: impl Iterator<Item = &'a [u8]>, pixel: impl Fn(&[u8]) -> [u8; 3]) {
    for (out, raw) in pixels.iter_mut().zip(raw) {
        *out = pixel(raw);
    }
}

/// The first chunk of a kind, wherever it is: the decoder stops where the pixels end.
fn chunk<'a>(bytes: &'a [u8], wanted: &[u8; 4]) -> Option<&'a [u8]> {
    let mut rest = bytes.get(8..)?;
    loop {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let (data, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        if kind == wanted {
            return Some(data);
        }
        rest = after.get(4..)?;
    }
}

fn corrupt(what: impl Into<String>) -> VisionError {
    VisionError::Corrupt { format: ImageFormat::Png, what: what.into() }
}

fn meaning(error: DecodingError, deadline: Deadline) -> VisionError {
    match error {
        DecodingError::IoError(error) => input_error(&error, ImageFormat::Png, deadline),
        DecodingError::LimitsExceeded => {
            let format = ImageFormat::Png;
            VisionError::Unsupported { format, what: format!("metadata of more than {METADATA_BYTES} bytes") }
        }
        DecodingError::Format(error) => corrupt(error.to_string()),
        DecodingError::Parameter(error) => corrupt(error.to_string()),
    }
}
