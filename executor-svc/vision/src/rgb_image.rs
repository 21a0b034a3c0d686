//! A decoded image.

use crate::VisionError;
use crate::orientation::Orientation;

/// A decoded image: 8-bit RGB, rows from the top, `[height, width, 3]`, upright.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

/// The pixels are left out: there are many.
impl std::fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbImage({}×{})", self.width, self.height)
    }
}

impl RgbImage {
    /// An image of these pixels, `[height, width, 3]`.
    ///
    /// # Errors
    /// [`VisionError::NoPixels`] if a side is 0, [`VisionError::InvalidSource`] if there are not as many bytes as the size
    /// says.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, VisionError> {
        if width == 0 || height == 0 {
            return Err(VisionError::NoPixels { width, height });
        }
        let expected = u64::from(width) * u64::from(height) * 3;
        if pixels.len() as u64 != expected {
            let found = pixels.len();
            let what = format!("expected {expected} bytes of {width}×{height} RGB pixels, found {found}");
            return Err(VisionError::InvalidSource { what });
        }
        Ok(Self { width, height, pixels })
    }

    /// In pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// In pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// `[height, width, 3]`.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The rows, from the top.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.pixels.chunks_exact(self.width as usize * 3)
    }

    /// The image with a colour that its file says is transparent as a whole shown as white.
    pub(crate) fn on_white(mut self, transparent: Option<[u8; 3]>) -> Self {
        if let Some(colour) = transparent {
            for pixel in self.pixels.as_chunks_mut::<3>().0.iter_mut().filter(|pixel| **pixel == colour) {
                *pixel = [255; 3];
            }
        }
        self
    }

    /// The image upright, when its file says that it lies otherwise.
    pub(crate) fn upright(self, orientation: Orientation) -> Self {
        if orientation == Orientation::Upright {
            return self;
        }
        let (width, height) = (self.width as usize, self.height as usize);
        let (out_width, out_height) =
            if orientation.swaps_sides() { (height, width) } else { (width, height) };
        let mut pixels = vec![0; self.pixels.len()];
        for (y, row) in pixels.chunks_exact_mut(out_width * 3).enumerate() {
            for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                let (from_x, from_y) = match orientation {
                    Orientation::Upright => (x, y),
                    Orientation::Mirrored => (width - 1 - x, y),
                    Orientation::Rotated180 => (width - 1 - x, height - 1 - y),
                    Orientation::MirroredVertically => (x, height - 1 - y),
                    Orientation::Transposed => (y, x),
                    Orientation::Rotated270 => (y, height - 1 - x),
                    Orientation::Transversed => (width - 1 - y, height - 1 - x),
                    Orientation::Rotated90 => (width - 1 - y, x),
                };
                let from = (from_y * width + from_x) * 3;
                pixel.copy_from_slice(&self.pixels[from..from + 3]);
            }
        }
        Self { width: out_width as u32, height: out_height as u32, pixels }
    }
}
