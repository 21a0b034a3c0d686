//! Safetensors files that lie.

use roundhouse_backend::WeightSource;
use roundhouse_hub::{Checkpoint, HubError};

use crate::checkpoint_files::{
    config, f32_bytes, folder, open, run, safetensors, safetensors_with, small_files,
};
use crate::mutation::{Random, damage, peak_address_space};

fn open_weights(bytes: Vec<u8>) -> Result<Checkpoint, HubError> {
    let mut files = small_files();
    files.insert("model.safetensors".to_owned(), bytes);
    let (folder, cache) = (folder(&files), tempfile::tempdir().unwrap());
    run(open(folder.path().to_str().unwrap(), cache.path()))
}

#[test]
fn lies_are_refused() {
    let header = |tensors: &str| safetensors_with(tensors.as_bytes(), &[0; 16]);
    let cases = [
        ("empty", Vec::new()),
        ("no header", vec![1, 0, 0]),
        ("header longer than the file", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("header a little longer than the file", [&3u64.to_le_bytes()[..], b"{}"].concat()),
        ("header is no JSON", header("{")),
        ("header is not UTF-8", safetensors_with(b"{\"\xFF\": 1}", &[0; 16])),
        ("outside", header(r#"{"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}"#)),
        ("reversed", header(r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}"#)),
        (
            "shorter than its shape",
            header(r#"{"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}"#),
        ),
        (
            "longer than its shape",
            header(r#"{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}"#),
        ),
        ("gap", header(r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}"#)),
        (
            "data that is no tensor's",
            header(r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#),
        ),
        (
            "overlap",
            header(
                r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                    "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}"#,
            ),
        ),
        (
            "shape overflows",
            header(
                r#"{"a": {"dtype": "F32", "shape": [4611686018427387904, 4, 2], "data_offsets": [0, 16]}}"#,
            ),
        ),
        ("negative", header(r#"{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}"#)),
        ("unknown dtype", header(r#"{"a": {"dtype": "F31", "shape": [4], "data_offsets": [0, 16]}}"#)),
        (
            "offset overflows",
            header(r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 18446744073709551616]}}"#),
        ),
    ];
    for (name, bytes) in cases {
        let result = open_weights(bytes);
        assert!(matches!(result, Err(HubError::Corrupt { .. })), "{name}: {result:?}");
    }
}

#[test]
fn an_empty_tensor_of_a_huge_shape_reads_as_empty_or_fails() {
    let header = br#"{"a": {"dtype": "F32", "shape": [0, 4611686018427387904, 64], "data_offsets": [0, 0]}}"#;
    let checkpoint = open_weights(safetensors_with(header, &[])).unwrap();
    assert!(checkpoint.read_rows("a", 0..0, &mut []).is_err());
    assert!(checkpoint.read_rows("a", 0..1, &mut [0.0]).is_err());
}

#[test]
fn a_deeply_nested_header_is_refused() {
    let header = [&b"{\"a\":"[..], &b"[".repeat(1 << 20)].concat();
    assert!(matches!(open_weights(safetensors_with(&header, &[])), Err(HubError::Corrupt { .. })));
}

#[test]
fn damaged_headers_are_refused_or_read_and_never_more() {
    let weights = safetensors(&[
        ("model.embed_tokens.weight", "F32", &[4, 2], f32_bytes([1.0; 8])),
        ("model.norm.weight", "F16", &[3], vec![0; 6]),
        ("scalar", "F64", &[], vec![0; 8]),
    ]);
    let header = weights.len() - 46;
    let (folder, cache) = (folder(&small_files()), tempfile::tempdir().unwrap());
    let path = folder.path().join("model.safetensors");
    let checkpoints = roundhouse_hub::Checkpoints::new(config(cache.path()));
    let mut random = Random(1);
    let (mut opened, before) = (0, peak_address_space());
    run(async {
        for round in 0..4000 {
            std::fs::write(&path, damage(&weights, header, &mut random)).unwrap();
            let result =
                checkpoints.open(folder.path().to_str().unwrap(), None, &roundhouse_hub::Unwatched).await;
            let Ok(checkpoint) = result else { continue };
            opened += 1;
            for name in checkpoint.names() {
                let shape = checkpoint.shape(&name).unwrap();
                let elements: u64 = shape.iter().product();
                assert!(elements <= 46, "round {round}: {name:?} has {shape:?}");
                let _ = checkpoint.read_rows(
                    &name,
                    0..shape.first().copied().unwrap_or(1),
                    &mut vec![0.0; elements as usize],
                );
            }
        }
    });
    assert!(opened > 100, "only {opened} opened: the damage does not reach what comes after the header");
    assert!(peak_address_space() - before < 1 << 30, "memory was allocated for what a header claimed");
}
