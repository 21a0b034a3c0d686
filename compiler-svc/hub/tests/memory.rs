//! Reading weights holds little of them. Alone in its process, to measure it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use roundhouse_backend::WeightSource;
use roundhouse_hub::{Checkpoints, HubConfig, Unwatched};
use serde_json::json;

const ROWS: u64 = 40_000;
const COLUMNS: u64 = 1024;
/// A few chunks and rows; the weights are 160 MiB.
const ALLOWED_BYTES: u64 = 16 << 20;

fn peak_resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn write_checkpoint(folder: &Path) {
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    let bytes = ROWS * COLUMNS * 4;
    let header =
        json!({"weight": {"dtype": "F32", "shape": [ROWS, COLUMNS], "data_offsets": [0, bytes]}}).to_string();
    let path = folder.join("model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    // A hole reads as zeros.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + bytes).unwrap();
}

#[test]
fn opening_and_reading_a_checkpoint_holds_little_of_it() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let mut config = HubConfig::from_env();
    config.cache = folder.path().join("cache");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let before = peak_resident_bytes();
    let checkpoints = Checkpoints::new(config);
    let open = checkpoints.open(folder.path().to_str().unwrap(), None, &Unwatched);
    let checkpoint = runtime.block_on(open).unwrap();
    let mut rows = vec![1.0; 16 * COLUMNS as usize];
    for first in (0..ROWS).step_by(16) {
        checkpoint.read_rows("weight", first..first + 16, &mut rows).unwrap();
        assert!(rows.iter().all(|value| *value == 0.0));
    }
    let used = peak_resident_bytes() - before;
    assert!(used < ALLOWED_BYTES, "{used} bytes were held to read {}", checkpoint.weight_bytes);
}
