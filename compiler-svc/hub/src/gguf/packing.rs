//! The block formats of ggml as the parts of a quantised matrix, so that a graph can compute with the integers.
//!
//! Formats of four bits stay nibbles; those of five and six become bytes, whose steps are the same.

use roundhouse_backend::QuantizedTensor;
use roundhouse_graph::{DType, Quantization, WeightFormat};

use super::quantisation::{
    BLOCK, BlockType, SUPER_BLOCK, fifth_bits, half, nibble, q6_k_quant, scale_and_minimum,
};
use crate::quantized::Part;

impl BlockType {
    /// How a matrix of such blocks is described; `None` for formats without integers.
    pub(super) fn packing(self) -> Option<QuantizedTensor> {
        let (format, group_size, has_offsets) = match self {
            Self::F32 | Self::F16 | Self::BF16 => return None,
            Self::Q8_0 | Self::Q5_0 => (WeightFormat::Int8, 32, false),
            Self::Q4_0 => (WeightFormat::Int4, 32, false),
            Self::Q4_1 | Self::Q4K => (WeightFormat::Int4, 32, true),
            Self::Q5_1 | Self::Q5K => (WeightFormat::Int8, 32, true),
            Self::Q6K => (WeightFormat::Int8, 16, false),
        };
        // The scale of a sub-block is a product, which takes more bits than f16 has.
        let scales_dtype = if has_offsets || self == Self::Q6K { DType::F32 } else { DType::F16 };
        let quantization = Quantization { format, group_size };
        Some(QuantizedTensor { quantization, has_offsets, scales_dtype })
    }

    /// How many numbers a block has of a part; `None` where it has not the part.
    pub(super) fn part_width(self, part: Part) -> Option<usize> {
        let quantization = self.packing()?.quantization;
        Some(match part {
            Part::Decoded => self.elements(),
            Part::Values => self.elements() * quantization.format.bits() as usize / 8,
            Part::Scales | Part::Offsets => self.elements() / quantization.group_size as usize,
        })
    }

