//! Components of less than full resolution, brought to full: libjpeg's "fancy" triangle filter where it uses that, copies
//! where it does not, with its rounding (`jdsample.c`).

use super::frame::{Plane, Planes};
use super::unsupported;
use crate::VisionError;

/// How a component is brought to full resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Full,
    /// Twice as wide.
    TriangleWide,
    /// Twice as high.
    TriangleHigh,
    /// Twice as wide and as high.
    TriangleBoth,
    /// So many times as wide and as high.
    Copies(usize, usize),
}

impl Method {
    fn of(plane: &Plane, planes: &Planes) -> Result<Self, VisionError> {
        let (wide, high) = (planes.max_horizontal, planes.max_vertical);
        if !wide.is_multiple_of(plane.horizontal) || !high.is_multiple_of(plane.vertical) {
            return Err(unsupported("a ratio of sampling factors that is no whole number"));
        }
        Ok(match (wide / plane.horizontal, high / plane.vertical) {
            (1, 1) => Self::Full,
            (2, 1) if plane.width > 2 => Self::TriangleWide,
            (1, 2) => Self::TriangleHigh,
            (2, 2) if plane.width > 2 => Self::TriangleBoth,
            (wide, high) => Self::Copies(wide, high),
        })
    }
}

/// Gives rows of full resolution.
pub(super) struct Upsampler<'a> {
    planes: &'a Planes,
    methods: Vec<Method>,
    /// A row of each component, as far as it is not the plane's own.
    buffers: Vec<Vec<u8>>,
}

impl<'a> Upsampler<'a> {
    /// # Errors
    /// [`VisionError::Unsupported`] for sampling factors that are no multiples of each other.
    pub(super) fn new(planes: &'a Planes) -> Result<Self, VisionError> {
        let methods =
            planes.planes.iter().map(|plane| Method::of(plane, planes)).collect::<Result<_, _>>()?;
        // The last pair of samples may go past the image's width.
        let buffers = planes.planes.iter().map(|_| vec![0; planes.width as usize + 8]).collect();
        Ok(Self { planes, methods, buffers })
    }

    /// Row `y` of each component, at least as wide as the image.
    pub(super) fn row(&mut self, y: usize) -> Vec<&[u8]> {
        for ((plane, method), buffer) in self.planes.planes.iter().zip(&self.methods).zip(&mut self.buffers) {
            match *method {
                Method::Full => {}
                Method::TriangleWide => triangle_wide(plane.row(y), buffer),
                Method::TriangleHigh => {
                    let (near, far) = plane.nearest_rows(y);
                    let rounding = if y.is_multiple_of(2) { 1 } else { 2 };
                    for ((out, &near), &far) in buffer.iter_mut().zip(near).zip(far) {
                        *out = ((u32::from(near) * 3 + u32::from(far) + rounding) >> 2) as u8;
                    }
                }
                Method::TriangleBoth => {
                    let (near, far) = plane.nearest_rows(y);
                    triangle_both(near, far, buffer);
                }
                Method::Copies(wide, high) => {
                    let row = plane.row(y / high);
                    for (outs, &value) in buffer.chunks_mut(wide).zip(row) {
                        outs.fill(value);
                    }
                }
            }
        }
        let rows = self.planes.planes.iter().zip(&self.methods).zip(&self.buffers);
        rows.map(|((plane, method), buffer)| match method {
            Method::Full => plane.row(y),
            _ => buffer.as_slice(),
        })
        .collect()
    }
}

/// Each sample becomes two, each three quarters of it and one of its neighbour on that side.
fn triangle_wide(row: &[u8], out: &mut [u8]) {
    let at = |index: usize| u32::from(row[index]);
    let last = row.len() - 1;
    for (index, outs) in out.chunks_mut(2).take(row.len()).enumerate() {
        let left = if index == 0 { at(0) } else { (at(index) * 3 + at(index - 1) + 1) >> 2 };
        let right = if index == last { at(last) } else { (at(index) * 3 + at(index + 1) + 2) >> 2 };
        outs[0] = left as u8;
        if let Some(out) = outs.get_mut(1) {
            *out = right as u8;
        }
    }
}

/// The same in both directions: `near` is the row that the result lies in, `far` its neighbour on the result's side.
fn triangle_both(near: &[u8], far: &[u8], out: &mut [u8]) {
    let sum = |index: usize| u32::from(near[index]) * 3 + u32::from(far[index]);
    let last = near.len() - 1;
    let (mut before, mut this) = (sum(0), sum(0));
    for (index, outs) in out.chunks_mut(2).take(near.len()).enumerate() {
        let after = if index == last { this } else { sum(index + 1) };
        outs[0] = ((this * 3 + before + 8) >> 4) as u8;
        if let Some(out) = outs.get_mut(1) {
            *out = ((this * 3 + after + 7) >> 4) as u8;
        }
        (before, this) = (this, after);
    }
}
