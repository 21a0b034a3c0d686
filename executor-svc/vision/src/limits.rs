//! What an image may cost before it is refused.

use std::time::{Duration, Instant};

use crate::VisionError;

/// What an image may cost. Each bound holds before the memory or the time is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Bytes of the encoded image, wherever it comes from.
    pub max_encoded_bytes: usize,
    /// Width times height.
    pub max_pixels: u64,
    /// Width and height each, in pixels.
    pub max_side: u32,
    /// Bytes that decoding may hold at once, the decoded image included.
    pub max_decode_bytes: usize,
    /// How long decoding may take. Looked at between rows, or between reads of the input where the decoder shows no
    /// rows (WebP, interlaced PNG, a GIF's frame): the time of those is bounded by [`ImageLimits::max_pixels`].
    pub max_decode_time: Duration,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            max_encoded_bytes: 20 << 20,
            max_pixels: 32 << 20,
            max_side: 16_384,
            max_decode_bytes: 384 << 20,
            max_decode_time: Duration::from_secs(10),
        }
    }
}

impl ImageLimits {
    /// # Errors
    /// [`VisionError::Empty`] or [`VisionError::TooLarge`].
    pub(crate) fn check_encoded(&self, bytes: usize) -> Result<(), VisionError> {
        if bytes == 0 {
            return Err(VisionError::Empty);
        }
        at_most("encoded bytes", bytes as u64, self.max_encoded_bytes as u64)
    }

    /// Checks the size that a header promises.
    ///
    /// # Errors
    /// [`VisionError::NoPixels`] or [`VisionError::TooLarge`].
    pub(crate) fn check_size(&self, width: u32, height: u32) -> Result<(), VisionError> {
        if width == 0 || height == 0 {
            return Err(VisionError::NoPixels { width, height });
        }
        at_most("pixels on a side", u64::from(width.max(height)), u64::from(self.max_side))?;
        at_most("pixels", u64::from(width) * u64::from(height), self.max_pixels)
    }

    /// Checks what decoding is about to hold.
    ///
    /// # Errors
    /// [`VisionError::TooLarge`].
    pub(crate) fn check_memory(&self, bytes: u64) -> Result<(), VisionError> {
        at_most("bytes to hold while it is decoded", bytes, self.max_decode_bytes as u64)
    }
}

fn at_most(what: &'static str, found: u64, limit: u64) -> Result<(), VisionError> {
    if found > limit { Err(VisionError::TooLarge { what, found, limit }) } else { Ok(()) }
}

/// The moment by which an image must be decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    started: Instant,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn start(limits: &ImageLimits) -> Self {
        Self { started: Instant::now(), limit: limits.max_decode_time }
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.started.elapsed() > self.limit
    }

    /// # Errors
    /// [`VisionError::DecodeTimeout`] once the moment has passed.
    pub(crate) fn check(&self) -> Result<(), VisionError> {
        if self.has_passed() { Err(self.error()) } else { Ok(()) }
    }

    pub(crate) fn error(&self) -> VisionError {
        VisionError::DecodeTimeout { limit: self.limit }
    }
}
