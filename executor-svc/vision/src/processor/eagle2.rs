//! Eagle 2: tiles of a grid that suits the image's shape and size, and the whole image as a last tile (the processor that
//! NVIDIA published with the checkpoints, in its Pillow version).

use super::config::{Fields, unsupported};
use super::python_set::python_set_order;
use super::{Arrangement, ImageLayout, push_tile};
use crate::normalise::Normalisation;
use crate::resample::{Filter, resize};
use crate::{RgbImage, VisionError};

/// A grid is not preferred for having more than this part of the image's pixels.
const ENOUGH_AREA: f64 = 0.6;
/// More tiles than any checkpoint has.
const MAX_TILES: usize = 64;

#[derive(Debug, Clone)]
pub(super) struct Eagle2Processor {
    /// The side of a tile, in pixels.
    tile_size: usize,
    /// The grids to choose from, `(columns, rows)`, in the order in which they are tried.
    grids: Vec<(usize, usize)>,
    use_thumbnail: bool,
    tokens_per_tile: usize,
    filter: Filter,
    normalisation: Normalisation,
}

impl Eagle2Processor {
    pub(super) fn read(fields: &mut Fields, tokens_per_tile: usize) -> Result<Self, VisionError> {
        // Tiles have their size already, and one image is as long as itself.
        for without_effect in ["do_resize", "do_pad", "pad_size"] {
            fields.skip(without_effect);
        }
        fields.only("do_center_crop", false)?;
        fields.only("pad_during_tiling", false)?;
        let [height, width] = fields.sizes("size", ["height", "width"])?;
        let tile_size = height.unwrap_or(384);
        if width.unwrap_or(tile_size) != tile_size {
            return Err(unsupported("size: height and width differ, and tiles are square".to_owned()));
        }
        // The size of a tile where it is there, by the processor's torchvision version.
        let crops = fields.sizes("crop_size", ["height", "width"])?;
        if crops.iter().flatten().any(|&crop| crop != tile_size) {
            return Err(unsupported("crop_size differs from size".to_owned()));
        }
        let min_tiles = fields.size("min_dynamic_tiles")?.unwrap_or(1);
        let max_tiles = fields.size("max_dynamic_tiles")?.unwrap_or(12);
        if min_tiles > max_tiles || max_tiles > MAX_TILES {
            return Err(unsupported(format!(
                "{min_tiles} to {max_tiles} tiles: expected at least one and at most {MAX_TILES}"
            )));
        }
        Ok(Self {
            tile_size,
            grids: grids(min_tiles, max_tiles),
            use_thumbnail: fields.flag("use_thumbnail", true)?,
            tokens_per_tile,
            filter: fields.filter(Filter::Bicubic)?,
            normalisation: fields.normalisation([0.5; 3], [0.5; 3])?,
        })
    }

    /// The grid for an image, `(columns, rows)`: the one with the largest product of the part of the image's area that its
    /// tiles hold, up to [`ENOUGH_AREA`], and of the ratio between the two aspect ratios; the first of equals.
    fn grid(&self, width: u32, height: u32) -> (usize, usize) {
        let (width, height) = (f64::from(width), f64::from(height));
        let (aspect_ratio, area) = (width / height, width * height);
        let mut best = ((1, 1), f64::NEG_INFINITY);
        for &(columns, rows) in &self.grids {
            let grid_ratio = columns as f64 / rows as f64;
            let grid_area = (columns * rows * self.tile_size * self.tile_size) as f64;
            let shape = (grid_ratio / aspect_ratio).min(aspect_ratio / grid_ratio);
            let score = (grid_area / area).min(ENOUGH_AREA) * shape;
            if score > best.1 {
                best = ((columns, rows), score);
            }
        }
        best.0
    }

    pub(super) fn layout(&self, width: u32, height: u32) -> ImageLayout {
        let (columns, rows) = self.grid(width, height);
        let whole_image = self.use_thumbnail && columns * rows > 1;
        let tiles = columns * rows + usize::from(whole_image);
        ImageLayout {
            tokens: tiles * self.tokens_per_tile,
            shape: vec![tiles, 3, self.tile_size, self.tile_size],
            arrangement: Arrangement::Tiles {
                rows,
                columns,
                whole_image,
                tokens_per_tile: self.tokens_per_tile,
            },
        }
    }

    /// `[tiles, 3, tile_size, tile_size]`: the tiles row by row, and the whole image where there is more than one.
    pub(super) fn pixel_values(&self, image: &RgbImage) -> Vec<f32> {
        let size = self.tile_size;
        let (columns, rows) = self.grid(image.width(), image.height());
        let mut values = Vec::with_capacity((columns * rows + 1) * 3 * size * size);
        let grid = resize(image, (columns * size) as u32, (rows * size) as u32, self.filter);
        for row in 0..rows {
            for column in 0..columns {
                push_tile(&mut values, &self.normalisation, &grid, (column * size, row * size), size);
            }
        }
        if self.use_thumbnail && columns * rows > 1 {
            let whole = resize(image, size as u32, size as u32, self.filter);
            push_tile(&mut values, &self.normalisation, &whole, (0, 0), size);
        }
        values
    }
}

/// All grids of `min_tiles` to `max_tiles` tiles, fewer tiles first. Those of equally many are in the order of the Python set
/// that the reference collects them in: it decides between `3×4` and `4×3` for a square image.
fn grids(min_tiles: usize, max_tiles: usize) -> Vec<(usize, usize)> {
    let tiles = min_tiles..=max_tiles;
    let candidates =
        tiles.clone().flat_map(|count| (1..=count).flat_map(move |i| (1..=count).map(move |j| (i, j))));
    let mut grids = python_set_order(candidates.filter(|(i, j)| tiles.contains(&(i * j))));
    grids.sort_by_key(|(columns, rows)| columns * rows);
    grids
}
