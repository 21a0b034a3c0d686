//! A frame: its components, and what has been decoded of them.

use super::idct::inverse_dct;
use super::{corrupt, unsupported};
use crate::VisionError;
use crate::limits::{Deadline, ImageLimits};

/// The steps of one quantisation table, in natural order.
pub(super) type QuantisationTable = [u16; 64];

/// A component while it is decoded.
pub(super) struct Component {
    pub(super) id: u8,
    /// Sampling factor, 1 to 4.
    pub(super) horizontal: usize,
    /// Sampling factor, 1 to 4.
    pub(super) vertical: usize,
    /// Which quantisation table the frame names for it.
    pub(super) table: usize,
    /// That table as it was when the component's first scan began.
    pub(super) quantisation: Option<QuantisationTable>,
    /// Samples that belong to the image.
    pub(super) width: usize,
    /// Samples that belong to the image.
    pub(super) height: usize,
    /// Blocks that the rows have in memory: whole MCUs.
    pub(super) blocks_wide: usize,
    /// Rows of blocks in memory: whole MCUs.
    pub(super) blocks_high: usize,
    /// `[blocks_high * 8, blocks_wide * 8]`.
    pub(super) samples: Vec<u8>,
    /// `[blocks_high, blocks_wide, 64]` in natural order; only of progressive frames.
    pub(super) coefficients: Vec<[i16; 64]>,
}

impl Component {
    /// Writes a block's samples: its coefficients in natural order, not yet multiplied by their steps.
    pub(super) fn put_block(&mut self, row: usize, column: usize, coefficients: &[i16; 64]) {
        let Some(steps) = &self.quantisation else { return };
        let values = std::array::from_fn(|index| i32::from(coefficients[index]) * i32::from(steps[index]));
        let stride = self.blocks_wide * 8;
        inverse_dct(&values, &mut self.samples, row * 8 * stride + column * 8, stride);
    }
}

/// A frame while it is decoded.
pub(super) struct Frame {
    pub(super) progressive: bool,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) max_horizontal: usize,
    pub(super) max_vertical: usize,
    pub(super) mcus_wide: usize,
    pub(super) mcus_high: usize,
    pub(super) components: Vec<Component>,
}

impl Frame {
    /// Reads a frame header: what follows the length of a SOF segment.
    ///
    /// # Errors
    /// [`VisionError::Corrupt`], [`VisionError::Unsupported`], or a limit, which holds before memory is taken.
    pub(super) fn read(segment: &[u8], progressive: bool, limits: &ImageLimits) -> Result<Self, VisionError> {
        let [precision, h1, h0, w1, w0, count, rest @ ..] = segment else {
            return Err(corrupt("its frame header is too short"));
        };
        if *precision != 8 {
            return Err(unsupported(format!("{precision} bits a sample")));
        }
        let (width, height) =
            (u32::from(u16::from_be_bytes([*w1, *w0])), u32::from(u16::from_be_bytes([*h1, *h0])));
        if height == 0 && width != 0 {
            return Err(unsupported("a height that follows the image (DNL), or a height of 0"));
        }
        limits.check_size(width, height)?;
        match count {
            1 | 3 => {}
            4 => return Err(unsupported("CMYK: convert the image to RGB")),
            other => return Err(unsupported(format!("{other} components"))),
        }
        let (entries, []) = rest.as_chunks::<3>() else {
            return Err(corrupt("its frame header has another length than its components need"));
        };
        if entries.len() != usize::from(*count) {
            return Err(corrupt("its frame header has another length than its components need"));
        }
        let factors = |&[_, factors, _]: &[u8; 3]| (usize::from(factors >> 4), usize::from(factors & 15));
        if entries.iter().map(factors).any(|(h, v)| !(1..=4).contains(&h) || !(1..=4).contains(&v)) {
            return Err(corrupt("a sampling factor that is not 1 to 4"));
        }
        let max_horizontal = entries.iter().map(|entry| factors(entry).0).max().unwrap_or(1);
        let max_vertical = entries.iter().map(|entry| factors(entry).1).max().unwrap_or(1);
        let (columns, rows) = (width as usize, height as usize);
        let mcus_wide = columns.div_ceil(8 * max_horizontal);
        let mcus_high = rows.div_ceil(8 * max_vertical);
        let components: Vec<_> = entries
            .iter()
            .map(|entry| {
                let (horizontal, vertical) = factors(entry);
                Component {
                    id: entry[0],
                    horizontal,
                    vertical,
                    table: usize::from(entry[2]),
                    quantisation: None,
                    width: (columns * horizontal).div_ceil(max_horizontal),
                    height: (rows * vertical).div_ceil(max_vertical),
                    blocks_wide: mcus_wide * horizontal,
                    blocks_high: mcus_high * vertical,
                    samples: Vec::new(),
                    coefficients: Vec::new(),
                }
            })
            .collect();
        if components.iter().any(|component| component.table > 3) {
            return Err(corrupt("a quantisation table that is not 0 to 3"));
        }
        let mut frame = Self {
            progressive,
            width,
            height,
            max_horizontal,
            max_vertical,
            mcus_wide,
            mcus_high,
            components,
        };
        frame.allocate(limits)?;
        Ok(frame)
    }

