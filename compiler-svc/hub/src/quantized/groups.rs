//! Scales and zero points of a quantised weight.

use std::ops::Range;

use roundhouse_backend::{WeightError, WeightSource as _};

use super::codes::{AWQ_ORDER, words};
use super::index;
use crate::shards::SafetensorsWeights;

/// Which column uses which scale of its row.
#[derive(Debug)]
pub(super) enum Columns {
    /// So many columns after each other.
    Contiguous(u64),
    /// The group of each column.
    Indexed(Vec<u32>),
}

impl Columns {
    /// The group of a column.
    pub(super) fn group(&self, column: usize) -> usize {
        match self {
            Self::Contiguous(size) => column / index(*size),
            Self::Indexed(groups) => groups.get(column).map_or(0, |&group| index(u64::from(group))),
        }
    }
}

/// Where the scales of a matrix are.
#[derive(Debug)]
pub(super) struct Scales {
    /// The tensor.
    pub(super) tensor: String,
    /// How it is laid out.
    pub(super) order: Order,
}

/// How a table of one number for each row and group is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// `[⌈N / height⌉, groups]`: so many rows share theirs.
    Rows {
        /// How many.
        height: u64,
    },
    /// `[groups, N]`.
    Groups,
}

impl Scales {
    /// The scales `[rows, groups]` of rows of a matrix of `all_rows`.
    pub(super) fn read(
        &self,
        weights: &SafetensorsWeights,
        [all_rows, groups]: [u64; 2],
        rows: &Range<u64>,
    ) -> Result<Vec<f32>, WeightError> {
        let count = rows.end - rows.start;
        let mut scales = vec![0.0; index(count * groups)];
        match self.order {
            Order::Rows { height: 1 } => {
                weights.read_elements(&self.tensor, rows.start * groups, &mut scales)?;
            }
            Order::Rows { height } => {
                for (row, scales) in rows.clone().zip(scales.chunks_exact_mut(index(groups))) {
                    weights.read_elements(&self.tensor, row / height * groups, scales)?;
                }
            }
            Order::Groups => {
                let mut line = vec![0.0; index(count)];
                for group in 0..groups {
                    weights.read_elements(&self.tensor, group * all_rows + rows.start, &mut line)?;
                    scatter(&mut scales, groups, group, line.iter().copied());
                }
            }
        }
        Ok(scales)
    }
}

/// Where the zero points of a matrix are, if any is not zero.
#[derive(Debug)]
pub(super) enum Zeros {
    /// In two's complement, a byte each.
    Bytes {
        /// The tensor.
        tensor: String,
        /// As of the scales.
        height: u64,
    },
    /// Biased and packed down the rows, lowest bits first: `[⌈N · bits / 32⌉, groups]` words.
    AlongRows {
        /// The tensor.
        tensor: String,
        /// 4 or 8.
        bits: u32,
    },
    /// Biased and packed: `[groups, ⌈N · bits / 32⌉]` words.
    Groups {
        /// The tensor.
        tensor: String,
        /// 4 or 8.
        bits: u32,
        /// Which row a place of a word holds.
        packing: Packing,
    },
}

/// The order of zero points in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Lowest bits first.
    Plain,
    /// Lowest bits first, and stored less one, modulo what the bits hold.
    LessOne,
    /// Nibbles in AWQ's order.
    Awq,
}

impl Zeros {
    /// The zero points `[rows, groups]` of rows of a matrix of `all_rows`, on the scale of its codes. The first row is a
    /// multiple of 8.
    pub(super) fn read(
        &self,
        weights: &SafetensorsWeights,
        [all_rows, groups]: [u64; 2],
        rows: &Range<u64>,
    ) -> Result<Vec<f32>, WeightError> {
        let count = index(rows.end - rows.start);
        let mut zeros = vec![0.0; count * index(groups)];
        match self {
            Self::Bytes { tensor, height } => {
                let mut line = vec![0; index(groups)];
                for (row, zeros) in rows.clone().zip(zeros.chunks_exact_mut(index(groups))) {
                    weights.read_bytes(tensor, row / height * groups, &mut line)?;
                    for (zero, byte) in zeros.iter_mut().zip(&line) {
                        *zero = f32::from(byte.cast_signed());
                    }
                }
            }
            Self::AlongRows { tensor, bits } => {
                let in_word = index(u64::from(32 / bits));
                let mut line = vec![0; index(groups * 4)];
                let first = rows.start * u64::from(*bits) / 32;
                for (word, zeros) in (first..).zip(zeros.chunks_mut(in_word * index(groups))) {
                    weights.read_bytes(tensor, word * groups * 4, &mut line)?;
                    for (place, zeros) in zeros.chunks_exact_mut(index(groups)).enumerate() {
                        for (zero, word) in zeros.iter_mut().zip(line.chunks_exact(4)) {
                            *zero = unbiased(code(word, *bits, place), *bits);
                        }
                    }
                }
            }
            Self::Groups { tensor, bits, packing } => {
                let in_word = index(u64::from(32 / bits));
                let mut line = vec![0; index(words(rows.end - rows.start, *bits) * 4)];
                for group in 0..groups {
                    let first = group * words(all_rows, *bits) + rows.start * u64::from(*bits) / 32;
                    weights.read_bytes(tensor, first * 4, &mut line)?;
                    let numbers = (0..count).map(|row| {
                        let word = &line[row / in_word * 4..][..4];
                        unbiased(packing.code(word, *bits, row % in_word), *bits)
                    });
                    scatter(&mut zeros, groups, group, numbers);
                }
            }
        }
        Ok(zeros)
    }
}

impl Packing {
    /// The zero point of row `row` of those that a word holds, with its bias.
    fn code(self, word: &[u8], bits: u32, row: usize) -> u8 {
        match self {
            Self::Plain => code(word, bits, row),
            Self::LessOne => code(word, bits, row).wrapping_add(1) & mask(bits),
            Self::Awq => {
                let place = AWQ_ORDER.iter().position(|&column| column == row).unwrap_or(0);
                code(word, bits, place)
            }
        }
    }
}

/// Puts the numbers of one group, a row each, into a table `[rows, groups]`.
fn scatter(table: &mut [f32], groups: u64, group: u64, numbers: impl Iterator<Item = f32>) {
    for (row, number) in table.chunks_exact_mut(index(groups)).zip(numbers) {
        row[index(group)] = number;
    }
}

/// What all bits together hold.
fn mask(bits: u32) -> u8 {
    if bits == 4 { 15 } else { 255 }
}

/// Place `place` of a little-endian word, lowest bits first.
fn code(word: &[u8], bits: u32, place: usize) -> u8 {
    if bits == 4 { word[place / 2] >> (place % 2 * 4) & 15 } else { word[place] }
}

fn unbiased(code: u8, bits: u32) -> f32 {
    f32::from(code) - if bits == 4 { 8.0 } else { 128.0 }
}