    /// A part of whole blocks: of as many as `bytes` has, into [`BlockType::part_width`] numbers each.
    pub(super) fn decode_part(self, part: Part, bytes: &[u8], out: &mut [f32]) {
        let Some(width) = self.part_width(part) else { return };
        for (block, out) in bytes.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(width)) {
            match part {
                Part::Decoded => self.decode(block, out),
                Part::Values => self.values(block, out),
                Part::Scales => {
                    out.iter_mut().enumerate().for_each(|(group, out)| *out = self.group(block, group).0);
                }
                Part::Offsets => {
                    out.iter_mut().enumerate().for_each(|(group, out)| *out = self.group(block, group).1);
                }
            }
        }
    }

    /// The bytes of a block as numbers.
    fn values(self, block: &[u8], out: &mut [f32]) {
        let byte = |element| self.code(block, element);
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => {
                for (index, out) in out.iter_mut().enumerate() {
                    *out = f32::from(byte(2 * index) | byte(2 * index + 1) << 4);
                }
            }
            _ => out.iter_mut().enumerate().for_each(|(index, out)| *out = f32::from(byte(index))),
        }
    }

    /// The code of an element: a nibble, or a byte in two's complement.
    fn code(self, block: &[u8], element: usize) -> u8 {
        /// The nibble of an element of an older format: the low ones are the block's first half.
        fn halves(quants: &[u8], element: usize) -> u8 {
            nibble(quants[element % (BLOCK / 2)], element / (BLOCK / 2))
        }
        /// The fifth bit of an element of an older format.
        fn fifth(high: &[u8], element: usize) -> u8 {
            let high = high.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
            let (first, second) = fifth_bits(high, element % (BLOCK / 2));
            if element < BLOCK / 2 { first } else { second }
        }
        let (sub_block, column) = (element / 32, element % 32);
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 0,
            Self::Q8_0 => block[2 + element],
            Self::Q4_0 => halves(&block[2..], element),
            Self::Q4_1 => halves(&block[4..], element),
            Self::Q5_0 => (halves(&block[6..], element) | fifth(&block[2..], element)).wrapping_sub(16),
            Self::Q5_1 => halves(&block[8..], element) | fifth(&block[4..], element),
            Self::Q4K => nibble(block[16 + sub_block / 2 * 32 + column], sub_block),
            Self::Q5K => {
                let high = block[16 + column] >> sub_block & 1;
                nibble(block[48 + sub_block / 2 * 32 + column], sub_block) | high << 4
            }
            Self::Q6K => q6_k_quant(block, element).cast_unsigned(),
        }
    }

    /// Scale and offset of a group. A nibble of zero stands for −8, which the offsets of four bits make up for.
    fn group(self, block: &[u8], group: usize) -> (f32, f32) {
        let number = |at: usize| half(block, at);
        let sub_block = || {
            let (scale, minimum) = scale_and_minimum(&block[4..16], group);
            (number(0) * scale, number(2) * minimum)
        };
        match self {
            Self::F32 | Self::F16 | Self::BF16 => (1.0, 0.0),
            Self::Q8_0 | Self::Q4_0 | Self::Q5_0 => (number(0), 0.0),
            Self::Q4_1 => (number(0), 8.0 * number(0) + number(2)),
            Self::Q5_1 => (number(0), number(2)),
            Self::Q4K => {
                let (scale, minimum) = sub_block();
                (scale, 8.0 * scale - minimum)
            }
            Self::Q5K => {
                let (scale, minimum) = sub_block();
                (scale, -minimum)
            }
            Self::Q6K => {
                let scales = &block[SUPER_BLOCK * 3 / 4..];
                (number(SUPER_BLOCK * 3 / 4 + 16) * f32::from(scales[group].cast_signed()), 0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_backend::quantized_number;

    use super::*;

    const FORMATS: [(&str, BlockType); 8] = [
        ("Q8_0", BlockType::Q8_0),
        ("Q4_0", BlockType::Q4_0),
        ("Q4_1", BlockType::Q4_1),
        ("Q5_0", BlockType::Q5_0),
        ("Q5_1", BlockType::Q5_1),
        ("Q4_K", BlockType::Q4K),
        ("Q5_K", BlockType::Q5K),
        ("Q6_K", BlockType::Q6K),
    ];

    /// Blocks and what gguf-py decodes them to, made by `tests/golden/make_golden.py`.
    fn golden(name: &str) -> (Vec<u8>, Vec<f32>) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/quantisation");
        let read = |kind: &str| std::fs::read(format!("{folder}/{name}.{kind}")).unwrap();
        let numbers = read("f32").as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (read("blocks"), numbers)
    }

    #[test]
    fn parts_come_to_what_gguf_py_decodes() {
        for (name, kind) in FORMATS {
            let (blocks, expected) = golden(name);
            let count = blocks.len() / kind.bytes();
            let [values, scales, offsets] = [Part::Values, Part::Scales, Part::Offsets].map(|part| {
                let mut out = vec![f32::NAN; count * kind.part_width(part).unwrap()];
                kind.decode_part(part, &blocks, &mut out);
                out
            });
            let packing = kind.packing().unwrap();
            let Quantization { format, group_size } = packing.quantization;
            let codes = values.iter().flat_map(|&value| match format {
                WeightFormat::Int4 => vec![value as u8 & 15, value as u8 >> 4],
                _ => vec![value as u8],
            });
            assert_eq!(offsets.iter().any(|&offset| offset != 0.0), packing.has_offsets, "{name}");
            let mut compared = 0;
            for (index, (code, expected)) in codes.zip(&expected).enumerate() {
                let (scale, offset) =
                    (scales[index / group_size as usize], offsets[index / group_size as usize]);
                let product = quantized_number(format, code) * scale;
                let found = if packing.has_offsets { product + offset } else { product };
                // Where a nibble's offset makes up for −8, it and the sum are rounded once each.
                let rounded = packing.has_offsets && format == WeightFormat::Int4;
                let allowed =
                    if rounded { f32::EPSILON / 2.0 * (offset.abs() + expected.abs()) } else { 0.0 };
                assert!((found - expected).abs() <= allowed, "{name}[{index}] is {found}, not {expected}");
                compared += 1;
            }
            assert_eq!(compared, expected.len(), "{name}");
        }
    }

    #[test]
    fn scales_of_16_bits_are_exact_in_f16() {
        for (name, kind) in FORMATS {
            let (blocks, _) = golden(name);
            let mut scales = vec![0.0; blocks.len() / kind.bytes() * kind.part_width(Part::Scales).unwrap()];
            kind.decode_part(Part::Scales, &blocks, &mut scales);
            let exact = scales.iter().all(|&scale| half::f16::from_f32(scale).to_f32() == scale);
            assert!(exact || kind.packing().unwrap().scales_dtype == DType::F32, "{name}");
        }
    }
}
