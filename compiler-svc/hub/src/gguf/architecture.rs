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
    /// Whether its layers are mixtures of experts.
    experts: bool,
    /// Its tensors.
    tensors: TensorNames,
    /// Builds the `config.json` that the metadata describes.
    config: fn(&ConfigReader<'_>) -> Result<Value, HubError>,
}

/// One with dense layers.
const fn dense(
    name: &'static str,
    tensors: TensorNames,
    config: fn(&ConfigReader<'_>) -> Result<Value, HubError>,
) -> Known {
    Known { name, experts: false, tensors, config }
}

/// One with mixtures of experts.
const fn sparse(
    name: &'static str,
    tensors: TensorNames,
    config: fn(&ConfigReader<'_>) -> Result<Value, HubError>,
) -> Known {
    Known { name, experts: true, tensors, config }
}

const KNOWN: [Known; 10] = [
    dense("gemma3", tensor_names::GEMMA3, config::gemma3),
    dense("gpt2", tensor_names::GPT2, config::gpt2),
    dense("llama", tensor_names::LLAMA, config::llama),
    // Mixtral is converted to Llama's architecture.
    sparse("llama", tensor_names::MIXTRAL, config::mixtral),
    dense("phi3", tensor_names::PHI3, config::phi3),
    dense("qwen2", tensor_names::QWEN2, config::qwen2),
    sparse("qwen2moe", tensor_names::QWEN2_MOE, config::qwen2_moe),
    dense("qwen3", tensor_names::QWEN3, config::qwen3),
    sparse("qwen3moe", tensor_names::QWEN3_MOE, config::qwen3_moe),
    // Converted as Llama's, interleaved rows included.
    dense("smollm3", tensor_names::LLAMA, config::smollm3),
];

/// More heads or experts than that are no model's. As many cannot overflow in products, nor hold up a reader that goes
/// through them.
const MOST: u64 = 1 << 16;

/// A file's architecture.
pub(crate) struct Architecture {
    known: &'static Known,
    heads: u64,
    key_value_heads: u64,
    /// 0 where layers are dense.
    experts: u64,
}

impl Architecture {
    /// Finds a file's architecture.
    ///
    /// # Errors
    /// When it is not supported, or its head counts are not there.
    pub(crate) fn of(container: &Container) -> Result<Self, HubError> {
        let metadata = &container.metadata;
        let name = metadata.required("general.architecture", metadata.string("general.architecture")?)?;
        if KNOWN.iter().all(|known| known.name != name) {
            return Err(unsupported(metadata, format!("architecture {name:?}"), &names().join(", ")));
        }
        if let Some(value) = metadata.u64("split.count")?.filter(|&value| value > 1) {
            return Err(unsupported(metadata, format!("\"split.count\" = {value}"), "one file"));
        }
        let key = format!("{name}.expert_count");
        let experts = metadata.u64(&key)?.unwrap_or(0);
        if experts > MOST {
            return Err(HubError::corrupt(&metadata.path, format!("metadata {key:?} is {experts}")));
        }
        let known = KNOWN.iter().find(|known| known.name == name && known.experts == (experts > 0));
        let Some(known) = known else {
            let supported = if experts > 0 { "dense layers" } else { "one expert or more" };
            return Err(unsupported(metadata, format!("{key:?} = {experts}"), supported));
        };
        let count = |key: &str, otherwise: Option<u64>| -> Result<u64, HubError> {
            let key = format!("{name}.{key}");
            let count = metadata.required(&key, metadata.u64(&key)?.or(otherwise))?;
            if (1..=MOST).contains(&count) {
                Ok(count)
            } else {
                Err(HubError::corrupt(&metadata.path, format!("metadata {key:?} is {count}")))
            }
        };
        let heads = count("attention.head_count", None)?;
        let key_value_heads = count("attention.head_count_kv", Some(heads))?;
        Ok(Self { known, heads, key_value_heads, experts })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.known.name
    }

    /// Experts of a layer; 0 where layers are dense.
    pub(crate) fn experts(&self) -> u64 {
        self.experts
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
    let mut names: Vec<_> = KNOWN.iter().map(|known| known.name).collect();
    names.dedup();
    names
}
