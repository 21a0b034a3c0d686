//! Quantised checkpoints whose tensors do not fit each other, and configs that ask for what is not there.

use roundhouse_backend::WeightSource;
use roundhouse_hub::{HubError, Unwatched};
use serde_json::{Value, json};

use crate::checkpoint_files::{config, folder, run, safetensors, small_files};
use crate::mutation::{Random, peak_address_space};
use crate::quantised::{golden, open_files};

/// Name, dtype, shape; zeros.
type Tensor = (&'static str, &'static str, &'static [u64]);

fn open(quantization: &Value, tensors: &[Tensor]) -> Result<(), HubError> {
    open_with(quantization, tensors, &[])
}

/// Opens it with other bytes than zeros in some tensors, and reads all of it.
fn open_with(quantization: &Value, tensors: &[Tensor], contents: &[(&str, Vec<u8>)]) -> Result<(), HubError> {
    let width = |dtype: &str| match dtype {
        "I64" => 8,
        "I32" | "F32" => 4,
        "F16" | "BF16" => 2,
        _ => 1,
    };
    let with_bytes: Vec<(&str, &str, &[u64], Vec<u8>)> = tensors
        .iter()
        .map(|&(name, dtype, shape)| {
            let zeros = || vec![0; (shape.iter().product::<u64>() * width(dtype)) as usize];
            let content = contents.iter().find(|(other, _)| *other == name);
            (name, dtype, shape, content.map_or_else(zeros, |(_, bytes)| bytes.clone()))
        })
        .collect();
    let mut files = small_files();
    let config = json!({"model_type": "llama", "quantization_config": quantization});
    files.insert("config.json".to_owned(), serde_json::to_vec(&config).unwrap());
    files.insert("model.safetensors".to_owned(), safetensors(&with_bytes));
    open_files(&files).map(|_| ())
}

/// Asserts that it is refused as broken, with this in the message.
fn assert_broken(result: Result<(), HubError>, what: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, HubError::Corrupt { .. }) && error.to_string().contains(what), "{what}: {error}");
}

/// The good tensors with one replaced.
fn with(tensors: &[Tensor], replaced: Tensor) -> Vec<Tensor> {
    tensors.iter().map(|&tensor| if tensor.0 == replaced.0 { replaced } else { tensor }).collect()
}

fn without(tensors: &[Tensor], name: &str) -> Vec<Tensor> {
    tensors.iter().copied().filter(|tensor| tensor.0 != name).collect()
}

#[test]
fn gptq_tensors_that_do_not_fit_are_refused() {
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 16});
    let good: [Tensor; 4] = [
        ("a.qweight", "I32", &[4, 8]),
        ("a.qzeros", "I32", &[2, 1]),
        ("a.scales", "F16", &[2, 8]),
        ("a.g_idx", "I32", &[32]),
    ];
    open(&config, &good).unwrap();
    open(&config, &without(&good, "a.g_idx")).unwrap();
    let cases: [(Tensor, &str); 11] = [
        (("a.qweight", "I32", &[5, 8]), "5 words a row"),
        (("a.qweight", "I32", &[32]), "expected a matrix"),
        (("a.qweight", "I32", &[0, 8]), "empty"),
        (("a.qweight", "F32", &[4, 8]), "F32"),
        (("a.qzeros", "I32", &[2, 2]), "\"a.qzeros\""),
        (("a.qzeros", "I32", &[1, 1]), "\"a.qzeros\""),
        (("a.scales", "F16", &[3, 8]), "groups of 16 of 32 columns"),
        (("a.scales", "F16", &[2, 7]), "\"a.scales\""),
        (("a.scales", "I8", &[2, 8]), "I8"),
        (("a.g_idx", "I32", &[31, 1]), "expected a vector"),
        (("a.g_idx", "I32", &[64]), "4 words a row"),
    ];
    for (tensor, what) in cases {
        assert_broken(open(&config, &with(&good, tensor)), what);
    }
    for missing in ["a.qzeros", "a.scales"] {
        assert_broken(open(&config, &without(&good, missing)), &format!("\"{missing}\" is missing"));
    }
    for group in [2, -1, i32::MAX, i32::MIN] {
        let index: Vec<u8> =
            (0..32).flat_map(|column| if column == 31 { group } else { 0 }.to_le_bytes()).collect();
        assert_broken(open_with(&config, &good, &[("a.g_idx", index)]), "column 31");
    }
    assert_broken(
        open(&config, &[&good[..], &[("a.weight", "F16", &[8, 32])]].concat()),
        "both quantised and not",
    );
    assert_broken(
        open(&config, &[&good[..], &[("b.scales", "F16", &[2, 8])]].concat()),
        "\"b.scales\" is of no",
    );
    assert_broken(open(&config, &[("a.weight", "F16", &[8, 32])]), "none is");
    assert_broken(open(&config, &[&good[..], &[("a.bias", "F16", &[7])]].concat()), "\"a.bias\"");
}

