//! GGUF files as transformers, llama.cpp and sentencepiece read them. The golden data is made by
//! `tests/golden/make_golden.py`.

use std::path::PathBuf;

use roundhouse_backend::WeightSource;
use roundhouse_hub::Checkpoint;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::checkpoint_files::{open, read, run};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name)
}

fn json<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

/// A checkpoint that `scripts/fetch_models.py` fetches under this name.
fn fetched(model: &str, file: &str, variable: &str) -> (tempfile::TempDir, Checkpoint) {
    let path = std::env::var_os(variable).map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.roundhouse/models")).join(file),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "{} does not exist: run `python3 scripts/fetch_models.py {model}`",
        path.display()
    );
    let cache = tempfile::tempdir().unwrap();
    let checkpoint = run(open(path.to_str().unwrap(), cache.path())).unwrap();
    (cache, checkpoint)
}

pub(crate) fn smollm2() -> (tempfile::TempDir, Checkpoint) {
    fetched("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "ROUNDHOUSE_SMOLLM2_GGUF")
}

pub(crate) fn gemma3() -> (tempfile::TempDir, Checkpoint) {
    fetched("gemma3", "gemma-3-270m-q4_k_m.gguf", "ROUNDHOUSE_GEMMA3_GGUF")
}

fn tokenizer(checkpoint: &Checkpoint) -> Tokenizer {
    Tokenizer::from_bytes(checkpoint.tokenizer_json.as_deref().unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Sample {
    shape: Vec<u64>,
    indices: Vec<usize>,
    values: Vec<f32>,
}

/// Decoding is exact: the same operations in the same order.
fn assert_sample(checkpoint: &Checkpoint, name: &str, sample: &Sample) {
    assert_eq!(checkpoint.shape(name).unwrap(), sample.shape, "{name}");
    let values = read(checkpoint, name);
    for (index, expected) in sample.indices.iter().zip(&sample.values) {
        assert_eq!(values[*index].to_bits(), expected.to_bits(), "{name}[{index}]");
    }
}

#[derive(Deserialize)]
struct Encoding {
    text: String,
    ids: Vec<u32>,
    decoded: Option<String>,
    decoded_without_special: Option<String>,
}

fn assert_encodings(tokenizer: &Tokenizer, encodings: &[Encoding]) {
    assert!(!encodings.is_empty());
    for Encoding { text, ids, decoded, decoded_without_special } in encodings {
        assert_eq!(tokenizer.encode(text.as_str(), true).unwrap().get_ids(), ids, "{text:?}");
        if let Some(decoded) = decoded {
            assert_eq!(&tokenizer.decode(ids, false).unwrap(), decoded);
        }
        if let Some(decoded) = decoded_without_special {
            assert_eq!(&tokenizer.decode(ids, true).unwrap(), decoded);
        }
    }
}

fn assert_config(checkpoint: &Checkpoint, expected: &serde_json::Map<String, Value>) {
    for (field, value) in expected {
        let found = &checkpoint.config[field.as_str()];
        let equal = match (found.as_f64(), value.as_f64()) {
            // Transformers keeps the single-precision number that the file has.
            (Some(found), Some(value)) => found as f32 == value as f32,
            _ => found == value,
        };
        assert!(equal, "{field} is {found}, expected {value}");
    }
}

#[derive(Deserialize)]
struct SmolLm2 {
    chat_template: String,
    config: serde_json::Map<String, Value>,
    encodings: Vec<Encoding>,
    tensor_names: Vec<String>,
    tensors: std::collections::BTreeMap<String, Sample>,
}

#[test]
fn smollm2_is_what_transformers_reads() {
    let expected: SmolLm2 = json("smollm2_transformers.json");
    let (_cache, checkpoint) = smollm2();
    assert_eq!(checkpoint.chat_template.as_ref(), Some(&expected.chat_template));
    assert_config(&checkpoint, &expected.config);
    assert_eq!(checkpoint.names(), expected.tensor_names);
    for (name, sample) in &expected.tensors {
        assert_sample(&checkpoint, name, sample);
    }
    let generation = checkpoint.generation_config.as_ref().unwrap();
    assert_eq!(generation["eos_token_id"], 2);
}

#[test]
fn smollm2_tokenizes_as_in_transformers() {
    let expected: SmolLm2 = json("smollm2_transformers.json");
    let (_cache, checkpoint) = smollm2();
    assert_encodings(&tokenizer(&checkpoint), &expected.encodings);
}

/// Also where transformers' GGUF loader does not know the model's pre-tokeniser: whitespace before digits.
#[test]
fn smollm2_tokenizes_as_in_llama_cpp() {
    let (_cache, checkpoint) = smollm2();
    assert_encodings(&tokenizer(&checkpoint), &json::<Vec<Encoding>>("smollm2_llama_cpp.json"));
}

#[derive(Deserialize)]
struct Gemma3 {
    config: serde_json::Map<String, Value>,
    tensor_names: Vec<String>,
    tensors: std::collections::BTreeMap<String, Sample>,
}

#[test]
fn gemma3_is_what_transformers_reads() {
    let expected: Gemma3 = json("gemma3_transformers.json");
    let (_cache, checkpoint) = gemma3();
    assert_config(&checkpoint, &expected.config);
    assert_eq!(checkpoint.names(), expected.tensor_names);
    for (name, sample) in &expected.tensors {
        assert_sample(&checkpoint, name, sample);
    }
}

#[test]
fn gemma3_tokenizes_as_in_llama_cpp() {
    let (_cache, checkpoint) = gemma3();
    assert_encodings(&tokenizer(&checkpoint), &json::<Vec<Encoding>>("gemma3_llama_cpp.json"));
}

#[derive(Deserialize)]
struct TinySentencePiece {
    encodings: Vec<Encoding>,
    tensors: std::collections::BTreeMap<String, Sample>,
}

fn tiny_sentencepiece() -> (tempfile::TempDir, Checkpoint) {
    let cache = tempfile::tempdir().unwrap();
    let checkpoint = run(open(golden("tiny_sentencepiece.gguf").to_str().unwrap(), cache.path())).unwrap();
    (cache, checkpoint)
}

#[test]
fn grouped_query_heads_are_put_in_order_as_in_transformers() {
    let expected: TinySentencePiece = json("tiny_sentencepiece.json");
    let (_cache, checkpoint) = tiny_sentencepiece();
    assert_eq!(checkpoint.names(), expected.tensors.keys().map(String::as_str).collect::<Vec<_>>());
    for (name, sample) in &expected.tensors {
        assert_sample(&checkpoint, name, sample);
    }
}

#[test]
fn a_sentencepiece_vocabulary_tokenizes_as_in_sentencepiece() {
    let expected: TinySentencePiece = json("tiny_sentencepiece.json");
    let (_cache, checkpoint) = tiny_sentencepiece();
    let tokenizer = tokenizer(&checkpoint);
    for Encoding { text, ids, decoded, .. } in &expected.encodings {
        assert_eq!(tokenizer.encode(text.as_str(), true).unwrap().get_ids(), ids, "{text:?}");
        assert_eq!(Some(tokenizer.decode(ids, true).unwrap()), *decoded);
    }
    assert_eq!(checkpoint.tokenizer_config.as_ref().unwrap()["bos_token"], "<s>");
}
