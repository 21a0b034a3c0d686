//! The blocks of progressive frames (T.81 annex G): each scan brings one band of coefficients, or one more bit of them.

use super::bits::BitReader;
use super::corrupt;
use super::markers::ZIGZAG;
use super::scan::{Tables, difference};
use crate::VisionError;

/// What a scan brings: which coefficients, in zigzag order, and which of their bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band {
    start: usize,
    end: usize,
    /// Whether the coefficients had bits before.
    refines: bool,
    /// The lowest bit of this scan.
    low_bit: u32,
}

impl Band {
    /// All of every coefficient: what the scans of sequential frames bring.
    pub(super) const WHOLE: Self = Self { start: 0, end: 63, refines: false, low_bit: 0 };

    /// # Errors
    /// [`VisionError::Corrupt`] for a band that there is not.
    pub(super) fn read(
        start: u8,
        end: u8,
        approximation: u8,
        components: usize,
    ) -> Result<Self, VisionError> {
        let (high, low) = (approximation >> 4, approximation & 15);
        let valid = match start {
            0 => end == 0,
            _ => start <= end && end < 64 && components == 1,
        };
        if !valid || low > 13 || (high != 0 && high != low + 1) {
            return Err(corrupt("a progressive scan of a band that there is not"));
        }
        Ok(Self { start: start.into(), end: end.into(), refines: high != 0, low_bit: low.into() })
    }

    /// Decodes what this scan has of a block.
    pub(super) fn decode(
        &self,
        coefficients: &mut [i16; 64],
        tables: &Tables<'_>,
        last_dc: &mut i32,
        run: &mut u32,
        bits: &mut BitReader<'_>,
    ) -> Result<(), VisionError> {
        match (self.start, self.refines) {
            (0, false) => {
                *last_dc = last_dc.wrapping_add(difference(tables.dc()?, bits)?);
                coefficients[0] = last_dc.wrapping_shl(self.low_bit) as i16;
                Ok(())
            }
            (0, true) => {
                if bits.bit()? {
                    coefficients[0] |= 1 << self.low_bit;
                }
                Ok(())
            }
            (_, false) => self.first(coefficients, tables, run, bits),
            (_, true) => self.refine(coefficients, tables, run, bits),
        }
    }

    /// The first bits of the band's coefficients.
    fn first(
        &self,
        coefficients: &mut [i16; 64],
        tables: &Tables<'_>,
        run: &mut u32,
        bits: &mut BitReader<'_>,
    ) -> Result<(), VisionError> {
        if *run > 0 {
            *run -= 1;
            return Ok(());
        }
        let ac = tables.ac()?;
        let mut index = self.start;
        while index <= self.end {
            let symbol = ac.decode(bits)?;
            let (zeros, size) = (symbol >> 4, u32::from(symbol & 15));
            if size == 0 {
                if zeros < 15 {
                    *run = end_of_band(zeros, bits)? - 1;
                    return Ok(());
                }
                index += 16;
                continue;
            }
            index += usize::from(zeros);
            let value = bits.signed(size)?;
            if index > self.end {
                return Err(corrupt("a block has more coefficients than its band"));
            }
            coefficients[usize::from(ZIGZAG[index])] = value.wrapping_shl(self.low_bit) as i16;
            index += 1;
        }
        Ok(())
    }

    /// One more bit of the band's coefficients: those that are zero may get their first, the others one each.
    fn refine(
        &self,
        coefficients: &mut [i16; 64],
        tables: &Tables<'_>,
        run: &mut u32,
        bits: &mut BitReader<'_>,
    ) -> Result<(), VisionError> {
        let ac = tables.ac()?;
        let one = 1_i16 << self.low_bit;
        let mut index = self.start;
        if *run == 0 {
            while index <= self.end {
                let symbol = ac.decode(bits)?;
                let (mut zeros, size) = (symbol >> 4, symbol & 15);
                let value = match size {
                    0 if zeros < 15 => {
                        *run = end_of_band(zeros, bits)?;
                        break;
                    }
                    // Sixteen zeros, the sixteenth of which is passed as any coefficient is.
                    0 => 0,
                    1 if bits.bit()? => one,
                    1 => -one,
                    _ => return Err(corrupt("a refined coefficient of more than one bit")),
                };
                // Passes `zeros` coefficients that are zero, refining the others on the way.
                while index <= self.end {
                    let coefficient = &mut coefficients[usize::from(ZIGZAG[index])];
                    if *coefficient != 0 {
                        refine_one(coefficient, one, bits)?;
                    } else if zeros == 0 {
                        break;
                    } else {
                        zeros -= 1;
                    }
                    index += 1;
                }
                if value != 0 {
                    if index > self.end {
                        return Err(corrupt("a block has more coefficients than its band"));
                    }
                    coefficients[usize::from(ZIGZAG[index])] = value;
                }
                index += 1;
            }
        }
        if *run > 0 {
            for &place in ZIGZAG.get(index..=self.end).unwrap_or_default() {
                let coefficient = &mut coefficients[usize::from(place)];
                if *coefficient != 0 {
                    refine_one(coefficient, one, bits)?;
                }
            }
            *run -= 1;
        }
        Ok(())
    }
}

/// How many blocks, this one included, have nothing more in the band.
fn end_of_band(size: u8, bits: &mut BitReader<'_>) -> Result<u32, VisionError> {
    Ok((1 << size) + bits.bits(u32::from(size))?)
}

/// One more bit of a coefficient that is not zero, unless it has it already.
fn refine_one(coefficient: &mut i16, one: i16, bits: &mut BitReader<'_>) -> Result<(), VisionError> {
    if bits.bit()? && *coefficient & one == 0 {
        *coefficient = coefficient.wrapping_add(if *coefficient < 0 { -one } else { one });
    }
    Ok(())
}
