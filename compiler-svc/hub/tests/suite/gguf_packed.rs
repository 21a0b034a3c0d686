//! GGUF tensors whose integers a graph can compute with. The blocks are those of `tests/golden`, which gguf-py made and
//! decoded.

use roundhouse_backend::{QuantizedTensor, WeightSource, quantized_number};
use roundhouse_graph::{DType, WeightFormat};

use crate::checkpoint_files::read;
use crate::gguf_file::open_gguf;
use crate::gguf_files::Gguf;
use crate::gguf_reference::{gemma3, smollm2};

const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
const UP: &str = "model.layers.0.mlp.up_proj.weight";

/// ggml's id of a format, elements and bytes of its blocks, and how its matrices are described.
type Format = (&'static str, u32, usize, usize, (WeightFormat, u32, bool, DType));

const FORMATS: [Format; 8] = {
    use DType::{F16, F32};
    use WeightFormat::{Int4, Int8};
    [
        ("Q4_0", 2, 32, 18, (Int4, 32, false, F16)),
        ("Q4_1", 3, 32, 20, (Int4, 32, true, F32)),
        ("Q5_0", 6, 32, 22, (Int8, 32, false, F16)),
        ("Q5_1", 7, 32, 24, (Int8, 32, true, F32)),
        ("Q8_0", 8, 32, 34, (Int8, 32, false, F16)),
        ("Q4_K", 12, 256, 144, (Int4, 32, true, F32)),
        ("Q5_K", 13, 256, 176, (Int8, 32, true, F32)),
        ("Q6_K", 14, 256, 210, (Int8, 16, false, F32)),
    ]
};

/// Golden blocks, over and over, as a matrix of this many rows of two blocks.
fn blocks(name: &str, block_bytes: usize, rows: usize) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/quantisation");
    let golden = std::fs::read(format!("{folder}/{name}.blocks")).unwrap();
    golden.chunks_exact(block_bytes).cycle().take(rows * 2).flatten().copied().collect()
}

/// A llama of two heads whose query projection and up projection are of this format, eight rows of two blocks.
fn packed(&(name, id, elements, bytes, _): &Format) -> Gguf {
    let mut file = Gguf::tiny();
    let dimensions = [2 * elements as u64, 8];
    file.tensors.retain(|tensor| tensor.name != "blk.0.attn_q.weight");
    for stem in ["attn_q", "ffn_up"] {
        let tensor = file.tensor(&format!("blk.0.{stem}.weight"), &dimensions);
        (tensor.kind, tensor.data) = (id, blocks(name, bytes, 8));
    }
    file
}

/// What the parts of a matrix come to, and the offset of each number.
fn product(source: &dyn WeightSource, name: &str, described: QuantizedTensor) -> Vec<(f32, f32)> {
    let names = [QuantizedTensor::values_of, QuantizedTensor::scales_of, QuantizedTensor::offsets_of];
    let [values, scales, offsets] = names.map(|part| read(source, &part(name)));
    let codes = values.iter().flat_map(|&value| {
        assert!(value.fract() == 0.0 && (0.0..=255.0).contains(&value));
        match described.quantization.format {
            WeightFormat::Int4 => vec![value as u8 & 15, value as u8 >> 4],
            _ => vec![value as u8],
        }
    });
    let group = |index: usize| index / described.quantization.group_size as usize;
    let number = |code| quantized_number(described.quantization.format, code);
    let products = codes.enumerate().map(|(index, code)| {
        let (scale, offset) = (scales[group(index)], offsets[group(index)]);
        (number(code) * scale + offset, offset)
    });
    products.collect()
}

fn assert_product(source: &dyn WeightSource, name: &str, described: QuantizedTensor) {
    let expected = read(source, name);
    let found = product(source, name, described);
    assert_eq!(found.len(), expected.len());
    // A nibble's offset makes up for its −8: it and the sum are rounded once each.
    let rounded = described.has_offsets && described.quantization.format == WeightFormat::Int4;
    for (index, ((found, offset), expected)) in found.into_iter().zip(expected).enumerate() {
        let allowed = if rounded { f32::EPSILON / 2.0 * (offset.abs() + expected.abs()) } else { 0.0 };
        assert!((found - expected).abs() <= allowed, "{name}[{index}]: {found} {expected}");
    }
}

