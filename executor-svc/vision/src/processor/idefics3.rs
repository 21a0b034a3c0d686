//! Idefics3 and SmolVLM: the image enlarged or reduced to a longest side, cut into tiles, and the whole image as a last tile
//! (Transformers' `Idefics3ImageProcessorPil`).

use super::config::{Fields, unsupported};
use super::{Arrangement, ImageLayout, push_tile};
use crate::normalise::Normalisation;
use crate::resample::{Filter, resize};
use crate::{RgbImage, VisionError};

/// No image is made larger than this on a side, in pixels.
const MAX_IMAGE_SIZE: usize = 4096;

#[derive(Debug, Clone)]
pub(super) struct Idefics3Processor {
    /// What the longest side is resized to, in pixels.
    longest_edge: usize,
    /// The side of a tile, in pixels.
    tile_size: usize,
    do_image_splitting: bool,
    tokens_per_tile: usize,
    filter: Filter,
    normalisation: Normalisation,
}

impl Idefics3Processor {
    pub(super) fn read(fields: &mut Fields, tokens_per_tile: usize) -> Result<Self, VisionError> {
        fields.only("do_resize", true)?;
        // One image is as large as itself.
        fields.skip("do_pad");
        // SmolVLM's file says how videos are sampled, too.
        fields.skip("video_sampling");
        let [longest_edge] = fields.sizes("size", ["longest_edge"])?;
        let [tile_size] = fields.sizes("max_image_size", ["longest_edge"])?;
        let tile_size = tile_size.unwrap_or(364);
        if tile_size > MAX_IMAGE_SIZE {
            return Err(unsupported(format!(
                "max_image_size.longest_edge is {tile_size}: at most {MAX_IMAGE_SIZE}"
            )));
        }
        Ok(Self {
            longest_edge: longest_edge.unwrap_or(4 * 364),
            tile_size,
            do_image_splitting: fields.flag("do_image_splitting", true)?,
            tokens_per_tile,
            filter: fields.filter(Filter::Lanczos)?,
            normalisation: fields.normalisation([0.5; 3], [0.5; 3])?,
        })
    }

    /// The size with the longest side as configured: the other side is made even, and both are cut off at
    /// [`MAX_IMAGE_SIZE`].
    fn longest_edge_size(&self, width: usize, height: usize) -> (usize, usize) {
        let even = |side: usize| side + side % 2;
        let ratio = width as f64 / height as f64;
        let (width, height) = if width >= height {
            (self.longest_edge, even((self.longest_edge as f64 / ratio) as usize))
        } else {
            (even((self.longest_edge as f64 * ratio) as usize), self.longest_edge)
        };
        let (width, height) = (width.max(1), height.max(1));
        let ratio = width as f64 / height as f64;
        let (width, height) = if width >= height && width > MAX_IMAGE_SIZE {
            (MAX_IMAGE_SIZE, (MAX_IMAGE_SIZE as f64 / ratio) as usize)
        } else if height > width && height > MAX_IMAGE_SIZE {
            ((MAX_IMAGE_SIZE as f64 * ratio) as usize, MAX_IMAGE_SIZE)
        } else {
            (width, height)
        };
        (width.max(1), height.max(1))
    }

    /// The size in whole tiles.
    fn tiled_size(&self, width: usize, height: usize) -> (usize, usize) {
        let whole = |side: usize| side.div_ceil(self.tile_size) * self.tile_size;
        let ratio = width as f64 / height as f64;
        if width >= height {
            let width = whole(width);
            (width, whole((width as f64 / ratio) as usize))
        } else {
            let height = whole(height);
            (whole((height as f64 * ratio) as usize), height)
        }
    }

    /// The size after the first resize, after the second, and columns and rows of tiles (0 and 0 where the image is not split).
    fn sizes(&self, width: u32, height: u32) -> [(usize, usize); 3] {
        let first = self.longest_edge_size(width as usize, height as usize);
        if !self.do_image_splitting {
            return [first, (self.tile_size, self.tile_size), (0, 0)];
        }
        let second = self.tiled_size(first.0, first.1);
        let tiles = (second.0 / self.tile_size, second.1 / self.tile_size);
        [first, second, if tiles == (1, 1) { (0, 0) } else { tiles }]
    }

    pub(super) fn layout(&self, width: u32, height: u32) -> ImageLayout {
        let [_, _, (columns, rows)] = self.sizes(width, height);
        let tiles = columns * rows + 1;
        ImageLayout {
            tokens: tiles * self.tokens_per_tile,
            shape: vec![tiles, 3, self.tile_size, self.tile_size],
            arrangement: Arrangement::Tiles {
                rows,
                columns,
                whole_image: columns * rows > 0,
                tokens_per_tile: self.tokens_per_tile,
            },
        }
    }

    /// `[tiles, 3, tile_size, tile_size]`: the tiles row by row, and the whole image.
    pub(super) fn pixel_values(&self, image: &RgbImage) -> Vec<f32> {
        let size = self.tile_size;
        let [first, second, (columns, rows)] = self.sizes(image.width(), image.height());
        let resized = resize(image, first.0 as u32, first.1 as u32, self.filter);
        let tiled = resize(&resized, second.0 as u32, second.1 as u32, self.filter);
        let mut values = Vec::with_capacity((columns * rows + 1) * 3 * size * size);
        for row in 0..rows {
            for column in 0..columns {
                push_tile(&mut values, &self.normalisation, &tiled, (column * size, row * size), size);
            }
        }
        // Of the image in whole tiles, not of the original.
        let whole = resize(&tiled, size as u32, size as u32, self.filter);
        push_tile(&mut values, &self.normalisation, &whole, (0, 0), size);
        values
    }
}