    fn allocate(&mut self, limits: &ImageLimits) -> Result<(), VisionError> {
        let blocks: u64 = self.components.iter().map(|c| (c.blocks_wide * c.blocks_high) as u64).sum();
        let bytes_of_a_block = if self.progressive { 64 * 3 } else { 64 };
        let image = u64::from(self.width) * u64::from(self.height) * 3;
        limits.check_memory(blocks * bytes_of_a_block + image)?;
        for component in &mut self.components {
            let blocks = component.blocks_wide * component.blocks_high;
            component.samples = vec![0; blocks * 64];
            if self.progressive {
                component.coefficients = vec![[0; 64]; blocks];
            }
        }
        Ok(())
    }

    /// The samples of all components.
    ///
    /// # Errors
    /// [`VisionError::Corrupt`] if a component was in no scan, or the deadline.
    pub(super) fn into_planes(mut self, deadline: Deadline) -> Result<Planes, VisionError> {
        for component in &mut self.components {
            if component.quantisation.is_none() {
                return Err(corrupt("a component is in no scan"));
            }
            let coefficients = std::mem::take(&mut component.coefficients);
            for (row, blocks) in coefficients.chunks_exact(component.blocks_wide).enumerate() {
                deadline.check()?;
                for (column, block) in blocks.iter().enumerate() {
                    component.put_block(row, column, block);
                }
            }
        }
        let plane = |component: Component| Plane {
            horizontal: component.horizontal,
            vertical: component.vertical,
            width: component.width,
            height: component.height,
            stride: component.blocks_wide * 8,
            samples: component.samples,
        };
        Ok(Planes {
            width: self.width,
            height: self.height,
            max_horizontal: self.max_horizontal,
            max_vertical: self.max_vertical,
            planes: self.components.into_iter().map(plane).collect(),
        })
    }
}

/// The samples of a component.
pub(super) struct Plane {
    pub(super) horizontal: usize,
    pub(super) vertical: usize,
    pub(super) width: usize,
    pub(super) height: usize,
    stride: usize,
    samples: Vec<u8>,
}

impl Plane {
    /// A row, or the last where there are fewer.
    pub(super) fn row(&self, y: usize) -> &[u8] {
        &self.samples[y.min(self.height - 1) * self.stride..][..self.width]
    }

    /// Of a plane of half the image's height: the row that row `y` of the image lies in, and the neighbour on its side.
    pub(super) fn nearest_rows(&self, y: usize) -> (&[u8], &[u8]) {
        let near = y / 2;
        let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { near + 1 };
        (self.row(near), self.row(far))
    }
}

/// The samples of all components, each at its own resolution.
pub(super) struct Planes {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) max_horizontal: usize,
    pub(super) max_vertical: usize,
    pub(super) planes: Vec<Plane>,
}
