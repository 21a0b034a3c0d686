//! An open checkpoint, wherever it came from.

use std::fmt;
use std::ops::Range;

use roundhouse_backend::{QuantizedTensor, WeightError, WeightSource};
use serde_json::Value;

/// An open checkpoint. Its weights are read through [`WeightSource`]; everything else is in memory.
pub struct Checkpoint {
    /// The model as the caller named it.
    pub model: String,
    /// The commit that a model of the hub was resolved to.
    pub revision: Option<String>,
    /// SHA-256 in hex over the names and contents of all its files: equal digests, equal checkpoints.
    pub digest: String,
    /// `config.json`; for a GGUF file the config that its metadata describes, in the same terms. Without its
    /// `quantization_config`: weights that other tools quantised are read as the tensors that they stand for.
    pub config: Value,
    /// `tokenizer.json`, as it is or rebuilt from a GGUF file's metadata. Opening fails without one.
    pub tokenizer_json: Option<Vec<u8>>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Value>,
    /// The chat template: of `chat_template.jinja`, else of `tokenizer_config.json` (the one named `default` when it
    /// has several), else of `chat_template.json`, else of the GGUF metadata.
    pub chat_template: Option<String>,
    /// `generation_config.json`.
    pub generation_config: Option<Value>,
    /// `preprocessor_config.json`: how a vision-language model wants its images.
    pub preprocessor_config: Option<Value>,
    /// Bytes of all weights as stored.
    pub weight_bytes: u64,
    pub(crate) weights: Box<dyn WeightSource>,
}

impl WeightSource for Checkpoint {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        self.weights.shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.weights.names()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        self.weights.read_rows(name, rows, out)
    }

    fn read_elements(&self, name: &str, first: u64, out: &mut [f32]) -> Result<(), WeightError> {
        self.weights.read_elements(name, first, out)
    }

    fn quantized(&self, name: &str) -> Option<QuantizedTensor> {
        self.weights.quantized(name)
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Checkpoint")
            .field("model", &self.model)
            .field("revision", &self.revision)
            .field("digest", &self.digest)
            .field("weight_bytes", &self.weight_bytes)
            .finish_non_exhaustive()
    }
}
