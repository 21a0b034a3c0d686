//! The block formats of ggml and how they decode to fp32, bit for bit as ggml decodes them.
//!
//! A block is a fixed number of consecutive elements of a row with their scales. The layouts are those of ggml's
//! `ggml-common.h`; in the `K` formats a super-block of 256 has 6-bit scales for sub-blocks of 32 (or 16).

use half::{bf16, f16};

/// For errors.
pub(crate) const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K";

/// Elements of a block of the older formats.
pub(super) const BLOCK: usize = 32;
/// Elements of a super-block.
pub(super) const SUPER_BLOCK: usize = 256;

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockType {
    /// By ggml's id. The error is the type's name.
    pub(crate) fn from_id(id: u32) -> Result<Self, String> {
        Ok(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::BF16,
            other => return Err(unsupported_name(other).map_or_else(|| other.to_string(), str::to_owned)),
        })
    }

    /// Elements of a block.
    pub(crate) fn elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => BLOCK,
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER_BLOCK,
        }
    }

    /// Bytes of a block.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 2 + 32,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q4K => 4 + 12 + 128,
            Self::Q5K => 4 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Decodes whole blocks: as many as `bytes` has, into as many elements of `out`.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => {
                blocks(bytes, out, |bytes: &[u8; 4], out: &mut [f32; 1]| *out = [f32::from_le_bytes(*bytes)])
            }
            Self::F16 => blocks(bytes, out, |bytes: &[u8; 2], out: &mut [f32; 1]| *out = [half(bytes, 0)]),
            Self::BF16 => blocks(bytes, out, |bytes: &[u8; 2], out: &mut [f32; 1]| {
                *out = [bf16::from_le_bytes(*bytes).to_f32()];
            }),
            Self::Q8_0 => blocks(bytes, out, q8_0),
            Self::Q4_0 => blocks(bytes, out, q4_0),
            Self::Q4_1 => blocks(bytes, out, q4_1),
            Self::Q5_0 => blocks(bytes, out, q5_0),
            Self::Q5_1 => blocks(bytes, out, q5_1),
            Self::Q4K => blocks(bytes, out, q4_k),
            Self::Q5K => blocks(bytes, out, q5_k),
            Self::Q6K => blocks(bytes, out, q6_k),
        }
    }
}

fn unsupported_name(id: u32) -> Option<&'static str> {
    Some(match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}

fn blocks<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

/// The fp16 number at byte `at`.
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q8_0(block: &[u8; 34], out: &mut [f32; BLOCK]) {
    let scale = half(block, 0);
    for (value, &quant) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(quant as i8) * scale;
    }
}

/// The low nibbles are the block's first half, the high ones its second.
fn q4_0(block: &[u8; 18], out: &mut [f32; BLOCK]) {
    let scale = half(block, 0);
    for (index, &quants) in block[2..].iter().enumerate() {
        out[index] = f32::from((quants & 0xF) as i8 - 8) * scale;
        out[index + BLOCK / 2] = f32::from((quants >> 4) as i8 - 8) * scale;
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; BLOCK]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (index, &quants) in block[4..].iter().enumerate() {
        out[index] = f32::from(quants & 0xF) * scale + minimum;
        out[index + BLOCK / 2] = f32::from(quants >> 4) * scale + minimum;
    }
}