#[test]
fn parts_come_to_the_decoded_matrix_in_every_format() {
    for format in &FORMATS {
        let (name, .., (bits, group_size, has_offsets, scales_dtype)) = *format;
        let checkpoint = open_gguf(&packed(format)).unwrap();
        for weight in [QUERY, UP] {
            let described = checkpoint.quantized(weight).unwrap();
            let quantization = described.quantization;
            assert_eq!(
                (quantization.format, quantization.group_size, described.has_offsets, described.scales_dtype),
                (bits, group_size, has_offsets, scales_dtype),
                "{name}"
            );
            let [rows, columns] = checkpoint.shape(weight).unwrap()[..] else { panic!("no matrix") };
            let shape = |part: fn(&str) -> String| checkpoint.shape(&part(weight)).unwrap();
            let width = columns * u64::from(bits.bits()) / 8;
            assert_eq!(shape(QuantizedTensor::values_of), [rows, width]);
            assert_eq!(shape(QuantizedTensor::scales_of), [rows, columns / u64::from(group_size)]);
            assert_eq!(shape(QuantizedTensor::offsets_of), shape(QuantizedTensor::scales_of));
            assert_product(&checkpoint, weight, described);
        }
        assert!(!checkpoint.names().iter().any(|name| name.ends_with(".values")));
    }
}

#[test]
fn parts_of_published_models_come_to_their_weights() {
    // Files of one format and of several.
    for ((_cache, checkpoint), expected) in [(smollm2(), 2 * 7), (gemma3(), 2 * 7)] {
        let mut compared = 0;
        for name in checkpoint
            .names()
            .iter()
            .filter(|name| ["layers.0.", "layers.9."].iter().any(|layer| name.contains(layer)))
        {
            let Some(described) = checkpoint.quantized(name) else { continue };
            assert_product(&checkpoint, name, described);
            compared += 1;
        }
        assert_eq!(compared, expected);
    }
}

#[test]
fn rows_of_parts_are_those_of_the_matrix() {
    for format in &FORMATS {
        let checkpoint = open_gguf(&packed(format)).unwrap();
        for weight in [QUERY, UP] {
            for part in [QuantizedTensor::values_of, QuantizedTensor::scales_of, QuantizedTensor::offsets_of]
            {
                let name = part(weight);
                let width = checkpoint.shape(&name).unwrap()[1] as usize;
                let all = read(&checkpoint, &name);
                for rows in [0..1, 3..4, 2..7, 5..5, 0..8] {
                    let mut out = vec![f32::NAN; rows.len() * width];
                    checkpoint.read_rows(&name, rows.start as u64..rows.end as u64, &mut out).unwrap();
                    assert_eq!(out, all[rows.start * width..rows.end * width], "{name} {rows:?}");
                }
                assert!(checkpoint.read_rows(&name, 7..9, &mut vec![0.0; 2 * width]).is_err());
                assert!(checkpoint.read_rows(&name, 0..1, &mut vec![0.0; width + 1]).is_err());
            }
        }
    }
}

#[test]
fn rows_of_heads_go_back_to_halves_in_every_part() {
    let checkpoint = open_gguf(&packed(&FORMATS[0])).unwrap();
    for part in [QuantizedTensor::values_of, QuantizedTensor::scales_of] {
        let [query, up] = [QUERY, UP].map(|weight| read(&checkpoint, &part(weight)));
        let width = query.len() / 8;
        // The up projection has the same rows, as the file has them.
        for (row, stored) in [0, 2, 1, 3, 4, 6, 5, 7].into_iter().enumerate() {
            assert_eq!(query[row * width..][..width], up[stored * width..][..width], "row {row}");
        }
        assert_ne!(query, up);
    }
}

#[test]
fn what_is_no_matrix_of_integers_has_no_parts() {
    let checkpoint = open_gguf(&packed(&FORMATS[0])).unwrap();
    for name in ["model.embed_tokens.weight", "model.norm.weight", "missing"] {
        assert_eq!(checkpoint.quantized(name), None, "{name}");
        assert!(checkpoint.shape(&QuantizedTensor::values_of(name)).is_err(), "{name}");
    }
}

#[test]
fn transposed_matrices_have_no_parts() {
    let mut file = Gguf::tiny();
    for (key, _) in &mut file.pairs {
        *key = key.replace("llama.", "gpt2.");
    }
    file.set("general.architecture", "gpt2");
    file.set("gpt2.attention.layer_norm_epsilon", crate::gguf_files::Value::F32(1e-5));
    file.tensors.retain(|tensor| !tensor.name.starts_with("blk."));
    let tensor = file.tensor("blk.0.ffn_up.weight", &[64, 32]);
    (tensor.kind, tensor.data) = (8, blocks("Q8_0", 34, 32));
    let checkpoint = open_gguf(&file).unwrap();
    let name = "transformer.h.0.mlp.c_fc.weight";
    assert_eq!(checkpoint.shape(name).unwrap(), [64, 32]);
    assert_eq!(checkpoint.quantized(name), None);
    assert!(checkpoint.shape(&QuantizedTensor::scales_of(name)).is_err());
}
