//! Pre-processing: from pixels to the values that a model's vision tower takes, as Transformers' processors of the Pillow
//! backend make them. (Those of the torchvision backend, which Transformers prefers where torchvision is installed, round
//! their resizing otherwise and differ by one step of 255 in some samples.)

mod config;
mod eagle2;
mod idefics3;
mod python_set;
mod qwen2_vl;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::normalise::Normalisation;
use crate::{ImageDigest, RgbImage, VisionError};
use config::Fields;

/// A model's way of processing images, of its `preprocessor_config.json`.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    family: Family,
    fingerprint: [u8; 32],
}

#[derive(Debug, Clone)]
enum Family {
    Qwen2Vl(qwen2_vl::Qwen2VlProcessor),
    Eagle2(eagle2::Eagle2Processor),
    Idefics3(idefics3::Idefics3Processor),
}

/// What an image of a size becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayout {
    /// How many placeholder tokens stand for the image in the prompt: one for each row of features that the projector gives.
    pub tokens: usize,
    /// The shape of `pixel_values`.
    pub shape: Vec<usize>,
    /// How the image is laid out in it.
    pub arrangement: Arrangement,
}

/// How an image is laid out in `pixel_values`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// Patches of one resized image, `[grid_t · grid_h · grid_w, 3 · temporal_patch_size · patch_size²]`, those of each
    /// `merge_size × merge_size` square together.
    Grid {
        /// Transformers' `image_grid_thw`: patches in time (1), in height and in width.
        grid_thw: [usize; 3],
        /// Patches of a side of the square that becomes one token.
        merge_size: usize,
    },
    /// Tiles of equal size, `[tiles, 3, size, size]`, row by row.
    Tiles {
        /// Rows of tiles; 0 where the image is not split.
        rows: usize,
        /// Columns of tiles; 0 where the image is not split.
        columns: usize,
        /// Whether the whole image follows as a last tile. An image that is not split is one tile and nothing else.
        whole_image: bool,
        /// Placeholder tokens of a tile.
        tokens_per_tile: usize,
    },
}

/// An image as a model's vision tower takes it.
#[derive(Debug, Clone)]
pub struct ProcessedImage {
    /// Of the shape [`ImageLayout::shape`], last index fastest.
    pub pixel_values: Vec<f32>,
    /// What the values are.
    pub layout: ImageLayout,
    /// Of the image and of how it was processed.
    pub digest: ImageDigest,
}

impl ImageProcessor {
    /// The processor of a `preprocessor_config.json`.
    ///
    /// `tokens_per_tile` is how many tokens a tile becomes, which only the model's own config says (see
    /// [`tokens_per_tile`]); it is not used by models that are not tiled (Qwen2-VL).
    ///
    /// # Errors
    /// [`VisionError::UnsupportedProcessor`] for a family, a field or a value that is not known to be without effect.
    pub fn from_config(config: &Value, tokens_per_tile: Option<usize>) -> Result<Self, VisionError> {
        let mut fields = Fields::new(config)?;
        let kind = fields.image_processor_type()?;
        let family = match kind.strip_suffix("Fast").unwrap_or(&kind) {
            "Qwen2VLImageProcessor" | "Qwen2_5_VLImageProcessor" => {
                Family::Qwen2Vl(qwen2_vl::Qwen2VlProcessor::read(&mut fields)?)
            }
            "Eagle2ImageProcessor" | "Eagle25VLImageProcessor" | "Eagle2_5_VLImageProcessor" => {
                Family::Eagle2(eagle2::Eagle2Processor::read(&mut fields, needed(tokens_per_tile)?)?)
            }
            "Idefics3ImageProcessor" | "SmolVLMImageProcessor" => {
                Family::Idefics3(idefics3::Idefics3Processor::read(&mut fields, needed(tokens_per_tile)?)?)
            }
            _ => return Err(config::unsupported(format!("image_processor_type {kind:?} is not supported"))),
        };
        fields.finish()?;
        let mut hash = Sha256::new();
        hash.update(config.to_string());
        hash.update(tokens_per_tile.unwrap_or(0).to_le_bytes());
        Ok(Self { family, fingerprint: hash.finalize().into() })
    }

    /// What an image of this size becomes, without looking at its pixels: how many tokens, and how many values.
    ///
    /// # Errors
    /// [`VisionError::UnsupportedShape`] if the model does not take images of this shape.
    pub fn layout(&self, width: u32, height: u32) -> Result<ImageLayout, VisionError> {
        if width == 0 || height == 0 {
            return Err(VisionError::NoPixels { width, height });
        }
        match &self.family {
            Family::Qwen2Vl(processor) => processor.layout(width, height),
            Family::Eagle2(processor) => Ok(processor.layout(width, height)),
            Family::Idefics3(processor) => Ok(processor.layout(width, height)),
        }
    }

    /// What [`ImageProcessor::process`] will make of this image, in 32 bytes.
    #[must_use]
    pub fn digest(&self, image: &RgbImage) -> ImageDigest {
        ImageDigest::of(&self.fingerprint, image)
    }

    /// Processes an image. It computes: call it off the asynchronous runtime.
    ///
    /// # Errors
    /// As [`ImageProcessor::layout`].
    pub fn process(&self, image: &RgbImage) -> Result<ProcessedImage, VisionError> {
        let layout = self.layout(image.width(), image.height())?;
        let pixel_values = match &self.family {
            Family::Qwen2Vl(processor) => processor.pixel_values(image)?,
            Family::Eagle2(processor) => processor.pixel_values(image),
            Family::Idefics3(processor) => processor.pixel_values(image),
        };
        debug_assert_eq!(pixel_values.len(), layout.shape.iter().product::<usize>());
        Ok(ProcessedImage { pixel_values, layout, digest: self.digest(image) })
    }
}

/// How many tokens a tile of `image_size × image_size` pixels becomes, after patches of `patch_size` pixels a side and a pixel
/// shuffle that makes `downsample_ratio` as many of them a side: `(image_size / patch_size · downsample_ratio)²`. `None` where
/// that is no whole number.
#[must_use]
pub fn tokens_per_tile(image_size: usize, patch_size: usize, downsample_ratio: f64) -> Option<usize> {
    if patch_size == 0 || !image_size.is_multiple_of(patch_size) {
        return None;
    }
    let side = (image_size / patch_size) as f64 * downsample_ratio;
    (side >= 1.0 && side.fract() == 0.0).then_some((side * side) as usize)
}

fn needed(tokens_per_tile: Option<usize>) -> Result<usize, VisionError> {
    tokens_per_tile.filter(|&tokens| tokens > 0).ok_or_else(|| {
        config::unsupported("the model's config does not say how many tokens a tile has".to_owned())
    })
}

/// Appends a square of an image, `[3, size, size]`.
fn push_tile(
    values: &mut Vec<f32>,
    normalisation: &Normalisation,
    image: &RgbImage,
    (left, top): (usize, usize),
    size: usize,
) {
    for channel in 0..3 {
        for row in image.rows().skip(top).take(size) {
            let (pixels, _) = row.as_chunks::<3>();
            let pixels = pixels[left..left + size].iter();
            values.extend(pixels.map(|pixel| normalisation.value(channel, pixel[channel])));
        }
    }
}
