//! GGUF files that lie.

use roundhouse_backend::WeightSource;
use roundhouse_hub::{Checkpoints, HubError, Unwatched};

use crate::checkpoint_files::{config, run};
use crate::gguf_file::{open_bytes, open_gguf};
use crate::gguf_files::{Gguf, Value};
use crate::mutation::{Random, damage, peak_address_space};

fn array(element: u32, count: u64, rest: &[u8]) -> Value {
    Value::Raw(9, [&element.to_le_bytes()[..], &count.to_le_bytes(), rest].concat())
}

#[test]
fn lies_are_refused() {
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Gguf));
    let cases: [Change<'_>; 30] = [
        ("tensor count", &|file| file.tensor_count = Some(u64::MAX)),
        ("tensor count a little too large", &|file| file.tensor_count = Some(100)),
        ("pair count", &|file| file.pair_count = Some(u64::MAX / 2)),
        ("strings", &|file| file.set("x", array(8, u64::MAX, &[]))),
        ("many strings", &|file| file.set("x", array(8, 1 << 20, &[]))),
        ("numbers", &|file| file.set("x", array(4, 1 << 62, &[]))),
        ("many numbers", &|file| file.set("x", array(0, 1 << 40, &[]))),
        ("array of arrays", &|file| file.set("x", array(9, 1, &[0; 32]))),
        ("array of no type", &|file| file.set("x", array(77, 1, &[0; 32]))),
        ("no type", &|file| file.set("x", Value::Raw(13, vec![0; 8]))),
        ("string length", &|file| file.set("x", Value::Raw(8, u64::MAX.to_le_bytes().to_vec()))),
        ("not UTF-8", &|file| file.set("x", Value::Raw(8, [&1u64.to_le_bytes()[..], &[0xFF]].concat()))),
        ("a key twice", &|file| file.pairs.push(("llama.block_count".to_owned(), Value::U32(1)))),
        ("a tensor twice", &|file| {
            file.tensor("output_norm.weight", &[8]);
        }),
        ("five dimensions", &|file| file.tensors[0].dimensions = vec![1; 5]),
        ("dimensions overflow", &|file| file.tensors[0].dimensions = vec![1 << 32, 1 << 32]),
        ("bytes overflow", &|file| file.tensors[0].dimensions = vec![1 << 62]),
        ("longer than the file", &|file| file.tensors[0].dimensions = vec![8, 1 << 30]),
        ("offset outside", &|file| file.tensors[0].offset = Some(1 << 40)),
        ("offset overflows", &|file| file.tensors[0].offset = Some(u64::MAX - 31)),
        ("offset is not aligned", &|file| file.tensors[1].offset = Some(4)),
        ("overlap", &|file| file.tensors[1].offset = Some(32)),
        ("a row is no whole blocks", &|file| file.tensors[1].kind = 2),
        ("alignment zero", &|file| file.set("general.alignment", Value::U32(0))),
        ("alignment three", &|file| file.set("general.alignment", Value::U32(3))),
        ("alignment text", &|file| file.set("general.alignment", "32")),
        ("no heads", &|file| file.set("llama.attention.head_count", Value::U32(0))),
        ("heads do not divide rows", &|file| file.set("llama.attention.head_count_kv", Value::U32(3))),
        ("no architecture", &|file| file.unset("general.architecture")),
        ("epsilon is no number", &|file| {
            file.set("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN));
        }),
    ];
    for (name, change) in cases {
        let mut file = Gguf::tiny();
        change(&mut file);
        let result = open_gguf(&file);
        assert!(matches!(result, Err(HubError::Corrupt { .. })), "{name}: {result:?}");
    }
}

#[test]
fn a_tokenizer_that_contradicts_itself_is_refused() {
    let cases: [(&str, &str, Value); 6] = [
        ("a merge of no tokens", "tokenizer.ggml.merges", Value::Strings(vec!["h zz".to_owned()])),
        ("a merge of one token", "tokenizer.ggml.merges", Value::Strings(vec!["he".to_owned()])),
        ("too few types", "tokenizer.ggml.token_type", Value::I32s(vec![1; 3])),
        ("a type that there is not", "tokenizer.ggml.token_type", Value::I32s(vec![-1; 259])),
        ("EOS outside", "tokenizer.ggml.eos_token_id", Value::U32(259)),
        ("no tokens", "tokenizer.ggml.tokens", Value::Strings(Vec::new())),
    ];
    for (name, key, value) in cases {
        let mut file = Gguf::tiny();
        file.set(key, value);
        let result = open_gguf(&file);
        assert!(matches!(result, Err(HubError::Corrupt { .. })), "{name}: {result:?}");
    }
    let mut file = Gguf::tiny();
    file.set("tokenizer.ggml.model", "llama");
    file.set("tokenizer.ggml.scores", Value::F32s(vec![0.0; 5]));
    assert!(matches!(open_gguf(&file), Err(HubError::Corrupt { .. })));
    file.set("tokenizer.ggml.scores", Value::F32s(vec![f32::NAN; 259]));
    assert!(matches!(open_gguf(&file), Err(HubError::Corrupt { .. })));
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let (header, bytes) = Gguf::tiny().bytes();
    for length in (0..header).step_by(37).chain([header, bytes.len() - 1, bytes.len() / 2]) {
        let result = open_bytes(&bytes[..length]);
        assert!(matches!(result, Err(HubError::Corrupt { .. })), "{length} bytes: {result:?}");
    }
}

#[test]
fn an_empty_tensor_is_no_tensor_of_rows() {
    let mut file = Gguf::tiny();
    file.tensor("output.weight", &[8, 0]);
    let checkpoint = open_gguf(&file).unwrap();
    assert_eq!(checkpoint.shape("lm_head.weight").unwrap(), [0, 8]);
    checkpoint.read_rows("lm_head.weight", 0..0, &mut []).unwrap();
}

#[test]
fn damaged_headers_are_refused_or_read_and_never_more() {
    let (header, bytes) = Gguf::tiny().bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let checkpoints = Checkpoints::new(config(folder.path()));
    let mut random = Random(2);
    let (mut opened, before) = (0, peak_address_space());
    run(async {
        for round in 0..6000 {
            std::fs::write(&path, damage(&bytes, header, &mut random)).unwrap();
            let Ok(checkpoint) = checkpoints.open(path.to_str().unwrap(), None, &Unwatched).await else {
                continue;
            };
            opened += 1;
            for name in checkpoint.names() {
                let shape = checkpoint.shape(&name).unwrap();
                let elements: u64 = shape.iter().product();
                assert!(elements <= bytes.len() as u64, "round {round}: {name:?} has {shape:?}");
                let rows = shape.first().copied().unwrap_or(1);
                let _ = checkpoint.read_rows(&name, 0..rows, &mut vec![0.0; elements as usize]);
            }
        }
    });
    assert!(opened > 100, "only {opened} opened: the damage does not reach what comes after the header");
    assert!(peak_address_space() - before < 1 << 30, "memory was allocated for what a header claimed");
}
