//! What the integration tests share: the golden files.

use std::path::PathBuf;

use roundhouse_text::{Tokenizer, TokenizerConfig};
use serde::de::DeserializeOwned;

/// The kinds of tokenizers, each of which decodes in its own way.
pub(crate) const KINDS: [&str; 4] = ["byte_level", "byte_fallback", "unigram", "word_piece"];

/// A golden file.
pub(crate) fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The cases of a golden file.
pub(crate) fn golden<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden_path(name)).unwrap()).unwrap()
}

/// The configuration of a kind's tokenizer.
pub(crate) fn config(kind: &str) -> TokenizerConfig {
    TokenizerConfig::from_file(&golden_path(&format!("{kind}.tokenizer_config.json"))).unwrap()
}

/// A kind's tokenizer.
pub(crate) fn tokenizer(kind: &str) -> Tokenizer {
    Tokenizer::from_file(&golden_path(&format!("{kind}.tokenizer.json")), &config(kind)).unwrap()
}
