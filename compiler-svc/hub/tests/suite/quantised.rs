//! Checkpoints whose weights other tools quantised. `tests/golden/make_quantised.py` made them with those tools'
//! libraries, and the numbers that they must decode to.

use std::path::PathBuf;

use roundhouse_backend::{QuantizedTensor, WeightSource};
use roundhouse_graph::{DType, Quantization, WeightFormat};
use roundhouse_hub::Checkpoint;
use serde_json::json;

use crate::checkpoint_files::{Files, folder, open, read, run, safetensors, small_files};
use crate::mutation::Random;

const UP: &str = "model.layers.0.mlp.up_proj.weight";

/// The files of a golden checkpoint, with those that every checkpoint needs.
pub(crate) fn golden(name: &str) -> Files {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quantised").join(name);
    let mut files = small_files();
    for file in ["config.json", "hf_quant_config.json", "model.safetensors"] {
        if let Ok(bytes) = std::fs::read(folder.join(file)) {
            files.insert(file.to_owned(), bytes);
        }
    }
    files
}

pub(crate) fn open_files(files: &Files) -> Result<Checkpoint, roundhouse_hub::HubError> {
    let (folder, cache) = (folder(files), tempfile::tempdir().unwrap());
    run(open(folder.path().to_str().unwrap(), cache.path()))
}

/// The weights that a golden checkpoint stands for.
fn expected(name: &str) -> Checkpoint {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let path = path.join("tests/golden/quantised").join(name).join("expected.safetensors");
    let mut files = small_files();
    files.insert("model.safetensors".to_owned(), std::fs::read(path).unwrap());
    open_files(&files).unwrap()
}

/// Columns that share a scale, whether there are offsets, the dtype of the scales.
type Described = Option<(WeightFormat, u32, bool, DType)>;

/// Each checkpoint, how its first weight is described, and what it lists beside its weights and the norm.
const CHECKPOINTS: [(&str, Described, &[&str]); 17] = {
    use DType::{F16, F32};
    use WeightFormat::{Fp8, Int4, Int8};
    [
        ("gptq_int4", Some((Int4, 32, false, F16)), &[]),
        ("gptq_int4_asymmetric", Some((Int4, 16, true, F32)), &[]),
        ("gptq_int4_asymmetric_v1", Some((Int4, 32, true, F32)), &[]),
        ("gptq_int4_act_order", None, &[]),
        ("gptq_int8", Some((Int8, 32, false, F16)), &[]),
        ("gptq_int8_whole_rows", Some((Int8, 64, true, F32)), &[]),
        ("awq_int4", Some((Int4, 32, true, F32)), &[]),
        ("compressed_int4", Some((Int4, 16, false, F16)), &[]),
        ("compressed_int4_asymmetric", Some((Int4, 16, true, F32)), &[]),
        ("compressed_int4_act_order", None, &[]),
        ("compressed_int8", Some((Int8, 64, false, F16)), &[]),
        ("compressed_int8_bytes", Some((Int8, 64, true, F32)), &[]),
        ("compressed_fp8", Some((Fp8, 64, false, F32)), &[]),
        ("compressed_fp8_channel", Some((Fp8, 64, false, F16)), &[]),
        ("compressed_fp8_block", Some((Fp8, 16, false, F32)), &[]),
        ("fp8_block", Some((Fp8, 32, false, F32)), &[]),
        ("modelopt_fp8", Some((Fp8, 64, false, F32)), &["lm_head.weight"]),
    ]
};

#[test]
fn weights_decode_to_exactly_what_the_tools_libraries_decode() {
    for (name, _, _) in CHECKPOINTS {
        let (checkpoint, expected) = (open_files(&golden(name)).unwrap(), expected(name));
        for weight in expected.names() {
            let shape = expected.shape(&weight).unwrap();
            assert_eq!(checkpoint.shape(&weight).unwrap(), shape, "{name} {weight}");
            let numbers = read(&expected, &weight);
            assert!(numbers.iter().any(|&number| number != 0.0));
            for at_once in [1, 5, shape[0]] {
                for first in (0..shape[0]).step_by(at_once as usize) {
                    let rows = first..shape[0].min(first + at_once);
                    let range = (rows.start * shape[1]) as usize..(rows.end * shape[1]) as usize;
                    let mut out = vec![f32::NAN; range.len()];
                    checkpoint.read_rows(&weight, rows.clone(), &mut out).unwrap();
                    assert_eq!(out, numbers[range], "{name} {weight}: rows {rows:?}");
                }
            }
        }
    }
}

