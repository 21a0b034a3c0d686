//! The bits of entropy-coded data.

use super::{corrupt, truncated};
use crate::VisionError;

/// Reads bits, first bit of a byte first, up to the next marker.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// The first byte that is not in `pending`; a marker's 0xFF once the data before it is used up.
    position: usize,
    /// The next bits, in the highest places; zeros behind them.
    pending: u64,
    /// How many of `pending` are real.
    available: u32,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position, pending: 0, available: 0 }
    }

    /// Where the marker is that ends the data, or where the data ends without one.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    fn refill(&mut self) {
        while self.available <= 56 {
            let Some(&byte) = self.bytes.get(self.position) else { return };
            if byte == 0xFF {
                match self.bytes.get(self.position + 1) {
                    // A stuffed byte: 0xFF is data.
                    Some(0) => self.position += 1,
                    // Fill before a marker.
                    Some(0xFF) => {
                        self.position += 1;
                        continue;
                    }
                    _ => return,
                }
            }
            self.position += 1;
            self.pending |= u64::from(byte) << (56 - self.available);
            self.available += 8;
        }
    }

    /// The next `count` bits (1 to 16) without taking them, with zeros for those that there are not.
    pub(super) fn peek(&mut self, count: u32) -> u32 {
        if self.available < count {
            self.refill();
        }
        (self.pending >> (64 - count)) as u32
    }

    /// Takes `count` bits that were peeked at.
    ///
    /// # Errors
    /// [`VisionError::Truncated`] or [`VisionError::Corrupt`] if there are not as many.
    pub(super) fn take(&mut self, count: u32) -> Result<(), VisionError> {
        if self.available < count {
            return Err(if self.position + 1 >= self.bytes.len() {
                truncated("its entropy-coded data ends early")
            } else {
                corrupt("a marker within the entropy-coded data")
            });
        }
        self.pending <<= count;
        self.available -= count;
        Ok(())
    }

    /// The next `count` bits (0 to 16).
    pub(super) fn bits(&mut self, count: u32) -> Result<u32, VisionError> {
        if count == 0 {
            return Ok(0);
        }
        let bits = self.peek(count);
        self.take(count)?;
        Ok(bits)
    }

    pub(super) fn bit(&mut self) -> Result<bool, VisionError> {
        Ok(self.bits(1)? == 1)
    }

    /// A signed value of `size` bits (0 to 15): T.81's RECEIVE and EXTEND.
    pub(super) fn signed(&mut self, size: u32) -> Result<i32, VisionError> {
        if size == 0 {
            return Ok(0);
        }
        let bits = self.bits(size)? as i32;
        let half = 1 << (size - 1);
        Ok(if bits < half { bits - (1 << size) + 1 } else { bits })
    }

    /// Goes behind the restart marker of this number (0 to 7), dropping what is left of the last byte.
    ///
    /// # Errors
    /// [`VisionError::Truncated`] or [`VisionError::Corrupt`] if another thing is there.
    pub(super) fn restart(&mut self, number: u8) -> Result<(), VisionError> {
        self.refill();
        if self.available >= 8 {
            return Err(corrupt("entropy-coded data where a restart marker should be"));
        }
        match self.bytes.get(self.position + 1) {
            None => Err(truncated("a restart marker is missing")),
            Some(&code) if code == 0xD0 + number => {
                self.position += 2;
                (self.pending, self.available) = (0, 0);
                Ok(())
            }
            Some(_) => Err(corrupt("another marker where a restart marker should be")),
        }
    }
}
