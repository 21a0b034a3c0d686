//! The integers of a quantised weight, wherever a tool packed them.

use std::ops::Range;

use roundhouse_backend::WeightError;

use super::index;
use crate::shards::SafetensorsWeights;

/// Which column of eight a nibble of an AWQ word holds, lowest nibble first.
pub(super) const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Lines of a tensor that are read before they are turned, so that turning writes runs of bytes.
const LINES: u64 = 64;

/// Where the integers of a matrix `[N, K]` are. A code is a byte for each: two's complement of 8 bits, a nibble plus
/// 8, or E4M3.
#[derive(Debug)]
pub(super) enum Codes {
    /// A byte each, `[N, K]`.
    Bytes {
        /// The tensor.
        tensor: String,
    },
    /// Biased and packed along rows, lowest bits first: `[N, ⌈K · bits / 32⌉]` words.
    AlongRows {
        /// The tensor.
        tensor: String,
        /// 4 or 8.
        bits: u32,
    },
    /// Biased and packed along columns, lowest bits first: `[⌈K · bits / 32⌉, N]` words.
    AlongColumns {
        /// The tensor.
        tensor: String,
        /// 4 or 8.
        bits: u32,
    },
    /// Biased nibbles of the transposed matrix, packed in [`AWQ_ORDER`]: `[K, N / 8]` words.
    Awq {
        /// The tensor.
        tensor: String,
    },
}

impl Codes {
    /// The codes of rows of a matrix of shape `[rows, columns]`, row-major. The first row is a multiple of 8.
    pub(super) fn read(
        &self,
        weights: &SafetensorsWeights,
        shape: [u64; 2],
        rows: &Range<u64>,
    ) -> Result<Vec<u8>, WeightError> {
        let [_, columns] = shape;
        let count = rows.end - rows.start;
        let mut codes = vec![0; index(count * columns)];
        match self {
            Self::Bytes { tensor } => weights.read_bytes(tensor, rows.start * columns, &mut codes)?,
            Self::AlongRows { tensor, bits } => {
                let row_bytes = words(columns, *bits) * 4;
                let mut packed = vec![0; index(row_bytes)];
                for (row, codes) in rows.clone().zip(codes.chunks_exact_mut(index(columns))) {
                    weights.read_bytes(tensor, row * row_bytes, &mut packed)?;
                    unpack(&packed, *bits, codes);
                }
            }
            Self::AlongColumns { tensor, bits } => {
                along_columns(weights, tensor, *bits, shape, rows, &mut codes)?;
            }
            Self::Awq { tensor } => awq(weights, tensor, shape, rows, &mut codes)?,
        }
        Ok(codes)
    }
}

/// Words that hold so many codes.
pub(super) fn words(codes: u64, bits: u32) -> u64 {
    (codes * u64::from(bits)).div_ceil(32)
}

/// Unpacks little-endian words, lowest bits first. Integers of 8 bits lose their bias.
pub(super) fn unpack(packed: &[u8], bits: u32, codes: &mut [u8]) {
    if bits == 4 {
        for (pair, byte) in codes.chunks_mut(2).zip(packed) {
            for (code, nibble) in pair.iter_mut().zip([byte & 15, byte >> 4]) {
                *code = nibble;
            }
        }
    } else {
        for (code, byte) in codes.iter_mut().zip(packed) {
            *code = byte ^ 0x80;
        }
    }
}

fn along_columns(
    weights: &SafetensorsWeights,
    tensor: &str,
    bits: u32,
    [all_rows, columns]: [u64; 2],
    rows: &Range<u64>,
    codes: &mut [u8],
) -> Result<(), WeightError> {
    let mut line = vec![0; index((rows.end - rows.start) * 4)];
    let in_word = index(u64::from(32 / bits));
    for word in 0..words(columns, bits) {
        weights.read_bytes(tensor, (word * all_rows + rows.start) * 4, &mut line)?;
        let first = index(word) * in_word;
        for (packed, codes) in line.chunks_exact(4).zip(codes.chunks_exact_mut(index(columns))) {
            let last = codes.len().min(first + in_word);
            unpack(packed, bits, &mut codes[first..last]);
        }
    }
    Ok(())
}

fn awq(
    weights: &SafetensorsWeights,
    tensor: &str,
    [all_rows, columns]: [u64; 2],
    rows: &Range<u64>,
    codes: &mut [u8],
) -> Result<(), WeightError> {
    let line_bytes = index((rows.end - rows.start) / 2);
    let mut lines = vec![0; line_bytes * index(LINES.min(columns))];
    for first in (0..columns).step_by(index(LINES)) {
        let count = LINES.min(columns - first);
        for (column, line) in (first..first + count).zip(lines.chunks_exact_mut(line_bytes.max(1))) {
            weights.read_bytes(tensor, (column * all_rows + rows.start) / 2, line)?;
        }
        let first = index(first);
        for (row, codes) in codes.chunks_exact_mut(index(columns)).enumerate() {
            let (word, lane) = (row / 8, row % 8);
            let slot = AWQ_ORDER.iter().position(|&column| column == lane).unwrap_or(0);
            let lines = lines.chunks_exact(line_bytes.max(1));
            for (code, line) in codes[first..first + index(count)].iter_mut().zip(lines) {
                *code = line[word * 4 + slot / 2] >> (slot % 2 * 4) & 15;
            }
        }
    }
    Ok(())
}