#[test]
fn awq_tensors_that_do_not_fit_are_refused() {
    let config = json!({"quant_method": "awq", "bits": 4, "group_size": 16});
    let good: [Tensor; 3] =
        [("a.qweight", "I32", &[32, 2]), ("a.qzeros", "I32", &[2, 2]), ("a.scales", "F16", &[2, 16])];
    open(&config, &good).unwrap();
    let cases: [(Tensor, &str); 3] = [
        (("a.qweight", "I32", &[48, 2]), "groups of 16 of 48 columns"),
        (("a.qzeros", "I32", &[2, 1]), "\"a.qzeros\""),
        (("a.scales", "F16", &[2, 8]), "\"a.scales\""),
    ];
    for (tensor, what) in cases {
        assert_broken(open(&config, &with(&good, tensor)), what);
    }
}

fn compressed(format: &str, weights: &Value) -> Value {
    json!({"quant_method": "compressed-tensors", "format": format,
           "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}})
}

#[test]
fn compressed_tensors_that_do_not_fit_are_refused() {
    let weights = |group_size: u64| json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size, "symmetric": false});
    let config = compressed("pack-quantized", &weights(16));
    let good: [Tensor; 4] = [
        ("a.weight_packed", "I32", &[6, 4]),
        ("a.weight_shape", "I64", &[2]),
        ("a.weight_scale", "BF16", &[6, 2]),
        ("a.weight_zero_point", "I32", &[1, 2]),
    ];
    let shape =
        |rows: i64, columns: i64| ("a.weight_shape", [rows.to_le_bytes(), columns.to_le_bytes()].concat());
    let open_good = |tensors: &[Tensor]| open_with(&config, tensors, &[shape(6, 32)]);
    open_good(&good).unwrap();
    let cases: [(Tensor, &str); 7] = [
        (("a.weight_packed", "I32", &[6, 5]), "does not hold [6, 32] of 4 bits"),
        (("a.weight_packed", "I32", &[7, 4]), "does not hold"),
        (("a.weight_scale", "BF16", &[6, 1]), "\"a.weight_scale\" has shape [6, 1], expected [6, 2]"),
        (("a.weight_scale", "F8_E4M3", &[6, 2]), "F8_E4M3"),
        (("a.weight_zero_point", "I32", &[6, 2]), "\"a.weight_zero_point\""),
        (("a.weight_zero_point", "I8", &[5, 2]), "\"a.weight_zero_point\""),
        (("a.weight_zero_point", "F16", &[6, 2]), "F16"),
    ];
    for (tensor, what) in cases {
        assert_broken(open_good(&with(&good, tensor)), what);
    }
    for missing in ["a.weight_shape", "a.weight_scale", "a.weight_zero_point"] {
        assert_broken(open_good(&without(&good, missing)), &format!("\"{missing}\" is missing"));
    }
    for (rows, columns) in [(6, 0), (6, -1), (i64::MAX, 32), (6, i64::MAX), (6, 1 << 62), (32, 6), (6, 24)] {
        assert_broken(open_with(&config, &good, &[shape(rows, columns)]), "does not hold");
    }
    let divides_not = compressed("pack-quantized", &weights(24));
    assert_broken(open_with(&divides_not, &good, &[shape(6, 32)]), "groups of 24 do not divide 32");
    let scattered = [&good[..], &[("a.weight_g_idx", "I32", &[31])]].concat();
    assert_broken(open_good(&scattered), "expected 32");
    assert_broken(open_good(&[&good[..], &[("a.weight", "I8", &[6, 32])]].concat()), "\"a.weight");
}

