//! Huffman codes.

use super::bits::BitReader;
use super::corrupt;
use crate::VisionError;

/// Codes of up to so many bits are looked up in one step.
const FAST_BITS: u32 = 9;

/// A table of Huffman codes (T.81 annex C).
#[derive(Clone)]
pub(super) struct HuffmanTable {
    /// For the next [`FAST_BITS`] bits: length << 8 | symbol, or 0 for a longer code.
    fast: Vec<u16>,
    /// For each length, one more than the largest code, moved to 16 bits.
    limits: [u32; 17],
    /// For each length, what is added to a code for its symbol's index.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl HuffmanTable {
    /// The table of a DHT segment: how many codes each length from 1 to 16 has, and their symbols.
    ///
    /// # Errors
    /// [`VisionError::Corrupt`] if there are more codes of a length than fit.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Self, VisionError> {
        let mut fast = vec![0_u16; 1 << FAST_BITS];
        let (mut limits, mut offsets) = ([0_u32; 17], [0_i32; 17]);
        let (mut code, mut index) = (0_u32, 0_usize);
        for length in 1..=16_u32 {
            let count = u32::from(counts[length as usize - 1]);
            offsets[length as usize] = index as i32 - code as i32;
            for _ in 0..count {
                // The code of ones only is reserved.
                if code + 1 >= 1 << length {
                    return Err(corrupt("a Huffman table has more codes than fit"));
                }
                let symbol = *symbols.get(index).ok_or_else(|| corrupt("a Huffman table lacks symbols"))?;
                if length <= FAST_BITS {
                    let first = (code << (FAST_BITS - length)) as usize;
                    let entry = (length as u16) << 8 | u16::from(symbol);
                    fast[first..first + (1 << (FAST_BITS - length))].fill(entry);
                }
                code += 1;
                index += 1;
            }
            limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(Self { fast, limits, offsets, symbols: symbols.to_vec() })
    }

    /// The next symbol.
    ///
    /// # Errors
    /// [`VisionError::Corrupt`] for bits that are no code, or what [`BitReader::take`] says.
    pub(super) fn decode(&self, bits: &mut BitReader<'_>) -> Result<u8, VisionError> {
        let next = bits.peek(16);
        let entry = self.fast[(next >> (16 - FAST_BITS)) as usize];
        if entry != 0 {
            bits.take(u32::from(entry >> 8))?;
            return Ok(entry as u8);
        }
        for length in FAST_BITS + 1..=16 {
            if next < self.limits[length as usize] {
                let index = (next >> (16 - length)) as i32 + self.offsets[length as usize];
                let symbol = usize::try_from(index).ok().and_then(|index| self.symbols.get(index));
                let symbol = *symbol.ok_or_else(|| corrupt("bits that are no Huffman code"))?;
                bits.take(length)?;
                return Ok(symbol);
            }
        }
        // Past the end of the data there are zeros, which may be no code: that error is the better one.
        bits.take(16)?;
        Err(corrupt("bits that are no Huffman code"))
    }
}
