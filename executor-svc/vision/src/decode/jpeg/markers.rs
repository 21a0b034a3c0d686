//! The segments of a file, up to and between its scans.

use super::colour::ColourSpace;
use super::frame::{Frame, QuantisationTable};
use super::huffman::HuffmanTable;
use super::progressive::Band;
use super::{corrupt, truncated, unsupported};
use crate::VisionError;
use crate::limits::ImageLimits;
use crate::orientation::Orientation;

/// The order in which the coefficients of a block come, as their places in natural order.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// More scans than an encoder makes: each one costs a walk over all blocks.
const MAX_SCANS: usize = 100;

/// A component in a scan.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScanComponent {
    /// Which of the frame's components.
    pub(super) index: usize,
    pub(super) dc_table: usize,
    pub(super) ac_table: usize,
}

/// A scan's header, and where its data begins.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    pub(super) components: Vec<ScanComponent>,
    pub(super) band: Band,
    pub(super) data: usize,
}

/// A file while it is read.
pub(super) struct File<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) position: usize,
    limits: &'a ImageLimits,
    pub(super) frame: Option<Frame>,
    quantisation: [Option<QuantisationTable>; 4],
    pub(super) dc_tables: [Option<HuffmanTable>; 4],
    pub(super) ac_tables: [Option<HuffmanTable>; 4],
    /// MCUs between two restart markers, or 0.
    pub(super) restart_interval: usize,
    scans: usize,
    has_jfif: bool,
    adobe_transform: Option<u8>,
    exif: Option<&'a [u8]>,
    xmp: Option<&'a [u8]>,
}

