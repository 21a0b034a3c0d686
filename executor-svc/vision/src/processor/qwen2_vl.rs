//! Qwen2-VL and Qwen2.5-VL: one image of about its own size, in patches (Transformers' `Qwen2VLImageProcessorPil`).

use super::config::{Fields, unsupported};
use super::{Arrangement, ImageLayout};
use crate::normalise::Normalisation;
use crate::resample::{Filter, resize};
use crate::{RgbImage, VisionError};

/// CLIP's, which is what Transformers has where the file has none.
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// A side may be so many times as long as the other.
const MAX_ASPECT_RATIO: f64 = 200.0;

#[derive(Debug, Clone)]
pub(super) struct Qwen2VlProcessor {
    min_pixels: usize,
    max_pixels: usize,
    patch_size: usize,
    temporal_patch_size: usize,
    merge_size: usize,
    filter: Filter,
    normalisation: Normalisation,
}

impl Qwen2VlProcessor {
    pub(super) fn read(fields: &mut Fields) -> Result<Self, VisionError> {
        fields.only("do_resize", true)?;
        let [shortest, longest] = fields.sizes("size", ["shortest_edge", "longest_edge"])?;
        // Whatever their names say, these are pixels of the whole image.
        let min_pixels = fields.size("min_pixels")?.or(shortest).unwrap_or(56 * 56);
        let max_pixels = fields.size("max_pixels")?.or(longest).unwrap_or(28 * 28 * 1280);
        if min_pixels > max_pixels {
            return Err(unsupported(format!("min_pixels {min_pixels} is more than max_pixels {max_pixels}")));
        }
        Ok(Self {
            min_pixels,
            max_pixels,
            patch_size: fields.size("patch_size")?.unwrap_or(14),
            temporal_patch_size: fields.size("temporal_patch_size")?.unwrap_or(2),
            merge_size: fields.size("merge_size")?.unwrap_or(2),
            filter: fields.filter(Filter::Bicubic)?,
            normalisation: fields.normalisation(MEAN, STD)?,
        })
    }

    pub(super) fn layout(&self, width: u32, height: u32) -> Result<ImageLayout, VisionError> {
        let (resized_width, resized_height) = self.smart_resize(width, height)?;
        let (grid_h, grid_w) = (resized_height / self.patch_size, resized_width / self.patch_size);
        let patch = 3 * self.temporal_patch_size * self.patch_size * self.patch_size;
        Ok(ImageLayout {
            tokens: grid_h * grid_w / (self.merge_size * self.merge_size),
            shape: vec![grid_h * grid_w, patch],
            arrangement: Arrangement::Grid { grid_thw: [1, grid_h, grid_w], merge_size: self.merge_size },
        })
    }

    /// Width and height that are multiples of a merged patch, with a number of pixels that is allowed and an aspect ratio
    /// as near to the image's as that leaves.
    fn smart_resize(&self, width: u32, height: u32) -> Result<(usize, usize), VisionError> {
        let refused = |what: String| VisionError::UnsupportedShape { width, height, what };
        let (w, h) = (f64::from(width), f64::from(height));
        let ratio = w.max(h) / w.min(h);
        if ratio > MAX_ASPECT_RATIO {
            return Err(refused(format!("one side may be at most {MAX_ASPECT_RATIO} times the other")));
        }
        let unit = self.patch_size * self.merge_size;
        let factor = unit as f64;
        // Half a unit goes to the even multiple, as in Python.
        let nearest = |side: f64| (side / factor).round_ties_even() as usize * unit;
        let (near_w, near_h) = (nearest(w), nearest(h));
        if near_w * near_h > self.max_pixels {
            let beta = (h * w / self.max_pixels as f64).sqrt();
            let below = |side: f64| unit.max((side / beta / factor).floor() as usize * unit);
            return Ok((below(w), below(h)));
        }
        if near_w * near_h < self.min_pixels {
            let beta = (self.min_pixels as f64 / (h * w)).sqrt();
            let above = |side: f64| (side * beta / factor).ceil() as usize * unit;
            return Ok((above(w), above(h)));
        }
        if near_w == 0 || near_h == 0 {
            return Err(refused(format!("a side of less than {} pixels", unit.div_ceil(2))));
        }
        Ok((near_w, near_h))
    }

    /// `[grid_h · grid_w, 3 · temporal_patch_size · patch_size²]`: the squares that become a token one after the other, row by
    /// row; in a square its patches row by row; in a patch each channel, `temporal_patch_size` times over (a picture stands
    /// still), row by row.
    pub(super) fn pixel_values(&self, image: &RgbImage) -> Result<Vec<f32>, VisionError> {
        let (width, height) = self.smart_resize(image.width(), image.height())?;
        let resized = resize(image, width as u32, height as u32, self.filter);
        let (patch, merge) = (self.patch_size, self.merge_size);
        let unit = patch * merge;
        let mut values = Vec::with_capacity(width * height * 3 * self.temporal_patch_size);
        for square_y in (0..height).step_by(unit) {
            for square_x in (0..width).step_by(unit) {
                for merged in 0..merge * merge {
                    let top = square_y + merged / merge * patch;
                    let left = square_x + merged % merge * patch;
                    self.push_patch(&mut values, &resized, left, top);
                }
            }
        }
        Ok(values)
    }

    fn push_patch(&self, values: &mut Vec<f32>, image: &RgbImage, left: usize, top: usize) {
        let row_len = image.width() as usize * 3;
        for channel in 0..3 {
            let start = values.len();
            for y in top..top + self.patch_size {
                let row = &image.pixels()[y * row_len + left * 3..][..self.patch_size * 3];
                let (pixels, _) = row.as_chunks::<3>();
                values.extend(pixels.iter().map(|pixel| self.normalisation.value(channel, pixel[channel])));
            }
            let end = values.len();
            for _ in 1..self.temporal_patch_size {
                values.extend_from_within(start..end);
            }
        }
    }
}