#[test]
fn fp8_tensors_that_do_not_fit_are_refused() {
    let blocks = json!({"quant_method": "fp8", "weight_block_size": [4, 16]});
    let whole = json!({"quant_method": "fp8"});
    let weight: Tensor = ("a.weight", "F8_E4M3", &[6, 40]);
    open(&blocks, &[weight, ("a.weight_scale_inv", "F32", &[2, 3])]).unwrap();
    open(&whole, &[weight, ("a.weight_scale", "F32", &[1])]).unwrap();
    open(&whole, &[weight, ("a.weight_scale", "F32", &[6, 1])]).unwrap();
    let cases: [(&Value, &[Tensor], &str); 6] = [
        (&blocks, &[weight, ("a.weight_scale_inv", "F32", &[2, 2])], "expected [2, 3]"),
        (&blocks, &[weight, ("a.weight_scale_inv", "F8_E8M0", &[2, 3])], "F8_E8M0"),
        (&whole, &[weight, ("a.weight_scale", "F32", &[5])], "\"a.weight_scale\""),
        (&whole, &[weight], "\"a.weight_scale\" is missing"),
        (&whole, &[("a.weight", "F8_E4M3", &[2, 3, 4]), ("a.weight_scale", "F32", &[])], "expected a matrix"),
        (&whole, &[("a.weight", "BF16", &[6, 40]), ("a.weight_scale", "F32", &[])], "none is"),
    ];
    for (config, tensors, what) in cases {
        assert_broken(open(config, tensors), what);
    }
    let float = compressed("float-quantized", &json!({"num_bits": 8, "type": "float", "strategy": "tensor"}));
    let tensors = [weight, ("a.weight_scale", "F32", &[1]), ("a.weight_zero_point", "F8_E4M3", &[1])];
    open(&float, &tensors).unwrap();
    assert_broken(open_with(&float, &tensors, &[("a.weight_zero_point", vec![1])]), "not zero");
}

#[test]
fn other_quantisations_are_refused_by_their_names() {
    let tensors: [Tensor; 1] = [("a.weight", "F16", &[8, 32])];
    for (quantization, found) in [
        (json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), "bitsandbytes"),
        (json!({"quant_method": "gptq", "bits": 2, "group_size": 128}), "2 bits"),
        (
            json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"}),
            "marlin",
        ),
        (compressed("nvfp4-pack-quantized", &json!({"num_bits": 4, "type": "float"})), "nvfp4"),
    ] {
        let error = open(&quantization, &tensors).unwrap_err();
        let HubError::Unsupported { found: message, supported, .. } = &error else { panic!("{error}") };
        assert!(message.contains(found) && supported.contains("GPTQ (4 or 8 bits)"), "{error}");
    }
}

/// A tensor of a safetensors file: name, dtype, shape, bytes.
type Stored = (String, String, Vec<u64>, Vec<u8>);

fn parse(file: &[u8]) -> Vec<Stored> {
    let data = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&file[8..data]).unwrap();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let number = |value: &Value| value.as_u64().unwrap();
    tensors
        .map(|(name, info)| {
            let shape = info["shape"].as_array().unwrap().iter().map(number).collect();
            let [start, end] = [0, 1].map(|index| data + number(&info["data_offsets"][index]) as usize);
            (name, info["dtype"].as_str().unwrap().to_owned(), shape, file[start..end].to_vec())
        })
        .collect()
}

