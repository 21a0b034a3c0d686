//! A Hugging Face folder.

use half::{bf16, f16};
use roundhouse_backend::{WeightError, WeightSource};
use roundhouse_hub::{Checkpoint, HubError};
use serde_json::json;

use crate::checkpoint_files::{
    Files, f32_bytes, folder, open, read, run, safetensors, sharded, single, small_files,
};

fn open_files(files: &Files) -> Result<Checkpoint, HubError> {
    let (folder, cache) = (folder(files), tempfile::tempdir().unwrap());
    run(open(folder.path().to_str().unwrap(), cache.path()))
}

#[test]
fn everything_of_a_folder_is_there() {
    let checkpoint = open_files(&single(3)).unwrap();
    assert_eq!(checkpoint.config["hidden_size"], 4);
    assert_eq!(checkpoint.tokenizer_json.as_deref(), Some(&br#"{"version":"1.0"}"#[..]));
    assert_eq!(checkpoint.chat_template.as_deref(), Some("{{ messages }}"));
    assert_eq!(checkpoint.generation_config, Some(json!({"eos_token_id": 2})));
    assert_eq!((checkpoint.revision.as_deref(), checkpoint.preprocessor_config.as_ref()), (None, None));
    assert_eq!(checkpoint.weight_bytes, 3 * 4 * 4);
    assert_eq!(checkpoint.names(), ["weight"]);
    assert_eq!(read(&checkpoint, "weight"), (0..12).map(|value| value as f32).collect::<Vec<_>>());
}

#[test]
fn shards_are_one_checkpoint() {
    let checkpoint = open_files(&sharded()).unwrap();
    assert_eq!(checkpoint.names(), ["a", "b"]);
    assert_eq!(read(&checkpoint, "a"), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(read(&checkpoint, "b"), [10.0, 11.0, 12.0, 13.0]);
    assert_eq!(checkpoint.weight_bytes, 32);
}

#[test]
fn every_float_decodes_to_f32() {
    let values = [0.0, -1.5, 3.25, 65504.0, 6.1e-5, f32::INFINITY];
    let bytes = |width: fn(f32) -> Vec<u8>| values.into_iter().flat_map(width).collect::<Vec<u8>>();
    let mut files = small_files();
    files.insert(
        "model.safetensors".to_owned(),
        safetensors(&[
            ("f32", "F32", &[6], bytes(|value| value.to_le_bytes().to_vec())),
            ("f64", "F64", &[6], bytes(|value| f64::from(value).to_le_bytes().to_vec())),
            ("f16", "F16", &[2, 3], bytes(|value| f16::from_f32(value).to_le_bytes().to_vec())),
            ("bf16", "BF16", &[3, 2, 1], bytes(|value| bf16::from_f32(value).to_le_bytes().to_vec())),
            ("scalar", "F32", &[], 7.0f32.to_le_bytes().to_vec()),
            ("none", "F32", &[0, 5], Vec::new()),
            ("integers", "I64", &[1], 7u64.to_le_bytes().to_vec()),
        ]),
    );
    let checkpoint = open_files(&files).unwrap();
    assert_eq!(read(&checkpoint, "f32"), values);
    assert_eq!(read(&checkpoint, "f64"), values);
    assert_eq!(read(&checkpoint, "f16"), values.map(|value| f16::from_f32(value).to_f32()));
    assert_eq!(read(&checkpoint, "bf16"), values.map(|value| bf16::from_f32(value).to_f32()));
    assert_eq!(read(&checkpoint, "scalar"), [7.0]);
    assert_eq!(read(&checkpoint, "none"), [0.0f32; 0]);
    let error = checkpoint.read_rows("integers", 0..1, &mut [0.0]).unwrap_err();
    assert!(error.to_string().contains("I64"), "{error}");
}

#[test]
fn rows_are_those_asked_for() {
    // More than one chunk of reading.
    let checkpoint = open_files(&single(70_000)).unwrap();
    for rows in [0..1, 1..3, 69_999..70_000, 100..60_000, 5..5] {
        let mut out = vec![f32::NAN; (rows.end - rows.start) as usize * 4];
        checkpoint.read_rows("weight", rows.clone(), &mut out).unwrap();
        assert!((rows.start * 4..rows.end * 4).map(|value| value as f32).eq(out), "{rows:?}");
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let checkpoint = open_files(&single(3)).unwrap();
    let read = |rows, length| checkpoint.read_rows("weight", rows, &mut vec![0.0; length]);
    #[expect(clippy::reversed_empty_ranges, reason = "a caller may ask for it")]
    for (rows, length) in [(0..4, 16), (3..2, 4), (0..1, 3), (0..u64::MAX, 4), (u64::MAX - 1..u64::MAX, 4)] {
        assert!(matches!(read(rows.clone(), length), Err(WeightError::Corrupt { .. })), "{rows:?}");
    }
    assert!(matches!(checkpoint.shape("other"), Err(WeightError::NotFound { .. })));
    assert!(matches!(checkpoint.read_rows("other", 0..1, &mut [0.0]), Err(WeightError::NotFound { .. })));
}

#[test]
fn the_chat_template_is_found_wherever_it_is() {
    let with = |name: &str, content: &[u8]| {
        let mut files = single(1);
        files.insert(name.to_owned(), content.to_vec());
        open_files(&files).unwrap().chat_template
    };
    assert_eq!(with("chat_template.jinja", b"jinja").as_deref(), Some("jinja"));
    let named = br#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    assert_eq!(with("tokenizer_config.json", named).as_deref(), Some("d"));
    assert_eq!(with("tokenizer_config.json", b"{}"), None);
    let mut files = single(1);
    files.insert("tokenizer_config.json".to_owned(), b"{}".to_vec());
    files.insert("chat_template.json".to_owned(), br#"{"chat_template": "p"}"#.to_vec());
    assert_eq!(open_files(&files).unwrap().chat_template.as_deref(), Some("p"));
}

#[test]
fn the_digest_is_of_the_content_and_not_of_the_place() {
    let digest = |files: &Files| open_files(files).unwrap().digest;
    let first = digest(&single(3));
    assert_eq!(first.len(), 64);
    assert_eq!(digest(&single(3)), first);
    let mut files = single(3);
    files.insert("README.md".to_owned(), b"not part of it".to_vec());
    assert_eq!(digest(&files), first);
    files.insert("config.json".to_owned(), b"{}".to_vec());
    assert_ne!(digest(&files), first);
    assert_ne!(digest(&single(4)), first);
}

#[test]
fn a_folder_that_lacks_something_is_refused_by_its_name() {
    let without = |name: &str| {
        let mut files = single(1);
        files.remove(name);
        open_files(&files).unwrap_err()
    };
    assert!(matches!(without("config.json"), HubError::MissingFile { file, .. } if file == "config.json"));
    assert!(matches!(without("tokenizer.json"), HubError::MissingTokenizer { .. }));
    assert!(matches!(without("model.safetensors"), HubError::MissingFile { .. }));
    let mut files = sharded();
    files.remove("model-00002-of-00002.safetensors");
    let error = open_files(&files).unwrap_err();
    assert!(matches!(&error, HubError::MissingFile { file, .. } if file.contains("00002-of")), "{error}");
    let mut files = small_files();
    files.insert("pytorch_model.bin".to_owned(), Vec::new());
    let error = open_files(&files).unwrap_err();
    assert!(
        matches!(&error, HubError::Unsupported { found, .. } if found.contains("pytorch_model.bin")),
        "{error}"
    );
}

#[test]
fn broken_json_is_an_error_with_its_file() {
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "hf_quant_config.json",
    ] {
        let mut files = single(1);
        files.insert(name.to_owned(), b"{".to_vec());
        let error = open_files(&files).unwrap_err();
        assert!(matches!(&error, HubError::Corrupt { path, .. } if path.ends_with(name)), "{error}");
    }
    let mut files = single(1);
    files.insert("chat_template.jinja".to_owned(), vec![0xFF]);
    assert!(matches!(open_files(&files), Err(HubError::Corrupt { .. })));
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let mut files = sharded();
    let index = json!({"weight_map": {"b": "model-00001-of-00002.safetensors"}});
    files.insert("model.safetensors.index.json".to_owned(), serde_json::to_vec(&index).unwrap());
    let error = open_files(&files).unwrap_err();
    assert!(error.to_string().contains("\"b\""), "{error}");
}

#[test]
fn a_file_cut_short_after_it_was_opened_is_an_error() {
    let (folder, cache) = (folder(&single(1000)), tempfile::tempdir().unwrap());
    let checkpoint = run(open(folder.path().to_str().unwrap(), cache.path())).unwrap();
    let file = std::fs::File::options().write(true).open(folder.path().join("model.safetensors")).unwrap();
    file.set_len(200).unwrap();
    let mut out = vec![0.0; 4000];
    assert!(matches!(checkpoint.read_rows("weight", 0..1000, &mut out), Err(WeightError::Corrupt { .. })));
    assert!(!f32_bytes(out).is_empty());
}