/// The fifth bits of all elements, as one number, precede the nibbles.
fn q5_0(block: &[u8; 22], out: &mut [f32; BLOCK]) {
    let scale = half(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (index, &quants) in block[6..].iter().enumerate() {
        let (low_high, high_high) = fifth_bits(high, index);
        out[index] = f32::from((quants & 0xF | low_high) as i8 - 16) * scale;
        out[index + BLOCK / 2] = f32::from((quants >> 4 | high_high) as i8 - 16) * scale;
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; BLOCK]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (index, &quants) in block[8..].iter().enumerate() {
        let (low_high, high_high) = fifth_bits(high, index);
        out[index] = f32::from(quants & 0xF | low_high) * scale + minimum;
        out[index + BLOCK / 2] = f32::from(quants >> 4 | high_high) * scale + minimum;
    }
}

/// Bit 4 of element `index` of the first half, and of the second half.
pub(super) fn fifth_bits(high: u32, index: usize) -> (u8, u8) {
    let bit = |at: usize| ((high >> at) as u8 & 1) << 4;
    (bit(index), bit(index + BLOCK / 2))
}

/// Scale and minimum of sub-block `index` of 8, six bits each, of the twelve bytes that hold them.
pub(super) fn scale_and_minimum(packed: &[u8], index: usize) -> (f32, f32) {
    let (scale, minimum) = if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        (
            packed[index + 4] & 0xF | packed[index - 4] >> 6 << 4,
            packed[index + 4] >> 4 | packed[index] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(minimum))
}

fn q4_k(block: &[u8; 144], out: &mut [f32; SUPER_BLOCK]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let (packed, quants) = (&block[4..16], &block[16..]);
    for (index, sub_block) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sub_scale, sub_minimum) = scale_and_minimum(packed, index);
        let (scale, minimum) = (scale * sub_scale, minimum * sub_minimum);
        for (value, &quants) in sub_block.iter_mut().zip(&quants[index / 2 * 32..]) {
            *value = scale * f32::from(nibble(quants, index)) - minimum;
        }
    }
}

/// The low nibble belongs to even sub-blocks, the high one to odd ones.
pub(super) fn nibble(quants: u8, sub_block: usize) -> u8 {
    if sub_block.is_multiple_of(2) { quants & 0xF } else { quants >> 4 }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; SUPER_BLOCK]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let (packed, high, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (index, sub_block) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sub_scale, sub_minimum) = scale_and_minimum(packed, index);
        let (scale, minimum) = (scale * sub_scale, minimum * sub_minimum);
        for (column, value) in sub_block.iter_mut().enumerate() {
            let quant = nibble(quants[index / 2 * 32 + column], index) | (high[column] >> index & 1) << 4;
            *value = scale * f32::from(quant) - minimum;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; SUPER_BLOCK]) {
    let (scale, scales) = (half(block, 208), &block[192..208]);
    for (index, value) in out.iter_mut().enumerate() {
        *value = scale * f32::from(scales[index / 16] as i8) * f32::from(q6_k_quant(block, index));
    }
}

/// The integer of an element: each half of 128 has 64 bytes of low nibbles, 32 of high bit pairs and 8 scales.
pub(super) fn q6_k_quant(block: &[u8], index: usize) -> i8 {
    let (part, quarter, column) = (index / 128, index % 128 / 32, index % 32);
    let low = nibble(block[part * 64 + quarter % 2 * 32 + column], quarter / 2);
    let high = block[128 + part * 32 + column] >> (2 * quarter) & 3;
    (low | high << 4) as i8 - 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks and what gguf-py decodes them to, made by `tests/golden/make_golden.py`.
    #[test]
    fn blocks_decode_as_in_gguf_py_bit_for_bit() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/quantisation");
        let formats = [
            ("F16", BlockType::F16),
            ("BF16", BlockType::BF16),
            ("Q8_0", BlockType::Q8_0),
            ("Q4_0", BlockType::Q4_0),
            ("Q4_1", BlockType::Q4_1),
            ("Q5_0", BlockType::Q5_0),
            ("Q5_1", BlockType::Q5_1),
            ("Q4_K", BlockType::Q4K),
            ("Q5_K", BlockType::Q5K),
            ("Q6_K", BlockType::Q6K),
        ];
        for (name, format) in formats {
            let blocks = std::fs::read(format!("{folder}/{name}.blocks")).unwrap();
            let expected = std::fs::read(format!("{folder}/{name}.f32")).unwrap();
            let expected: Vec<u32> =
                expected.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
            assert_eq!(blocks.len() / format.bytes() * format.elements(), expected.len(), "{name}");
            let mut out = vec![f32::NAN; expected.len()];
            format.decode(&blocks, &mut out);
            for (index, (found, expected)) in out.iter().zip(expected).enumerate() {
                assert_eq!(
                    found.to_bits(),
                    expected,
                    "{name}[{index}] is {found}, not {}",
                    f32::from_bits(expected)
                );
            }
        }
    }
}
