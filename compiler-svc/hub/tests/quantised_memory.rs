//! Reading quantised weights holds little of them. Alone in its process, to measure it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use roundhouse_backend::WeightSource;
use roundhouse_hub::{Checkpoints, HubConfig, Unwatched};
use serde_json::json;

const ROWS: u64 = 40_000;
const COLUMNS: u64 = 4096;
const GROUPS: u64 = COLUMNS / 128;
/// Some blocks of rows, and the scales of as many; the packed weights are 78 MiB, decoded 625.
const ALLOWED_BYTES: u64 = 32 << 20;

fn peak_resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A weight as GPTQ packs it, across its rows.
fn write_checkpoint(folder: &Path) {
    let config = json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    let mut end = 0;
    let mut tensor = |dtype: &str, width: u64, shape: [u64; 2]| {
        let start = end;
        end += shape[0] * shape[1] * width;
        json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})
    };
    let header = json!({
        "a.qweight": tensor("I32", 4, [COLUMNS / 8, ROWS]),
        "a.qzeros": tensor("I32", 4, [GROUPS, ROWS / 8]),
        "a.scales": tensor("F16", 2, [GROUPS, ROWS]),
    })
    .to_string();
    let path = folder.join("model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    // A hole reads as zeros.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

#[test]
fn reading_quantised_weights_holds_little_of_them() {
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
        checkpoint.read_rows("a.weight", first..first + 16, &mut rows).unwrap();
        assert!(rows.iter().all(|value| *value == 0.0));
    }
    assert!(checkpoint.quantized("a.weight").unwrap().has_offsets);
    let used = peak_resident_bytes() - before;
    assert!(used < ALLOWED_BYTES, "{used} bytes were held to read {}", checkpoint.weight_bytes);
}