#[test]
fn a_checkpoint_lists_what_a_model_reads_and_nothing_else() {
    for (name, _, others) in CHECKPOINTS {
        let checkpoint = open_files(&golden(name)).unwrap();
        let mut names = expected(name).names();
        names.extend(others.iter().map(|&other| other.to_owned()));
        names.push("model.norm.weight".to_owned());
        names.sort();
        assert_eq!(checkpoint.names(), names, "{name}");
        assert_eq!(read(&checkpoint, "model.norm.weight"), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(checkpoint.config, json!({"model_type": "llama"}), "{name}");
    }
}

#[test]
fn biases_of_zeros_are_not_listed_and_can_be_read() {
    let checkpoint = open_files(&golden("gptq_int4")).unwrap();
    assert_eq!(read(&checkpoint, "model.layers.0.mlp.up_proj.bias"), [0.0; 32]);
}

#[test]
fn weights_are_described_as_they_are_stored() {
    for (name, described, _) in CHECKPOINTS {
        let expected = described.map(|(format, group_size, has_offsets, scales_dtype)| QuantizedTensor {
            quantization: Quantization { format, group_size },
            has_offsets,
            scales_dtype,
        });
        let checkpoint = open_files(&golden(name)).unwrap();
        assert_eq!(checkpoint.quantized(UP), expected, "{name}");
        assert_eq!(checkpoint.quantized("model.norm.weight"), None);
        assert_eq!(checkpoint.quantized("missing"), None);
    }
}

/// The numbers that a byte holds, as the graph's documentation says.
fn numbers(format: WeightFormat, byte: u8) -> Vec<f32> {
    match format {
        WeightFormat::Int8 => vec![f32::from(byte as i8)],
        WeightFormat::Int4 => vec![f32::from(byte & 15) - 8.0, f32::from(byte >> 4) - 8.0],
        WeightFormat::Fp8 => {
            let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
            let magnitude = match exponent {
                0 => mantissa * 2.0_f32.powi(-9),
                _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
            };
            vec![if byte & 0x80 == 0 { magnitude } else { -magnitude }]
        }
    }
}

/// What the parts of a quantised weight come to.
fn product(source: &dyn WeightSource, name: &str, described: QuantizedTensor) -> Vec<f32> {
    let QuantizedTensor { quantization, .. } = described;
    let [values, scales, offsets] = [
        QuantizedTensor::values_of(name),
        QuantizedTensor::scales_of(name),
        QuantizedTensor::offsets_of(name),
    ]
    .map(|part| read(source, &part));
    assert_eq!(described.has_offsets, offsets.iter().any(|&offset| offset != 0.0));
    let numbers = values.iter().flat_map(|&byte| {
        assert!(byte.fract() == 0.0 && (0.0..=255.0).contains(&byte));
        numbers(quantization.format, byte as u8)
    });
    let group = |index: usize| index / quantization.group_size as usize;
    numbers.enumerate().map(|(index, number)| number * scales[group(index)] + offsets[group(index)]).collect()
}

#[test]
fn parts_of_a_quantised_weight_come_to_its_numbers() {
    for (name, described, _) in CHECKPOINTS {
        let (checkpoint, expected) = (open_files(&golden(name)).unwrap(), expected(name));
        for weight in expected.names() {
            let parts = [QuantizedTensor::values_of(&weight), QuantizedTensor::offsets_of(&weight)];
            let Some(described) = checkpoint.quantized(&weight) else {
                assert!(described.is_none());
                assert!(parts.iter().all(|part| checkpoint.shape(part).is_err()));
                continue;
            };
            let shape = expected.shape(&weight).unwrap();
            let Quantization { format, group_size } = described.quantization;
            let width = shape[1] * u64::from(format.bits()) / 8;
            assert_eq!(checkpoint.shape(&parts[0]).unwrap(), [shape[0], width]);
            assert_eq!(checkpoint.shape(&parts[1]).unwrap(), [shape[0], shape[1] / u64::from(group_size)]);
            assert_eq!(product(&checkpoint, &weight, described), read(&expected, &weight), "{name} {weight}");
        }
    }
}

#[test]
fn modules_of_experts_are_quantised_as_any_others() {
    let experts = ["block_sparse_moe.experts.0.w2", "mlp.experts.11.down_proj", "mlp.shared_expert.up_proj"];
    let int8 = json!({"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["re:.*gate$"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights":
            {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": true}}}});
    let fp8 = json!({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.3.mlp.gate"]});
    for (config, dtype, bytes, scales) in
        [(int8, "I8", [3_u8, 0xfe, 4, 5], &[2_u64, 1][..]), (fp8, "F8_E4M3", [0x38, 0xb8, 0x40, 0x30], &[])]
    {
        let numbers = if dtype == "I8" { [3.0, -2.0, 4.0, 5.0] } else { [1.0, -1.0, 2.0, 0.5] };
        let names = experts.map(|expert| format!("model.layers.3.{expert}.weight"));
        let scale_names = names.each_ref().map(|name| format!("{name}_scale"));
        let router = "model.layers.3.mlp.gate.weight";
        let halves = 0.5_f32.to_le_bytes().repeat(scales.iter().product::<u64>() as usize);
        let mut tensors = vec![(router, "F32", &[1_u64, 1][..], 7.0_f32.to_le_bytes().to_vec())];
        for (name, scale) in names.iter().zip(&scale_names) {
            tensors.push((name, dtype, &[2, 2], bytes.to_vec()));
            tensors.push((scale, "F32", scales, halves.clone()));
        }
        let mut files = small_files();
        let config = json!({"quantization_config": config});
        files.insert("config.json".to_owned(), serde_json::to_vec(&config).unwrap());
        files.insert("model.safetensors".to_owned(), safetensors(&tensors));
        let checkpoint = open_files(&files).unwrap();
        let mut listed = names.to_vec();
        listed.push(router.to_owned());
        listed.sort();
        assert_eq!(checkpoint.names(), listed, "{dtype}");
        for name in &names {
            assert_eq!(read(&checkpoint, name), numbers.map(|number| number * 0.5), "{name}");
        }
        assert_eq!(read(&checkpoint, router), [7.0]);
    }
}

#[test]
fn scales_are_said_to_be_f16_only_where_they_are() {
    let scale = |scale: f32| {
        let mut files = small_files();
        let config = json!({"quantization_config": {"quant_method": "fp8"}});
        files.insert("config.json".to_owned(), serde_json::to_vec(&config).unwrap());
        let tensors = [
            ("a.weight", "F8_E4M3", &[1, 2][..], vec![0x38, 0xb8]),
            ("a.weight_scale", "F32", &[], scale.to_le_bytes().to_vec()),
        ];
        files.insert("model.safetensors".to_owned(), safetensors(&tensors));
        let checkpoint = open_files(&files).unwrap();
        assert_eq!(read(&checkpoint, "a.weight"), [scale, -scale]);
        checkpoint.quantized("a.weight").unwrap().scales_dtype
    };
    assert_eq!(scale(0.25), DType::F16);
    assert_eq!(scale(0.1), DType::F32);
    assert_eq!(scale(1e-8), DType::F32);
    assert_eq!(scale(1e6), DType::F32);
}

#[test]
fn a_weight_of_many_blocks_decodes_across_them() {
    const COLUMNS: usize = 4096;
    const ROWS: usize = 2080;
    const GROUPS: usize = 2;
    let mut random = Random(3);
    let mut words = |count: usize| -> Vec<u32> { (0..count).map(|_| random.next() as u32).collect() };
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let (qweight, qzeros) = (words(COLUMNS / 8 * ROWS), words(GROUPS * ROWS / 8));
    let scales: Vec<f32> = words(GROUPS * ROWS).iter().map(|word| (word % 1000) as f32 / 1000.0).collect();
    let scale_bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let mut files = small_files();
    let config = json!({"quantization_config":
        {"quant_method": "gptq", "bits": 4, "group_size": 2048, "checkpoint_format": "gptq_v2"}});
    files.insert("config.json".to_owned(), serde_json::to_vec(&config).unwrap());
    let tensors = [
        ("a.qweight", "I32", &[COLUMNS as u64 / 8, ROWS as u64][..], bytes(&qweight)),
        ("a.qzeros", "I32", &[GROUPS as u64, ROWS as u64 / 8], bytes(&qzeros)),
        ("a.scales", "F32", &[GROUPS as u64, ROWS as u64], scale_bytes),
    ];
    files.insert("model.safetensors".to_owned(), safetensors(&tensors));
    let (folder, cache) = (folder(&files), tempfile::tempdir().unwrap());
    let checkpoint = run(open(folder.path().to_str().unwrap(), cache.path())).unwrap();
    let nibble = |word: u32, place: usize| (word >> (4 * place) & 15) as f32;
    let number = |row: usize, column: usize| {
        let group = column / 2048;
        let zero = nibble(qzeros[group * ROWS / 8 + row / 8], row % 8);
        (nibble(qweight[column / 8 * ROWS + row], column % 8) - zero) * scales[group * ROWS + row]
    };
    for rows in [0..1, 1000..1100, 2000..2080, 7..2079] {
        let mut out = vec![f32::NAN; rows.len() * COLUMNS];
        checkpoint.read_rows("a.weight", rows.start as u64..rows.end as u64, &mut out).unwrap();
        for (row, out) in rows.clone().zip(out.chunks(COLUMNS)) {
            assert!(
                (0..COLUMNS).map(|column| number(row, column)).eq(out.iter().copied()),
                "row {row} of {rows:?}"
            );
        }
    }
    assert!(checkpoint.read_rows("a.weight", 2080..2081, &mut vec![0.0; COLUMNS]).is_err());
    assert!(checkpoint.read_rows("a.weight.scales", 0..1, &mut [0.0; 3]).is_err());
}

#[test]
fn the_file_that_says_how_is_part_of_the_digest() {
    let digest = |files: &Files| open_files(files).unwrap().digest;
    let mut files = golden("modelopt_fp8");
    let before = digest(&files);
    files.get_mut("hf_quant_config.json").unwrap().push(b' ');
    assert_ne!(digest(&files), before);
}
