//! Small Hugging Face checkpoints, made on the spot.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use roundhouse_hub::{Checkpoint, Checkpoints, HubConfig, HubError, Unwatched};
use serde_json::{Value, json};

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// A configuration whose caches are in `folder`.
pub(crate) fn config(folder: &Path) -> HubConfig {
    HubConfig {
        // Nobody listens there.
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        hub_cache: folder.join("hub"),
        cache: folder.join("roundhouse"),
        offline: false,
        local_paths: true,
        retry_delay: Duration::from_millis(1),
        object_store: BTreeMap::new(),
    }
}

pub(crate) async fn open(model: &str, folder: &Path) -> Result<Checkpoint, HubError> {
    Checkpoints::new(config(folder)).open(model, None, &Unwatched).await
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A safetensors file with any header.
pub(crate) fn safetensors_with(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// A safetensors file of tensors: name, dtype, shape, bytes.
pub(crate) fn safetensors(tensors: &[(&str, &str, &[u64], Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        header.insert(
            (*name).to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    safetensors_with(&serde_json::to_vec(&header).unwrap(), &data)
}

pub(crate) fn f32_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// What every checkpoint needs beside weights.
pub(crate) fn small_files() -> Files {
    let json = |value: Value| serde_json::to_vec(&value).unwrap();
    Files::from([
        ("config.json".to_owned(), json(json!({"model_type": "llama", "hidden_size": 4}))),
        ("tokenizer.json".to_owned(), json(json!({"version": "1.0"}))),
        ("tokenizer_config.json".to_owned(), json(json!({"chat_template": "{{ messages }}"}))),
        ("generation_config.json".to_owned(), json(json!({"eos_token_id": 2}))),
    ])
}

/// A checkpoint with one tensor `weight` of shape `[rows, 4]`, whose elements count up from 0.
pub(crate) fn single(rows: u64) -> Files {
    let values = f32_bytes((0..rows * 4).map(|index| index as f32));
    let mut files = small_files();
    files.insert("model.safetensors".to_owned(), safetensors(&[("weight", "F32", &[rows, 4], values)]));
    files
}

/// A checkpoint with tensors `a` and `b`, `[2, 2]` each, in a file each.
pub(crate) fn sharded() -> Files {
    let mut files = small_files();
    let shard = |name: &str, first: f32| {
        safetensors(&[(name, "F32", &[2, 2], f32_bytes((0..4).map(|index| first + index as f32)))])
    };
    files.insert("model-00001-of-00002.safetensors".to_owned(), shard("a", 0.0));
    files.insert("model-00002-of-00002.safetensors".to_owned(), shard("b", 10.0));
    let index = json!({"metadata": {"total_size": 32}, "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
    }});
    files.insert("model.safetensors.index.json".to_owned(), serde_json::to_vec(&index).unwrap());
    files
}

/// A folder with these files.
pub(crate) fn folder(files: &Files) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// All of a tensor.
pub(crate) fn read(source: &dyn roundhouse_backend::WeightSource, name: &str) -> Vec<f32> {
    let shape = source.shape(name).unwrap();
    let mut out = vec![f32::NAN; shape.iter().product::<u64>() as usize];
    source.read_rows(name, 0..shape.first().copied().unwrap_or(1), &mut out).unwrap();
    out
}