/// Changes one tensor in a way that a safetensors file allows.
fn change(tensors: &mut Vec<Stored>, random: &mut Random) {
    let (at, other) = (random.below(tensors.len()), random.below(tensors.len()));
    if tensors[at].2.contains(&0) {
        return;
    }
    match random.below(7) {
        0 => tensors[at].2.reverse(),
        1 => {
            let elements: u64 = tensors[at].2.iter().product();
            let divisors: Vec<u64> = (1..=elements).filter(|&size| elements.is_multiple_of(size)).collect();
            let rows = divisors[random.below(divisors.len())];
            tensors[at].2 = vec![rows, elements / rows];
        }
        2 => {
            // Fewer rows.
            let (_, _, shape, bytes) = &mut tensors[at];
            if let Some(rows) = shape.first_mut() {
                let kept = random.below(*rows as usize) as u64;
                bytes.truncate(bytes.len() / *rows as usize * kept as usize);
                *rows = kept;
            }
        }
        3 => {
            const ALIKE: [&[&str]; 4] = [
                &["I32", "F32", "U32"],
                &["F16", "BF16", "I16"],
                &["I8", "U8", "F8_E4M3", "BOOL"],
                &["I64", "F64"],
            ];
            let alike = ALIKE.into_iter().find(|alike| alike.contains(&tensors[at].1.as_str())).unwrap();
            tensors[at].1 = alike[random.below(alike.len())].to_owned();
        }
        4 => {
            let (first, second) = (tensors[at].0.clone(), tensors[other].0.clone());
            (tensors[at].0, tensors[other].0) = (second, first);
        }
        5 => {
            tensors.remove(at);
        }
        _ => tensors[at].3.iter_mut().for_each(|byte| *byte = random.next() as u8),
    }
}

#[test]
fn changed_tensors_are_refused_or_read_and_never_more() {
    let (mut opened, mut refused, before) = (0, 0, peak_address_space());
    let names = ["gptq_int4_act_order", "gptq_int8", "awq_int4", "compressed_int4_asymmetric", "fp8_block"];
    for (seed, name) in (5..).zip(names) {
        let files = golden(name);
        let weights = parse(&files["model.safetensors"]);
        let (folder, cache) = (folder(&files), tempfile::tempdir().unwrap());
        let checkpoints = roundhouse_hub::Checkpoints::new(config(cache.path()));
        let mut random = Random(seed);
        run(async {
            for round in 0..400 {
                let mut changed = weights.clone();
                (0..=random.below(2)).for_each(|_| change(&mut changed, &mut random));
                let changed: Vec<_> = changed
                    .iter()
                    .map(|(name, dtype, shape, bytes)| {
                        (name.as_str(), dtype.as_str(), &shape[..], bytes.clone())
                    })
                    .collect();
                std::fs::write(folder.path().join("model.safetensors"), safetensors(&changed)).unwrap();
                let checkpoint =
                    match checkpoints.open(folder.path().to_str().unwrap(), None, &Unwatched).await {
                        Ok(checkpoint) => checkpoint,
                        Err(error) => {
                            assert!(matches!(error, HubError::Corrupt { .. }), "round {round}: {error}");
                            refused += 1;
                            continue;
                        }
                    };
                opened += 1;
                for name in checkpoint.names() {
                    let _ = checkpoint.quantized(&name);
                    for part in ["", ".values", ".scales", ".offsets"] {
                        let name = format!("{name}{part}");
                        let Ok(shape) = checkpoint.shape(&name) else { continue };
                        let elements: u64 = shape.iter().product();
                        assert!(elements <= 1 << 14, "round {round}: {name:?} has {shape:?}");
                        let rows = 0..shape.first().copied().unwrap_or(1);
                        let _ = checkpoint.read_rows(&name, rows, &mut vec![0.0; elements as usize]);
                    }
                }
            }
        });
    }
    assert!(opened > 200 && refused > 200, "{opened} opened, {refused} were refused");
    assert!(peak_address_space() - before < 1 << 30, "memory was allocated for what a header claimed");
}