impl<'a> File<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &'a ImageLimits) -> Self {
        Self {
            bytes,
            // Behind SOI, which the format was told by.
            position: 2,
            limits,
            frame: None,
            quantisation: [None; 4],
            dc_tables: [const { None }; 4],
            ac_tables: [const { None }; 4],
            restart_interval: 0,
            scans: 0,
            has_jfif: false,
            adobe_transform: None,
            exif: None,
            xmp: None,
        }
    }

    /// Reads up to the next scan's data, or to the end of the image.
    pub(super) fn next_scan(&mut self) -> Result<Option<Scan>, VisionError> {
        loop {
            let code = self.marker()?;
            match code {
                0xD9 => return Ok(None),
                // Restart markers that are left over, TEM.
                0xD0..=0xD7 | 0x01 => continue,
                0xD8 => return Err(corrupt("a second image begins within the first")),
                _ => {}
            }
            let segment = self.segment()?;
            match code {
                0xC4 => self.huffman_tables(segment)?,
                0xC0..=0xC2 => {
                    if self.frame.is_some() {
                        return Err(corrupt("it has two frames"));
                    }
                    self.frame = Some(Frame::read(segment, code == 0xC2, self.limits)?);
                }
                0xC3 | 0xC7 | 0xCB | 0xCF => return Err(unsupported("lossless coding")),
                0xC5 | 0xC6 => return Err(unsupported("hierarchical coding")),
                0xC8..=0xCE => return Err(unsupported("arithmetic coding")),
                0xDA => return self.scan(segment).map(Some),
                0xDB => self.quantisation_tables(segment)?,
                0xDC => return Err(unsupported("a height that follows the image (DNL)")),
                0xDD => match segment {
                    [high, low] => self.restart_interval = usize::from(u16::from_be_bytes([*high, *low])),
                    _ => return Err(corrupt("its restart interval has a wrong length")),
                },
                0xE0 => self.has_jfif |= segment.starts_with(b"JFIF\0"),
                0xE1 if segment.starts_with(b"Exif\0\0") => self.exif = self.exif.or(Some(segment)),
                0xE1 if segment.starts_with(b"http://ns.adobe.com/xap/1.0/\0") => self.xmp = Some(segment),
                0xEE if segment.starts_with(b"Adobe") => {
                    self.adobe_transform = segment.get(11).copied().or(self.adobe_transform);
                }
                _ => {}
            }
        }
    }

    /// The next marker's code; what is before it, of data that no scan took, is skipped.
    fn marker(&mut self) -> Result<u8, VisionError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let found = rest.windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xFF));
        let at = found.ok_or_else(|| truncated("its end (EOI) is missing"))?;
        self.position += at + 2;
        Ok(rest[at + 1])
    }

    /// A segment without its length.
    fn segment(&mut self) -> Result<&'a [u8], VisionError> {
        let early = || truncated("it ends within a segment");
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let (length, _) = rest.split_first_chunk::<2>().ok_or_else(early)?;
        let length = usize::from(u16::from_be_bytes(*length));
        if length < 2 {
            return Err(corrupt("a segment is shorter than its length field"));
        }
        self.position += length;
        rest.get(2..length).ok_or_else(early)
    }

    fn huffman_tables(&mut self, mut segment: &[u8]) -> Result<(), VisionError> {
        while let [class, rest @ ..] = segment {
            let short = || corrupt("a Huffman table is too short");
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or_else(short)?;
            let symbols: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let (symbols, rest) = rest.split_at_checked(symbols).ok_or_else(short)?;
            let tables = match class >> 4 {
                0 => &mut self.dc_tables,
                1 => &mut self.ac_tables,
                _ => return Err(corrupt("a Huffman table of an unknown class")),
            };
            let table = tables.get_mut(usize::from(class & 15));
            let table = table.ok_or_else(|| corrupt("a Huffman table that is not 0 to 3"))?;
            *table = Some(HuffmanTable::new(counts, symbols)?);
            segment = rest;
        }
        Ok(())
    }

    fn quantisation_tables(&mut self, mut segment: &[u8]) -> Result<(), VisionError> {
        while let [kind, rest @ ..] = segment {
            let wide = match kind >> 4 {
                0 => false,
                1 => true,
                _ => return Err(corrupt("a quantisation table of an unknown precision")),
            };
            let short = || corrupt("a quantisation table is too short");
            let (steps, rest) = rest.split_at_checked(if wide { 128 } else { 64 }).ok_or_else(short)?;
            let mut table = [0; 64];
            for (index, &place) in ZIGZAG.iter().enumerate() {
                table[usize::from(place)] = match wide {
                    true => u16::from_be_bytes([steps[index * 2], steps[index * 2 + 1]]),
                    false => u16::from(steps[index]),
                };
            }
            let slot = self.quantisation.get_mut(usize::from(kind & 15));
            *slot.ok_or_else(|| corrupt("a quantisation table that is not 0 to 3"))? = Some(table);
            segment = rest;
        }
        Ok(())
    }

    fn scan(&mut self, segment: &[u8]) -> Result<Scan, VisionError> {
        self.scans += 1;
        if self.scans > MAX_SCANS {
            return Err(unsupported(format!("more than {MAX_SCANS} scans")));
        }
        let frame = self.frame.as_mut().ok_or_else(|| corrupt("a scan before the frame"))?;
        let [count, rest @ ..] = segment else { return Err(corrupt("its scan header is too short")) };
        let count = usize::from(*count);
        let (entries, spectral) =
            rest.split_at_checked(count * 2).ok_or_else(|| corrupt("its scan header is too short"))?;
        let &[start, end, approximation] = spectral else {
            return Err(corrupt("its scan header has a wrong length"));
        };
        if count == 0 || count > frame.components.len() {
            return Err(corrupt("a scan of too few or too many components"));
        }
        let mut components: Vec<ScanComponent> = Vec::new();
        for &[id, tables] in entries.as_chunks::<2>().0 {
            let index = frame.components.iter().position(|component| component.id == id);
            let index = index.ok_or_else(|| corrupt("a scan of a component that the frame lacks"))?;
            if components.iter().any(|component| component.index == index) {
                return Err(corrupt("a component is in a scan twice"));
            }
            let (dc_table, ac_table) = (usize::from(tables >> 4), usize::from(tables & 15));
            if dc_table > 3 || ac_table > 3 {
                return Err(corrupt("a scan's Huffman table that is not 0 to 3"));
            }
            components.push(ScanComponent { index, dc_table, ac_table });
        }
        let blocks: usize = components
            .iter()
            .map(|component| &frame.components[component.index])
            .map(|component| component.horizontal * component.vertical)
            .sum();
        if components.len() > 1 && blocks > 10 {
            return Err(corrupt("more than 10 blocks in an MCU"));
        }
        let band = if frame.progressive {
            Band::read(start, end, approximation, components.len())?
        } else {
            Band::WHOLE
        };
        for component in &components {
            let component = &mut frame.components[component.index];
            if component.quantisation.is_none() {
                let table = self.quantisation[component.table];
                component.quantisation =
                    Some(table.ok_or_else(|| corrupt("a quantisation table is missing"))?);
            }
        }
        Ok(Scan { components, band, data: self.position })
    }

    /// The frame, and what its components are: as libjpeg guesses it.
    pub(super) fn finish(&mut self) -> Result<(Frame, ColourSpace), VisionError> {
        let frame = self.frame.take().ok_or_else(|| corrupt("it has no frame"))?;
        let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        let space = match (ids.as_slice(), self.adobe_transform) {
            ([_], _) => ColourSpace::Grey,
            _ if self.has_jfif => ColourSpace::YCbCr,
            (_, Some(0)) => ColourSpace::Rgb,
            (_, Some(_)) => ColourSpace::YCbCr,
            (b"RGB", None) => ColourSpace::Rgb,
            _ => ColourSpace::YCbCr,
        };
        Ok((frame, space))
    }

    pub(super) fn orientation(&self) -> Orientation {
        Orientation::of(self.exif, self.xmp)
    }
}
