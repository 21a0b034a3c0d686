//! The GGUF architectures that are known.

use serde_json::Value;

use crate::HubError;

use super::config::{self, ConfigReader};
use super::container::Container;
use super::metadata::Metadata;
use super::tensor_names::{self, TensorName, TensorNames};

/// One architecture of llama.cpp that Hugging Face models are converted to. A new one is a new row of [`KNOWN`].
struct Known {
    /// `general.architecture`.
    name: &'static str,
    /// Its tensors.
    tensors: TensorNames,
    /// Builds the `config.json` that the metadata describes.
    config: fn(&ConfigReader<'_>) -> Result<Value, HubError>,
}

const KNOWN: [Known; 7] = [
    Known { name: "gemma3", tensors: tensor_names::GEMMA3, config: config::gemma3 },
    Known { name: "gpt2", tensors: tensor_names::GPT2, config: config::gpt2 },
    Known { name: "llama", tensors: tensor_names::LLAMA, config: config::llama },
    Known { name: "phi3", tensors: tensor_names::PHI3, config: config::phi3 },
    Known { name: "qwen2", tensors: tensor_names::QWEN2, config: config::qwen2 },
    Known { name: "qwen3", tensors: tensor_names::QWEN3, config: config::qwen3 },
    // Converted as Llama's, interleaved rows included.
    Known { name: "smollm3", tensors: tensor_names::LLAMA, config: config::smollm3 },
];

/// A file's architecture.
pub(crate) struct Architecture {
    known: &'static Known,
    heads: u64,
    key_value_heads: u64,
}

impl Architecture {
    /// Finds a file's architecture.
    ///
    /// # Errors
    /// When it is not supported, or its head counts are not there.
    pub(crate) fn of(container: &Container) -> Result<Self, HubError> {
        let metadata = &container.metadata;
        let name = metadata.required("general.architecture", metadata.string("general.architecture")?)?;
        let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
            return Err(unsupported(metadata, format!("architecture {name:?}"), &names().join(", ")));
        };
        for (key, unsupported_from) in [("split.count", 2), (&format!("{name}.expert_count") as &str, 1)] {
            if let Some(value) = metadata.u64(key)?.filter(|&value| value >= unsupported_from) {
                return Err(unsupported(metadata, format!("{key:?} = {value}"), "one file, dense layers"));
            }
        }
        let count = |key: &str, otherwise: Option<u64>| -> Result<u64, HubError> {
            let key = format!("{name}.{key}");
            let count = metadata.required(&key, metadata.u64(&key)?.or(otherwise))?;
            // More heads than that are no model's, and cannot overflow in products below.
            if (1..=1 << 16).contains(&count) {
                Ok(count)
            } else {
                Err(HubError::corrupt(&metadata.path, format!("metadata {key:?} is {count}")))
            }
        };
        let heads = count("attention.head_count", None)?;
        Ok(Self { known, heads, key_value_heads: count("attention.head_count_kv", Some(heads))? })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.known.name
    }

    /// What a tensor of the file is. `None` when this architecture has no such tensor.
    pub(crate) fn hugging_face_name(&self, name: &str) -> Option<TensorName> {
        self.known.tensors.hugging_face(name, self.heads, self.key_value_heads)
    }

    /// The `config.json` that the metadata describes.
    ///
    /// # Errors
    /// When it is incomplete or contradicts itself.
    pub(crate) fn config(&self, container: &Container) -> Result<Value, HubError> {
        let reader = ConfigReader::new(container, self.known.name, self.heads, self.key_value_heads)?;
        (self.known.config)(&reader)
    }
}

pub(crate) fn unsupported(metadata: &Metadata, found: String, supported: &str) -> HubError {
    HubError::Unsupported {
        place: metadata.path.display().to_string(),
        found,
        supported: supported.to_owned(),
    }
}

fn names() -> Vec<&'static str> {
    KNOWN.iter().map(|known| known.name).collect()
}
