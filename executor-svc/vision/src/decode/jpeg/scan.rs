//! Walking over the blocks of a scan, and the blocks of sequential frames.

use super::bits::BitReader;
use super::corrupt;
use super::frame::Frame;
use super::huffman::HuffmanTable;
use super::markers::{File, Scan, ZIGZAG};
use crate::VisionError;
use crate::limits::Deadline;

/// The tables of a component in a scan, as far as the scan needs them.
pub(super) struct Tables<'a> {
    dc: Option<&'a HuffmanTable>,
    ac: Option<&'a HuffmanTable>,
}

impl<'a> Tables<'a> {
    pub(super) fn dc(&self) -> Result<&'a HuffmanTable, VisionError> {
        self.dc.ok_or_else(|| corrupt("a Huffman table is missing"))
    }

    pub(super) fn ac(&self) -> Result<&'a HuffmanTable, VisionError> {
        self.ac.ok_or_else(|| corrupt("a Huffman table is missing"))
    }
}

/// What is carried from block to block, until a restart marker.
#[derive(Default)]
pub(super) struct State {
    /// The last DC coefficient of each component of the scan.
    pub(super) last_dc: [i32; 4],
    /// Blocks that have nothing more in this band (progressive).
    pub(super) end_of_band_run: u32,
}

impl File<'_> {
    /// Decodes the data of a scan into its components.
    ///
    /// # Errors
    /// [`VisionError::Corrupt`], [`VisionError::Truncated`], or the deadline, looked at for each row of MCUs.
    pub(super) fn decode_scan(&mut self, scan: &Scan, deadline: Deadline) -> Result<(), VisionError> {
        let Some(mut frame) = self.frame.take() else { return Err(corrupt("a scan before the frame")) };
        let mut bits = BitReader::new(self.bytes, scan.data);
        let tables: Vec<_> = scan
            .components
            .iter()
            .map(|component| Tables {
                dc: self.dc_tables[component.dc_table].as_ref(),
                ac: self.ac_tables[component.ac_table].as_ref(),
            })
            .collect();
        walk(&mut frame, scan, &tables, self.restart_interval, &mut bits, deadline)?;
        self.position = bits.position();
        self.frame = Some(frame);
        Ok(())
    }
}

fn walk(
    frame: &mut Frame,
    scan: &Scan,
    tables: &[Tables<'_>],
    restart_interval: usize,
    bits: &mut BitReader<'_>,
    deadline: Deadline,
) -> Result<(), VisionError> {
    let mut state = State::default();
    let mut done = 0;
    let mut restart = |state: &mut State, bits: &mut BitReader<'_>| {
        if restart_interval > 0 && done > 0 && done % restart_interval == 0 {
            bits.restart(((done / restart_interval - 1) % 8) as u8)?;
            *state = State::default();
        }
        done += 1;
        Ok::<_, VisionError>(())
    };
    if let [only] = scan.components.as_slice() {
        // The blocks of one component, without those that only fill up its MCUs.
        let component = &frame.components[only.index];
        let (wide, high) = (component.width.div_ceil(8), component.height.div_ceil(8));
        for row in 0..high {
            deadline.check()?;
            for column in 0..wide {
                restart(&mut state, bits)?;
                block(frame, scan, tables, 0, (row, column), &mut state, bits)?;
            }
        }
        return Ok(());
    }
    for mcu_row in 0..frame.mcus_high {
        deadline.check()?;
        for mcu_column in 0..frame.mcus_wide {
            restart(&mut state, bits)?;
            for (order, component) in scan.components.iter().enumerate() {
                let component = &frame.components[component.index];
                let (horizontal, vertical) = (component.horizontal, component.vertical);
                for y in 0..vertical {
                    for x in 0..horizontal {
                        let place = (mcu_row * vertical + y, mcu_column * horizontal + x);
                        block(frame, scan, tables, order, place, &mut state, bits)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Decodes one block of the scan's component `order`, at a row and a column of blocks.
fn block(
    frame: &mut Frame,
    scan: &Scan,
    tables: &[Tables<'_>],
    order: usize,
    (row, column): (usize, usize),
    state: &mut State,
    bits: &mut BitReader<'_>,
) -> Result<(), VisionError> {
    let component = &mut frame.components[scan.components[order].index];
    let tables = &tables[order];
    if frame.progressive {
        let index = row * component.blocks_wide + column;
        let coefficients = &mut component.coefficients[index];
        return scan.band.decode(
            coefficients,
            tables,
            &mut state.last_dc[order],
            &mut state.end_of_band_run,
            bits,
        );
    }
    let coefficients = sequential(tables.dc()?, tables.ac()?, &mut state.last_dc[order], bits)?;
    component.put_block(row, column, &coefficients);
    Ok(())
}

/// A block of a sequential scan (T.81 F.2), in natural order.
fn sequential(
    dc: &HuffmanTable,
    ac: &HuffmanTable,
    last_dc: &mut i32,
    bits: &mut BitReader<'_>,
) -> Result<[i16; 64], VisionError> {
    let mut coefficients = [0; 64];
    *last_dc = last_dc.wrapping_add(difference(dc, bits)?);
    coefficients[0] = *last_dc as i16;
    let mut index = 1;
    while index < 64 {
        let symbol = ac.decode(bits)?;
        let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if zeros < 15 {
                break;
            }
            index += 16;
            continue;
        }
        index += zeros;
        let value = bits.signed(size)?;
        let place = ZIGZAG.get(index).ok_or_else(|| corrupt("a block has more than 64 coefficients"))?;
        coefficients[usize::from(*place)] = value as i16;
        index += 1;
    }
    Ok(coefficients)
}

/// How a DC coefficient differs from the last one.
pub(super) fn difference(dc: &HuffmanTable, bits: &mut BitReader<'_>) -> Result<i32, VisionError> {
    let size = u32::from(dc.decode(bits)?);
    if size > 15 {
        return Err(corrupt("a DC coefficient of more than 15 bits"));
    }
    bits.signed(size)
}
