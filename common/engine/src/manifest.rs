//! The manifest: what an engine is, for what target, and of which blobs.

use std::collections::BTreeMap;

use roundhouse_graph::PassReport;
use serde::{Deserialize, Serialize};

use crate::{EngineKey, EngineOptions, Target};

/// A content-addressed file of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// Its role, one of [`crate::blob_names`] or the backend's own: letters, digits, `.`, `_` and `-`, the first one a
    /// letter or digit.
    pub name: String,
    /// Hex SHA-256 of its bytes.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

/// What an executor needs to know of the model without reading its graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `model_type` of config.json, e.g. `llama`.
    pub model_type: String,
    /// The first of `architectures` of config.json, e.g. `LlamaForCausalLM`.
    pub architecture: String,
    /// Rows of the embedding table and of the logits.
    pub vocab_size: u32,
    /// Decoder layers.
    pub num_hidden_layers: u32,
    /// `max_position_embeddings` of the config.
    pub max_position_embeddings: u32,
    /// Tokens that end a generation: `eos_token_id` of generation_config.json, else of config.json.
    pub eos_token_ids: Vec<u32>,
    /// `bos_token_id`, where there is one.
    pub bos_token_id: Option<u32>,
    /// What it makes of images; `None` for a text model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<VisionInfo>,
}

/// What an executor needs to know of a model's vision side without reading its graphs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisionInfo {
    /// The token whose embeddings an image's features stand for, where the config says its ID.
    pub image_token_id: Option<u32>,
    /// The same token as the tokenizer writes it.
    pub image_token: String,
    /// Columns of the features.
    pub feature_size: u32,
    /// How pixels become patches, and patches tokens.
    pub patches: Patches,
}

/// How a vision tower takes images apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Patches {
    /// One grid of patches an image, of any size, which attend within windows (Qwen2.5-VL). `spatial_merge_size` by
    /// `spatial_merge_size` patches are a token.
    Grid {
        /// Pixels of a patch's side.
        patch_size: u32,
        /// Frames of a patch; an image is repeated as often.
        temporal_patch_size: u32,
        /// Patches of a token's side.
        spatial_merge_size: u32,
        /// Pixels of a window's side.
        window_size: u32,
    },
    /// Square tiles of one size, each `tokens` tokens (Eagle2).
    Tiles {
        /// Pixels of a tile's side.
        image_size: u32,
        /// Tokens of a tile.
        tokens: u32,
    },
}

/// The memory of one process that loads an engine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Weights, in bytes.
    pub weight_bytes: u64,
    /// Keys and values of one token, all layers together, in bytes. See [`MemoryPlan::kv_bytes`] for many tokens.
    pub kv_bytes_per_token: u64,
    /// The layers of sliding windows whose caches stop growing, by where they do; none where all caches grow with the
    /// sequence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv_rings: Vec<KvRing>,
    /// Activations and scratch at the largest step, in bytes.
    pub workspace_bytes: u64,
}

/// Layers whose caches hold the last so many tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvRing {
    /// The most tokens that they hold.
    pub tokens: u64,
    /// Their part of [`MemoryPlan::kv_bytes_per_token`].
    pub bytes_per_token: u64,
}

impl MemoryPlan {
    /// This and what a component of the same engine takes.
    #[must_use]
    pub fn with_component(self, component: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes.saturating_add(component.weight_bytes),
            workspace_bytes: self.workspace_bytes.saturating_add(component.workspace_bytes),
            ..self
        }
    }

    /// Bytes of the keys and values of a sequence of at most `tokens` tokens.
    #[must_use]
    pub fn kv_bytes(&self, tokens: u64) -> u64 {
        let spared = self
            .kv_rings
            .iter()
            .map(|ring| u128::from(tokens.saturating_sub(ring.tokens)) * u128::from(ring.bytes_per_token));
        let all = u128::from(tokens) * u128::from(self.kv_bytes_per_token);
        u64::try_from(all.saturating_sub(spared.fold(0, u128::saturating_add))).unwrap_or(u64::MAX)
    }
}

/// The manifest of an engine, `engines/<key>/manifest.json` in a store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this structure: [`Manifest::FORMAT`].
    pub format: u32,
    /// The engine's key.
    pub key: EngineKey,
    /// The model as it was asked for: a hub ID, path or URL.
    pub model: String,
    /// The commit or revision, where known.
    pub revision: Option<String>,
    /// Hex SHA-256 that identifies the checkpoint's content.
    pub checkpoint_digest: String,
    /// The model.
    pub info: ModelInfo,
    /// The options.
    pub options: EngineOptions,
    /// What it runs on.
    pub target: Target,
    /// The backend's exact version.
    pub backend_version: String,
    /// The compiler's exact version.
    pub compiler_version: String,
    /// What each pass did.
    pub passes: Vec<PassReport>,
    /// The memory of one process that loads it, with `max_batch_size` sequences in a step.
    pub memory_plan: MemoryPlan,
    /// The files.
    pub blobs: Vec<BlobRef>,
    /// When it was built: milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: u64,
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of this structure.
    #[error("manifest of engine {key}: {source}")]
    Json {
        /// The engine.
        key: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Another format.
    #[error(
        "manifest of engine {key} has format {found}; this version reads format {expected}: rebuild the engine"
    )]
    Format {
        /// The engine.
        key: String,
        /// The manifest's.
        found: u64,
        /// Ours.
        expected: u32,
    },
    /// Another engine's.
    #[error("the manifest of engine {key} says that it is of engine {found}")]
    OtherEngine {
        /// The engine asked for.
        key: String,
        /// The key in the manifest.
        found: String,
    },
    /// Larger than any real one.
    #[error("manifest of engine {key} has {found} bytes; at most {limit} are read")]
    TooLarge {
        /// The engine.
        key: String,
        /// Its bytes.
        found: u64,
        /// The most that is read.
        limit: u64,
    },
    /// Well-formed, but with a value that cannot be.
    #[error("manifest of engine {key}: {what}")]
    Invalid {
        /// The engine.
        key: String,
        /// Which value, and what it must be.
        what: String,
    },
    /// It lacks a blob.
    #[error("engine {key} has no blob {name:?}")]
    MissingBlob {
        /// The engine.
        key: String,
        /// The blob's role.
        name: String,
    },
}

impl Manifest {
    /// The format that this version reads and writes.
    pub const FORMAT: u32 = 1;

    /// The most bytes of JSON that are read as a manifest.
    pub const MAX_JSON_BYTES: u64 = 4 << 20;

    /// Reads the manifest of engine `key` and validates it, so that what it names is safe to use: see
    /// [`Manifest::validate`].
    ///
    /// # Errors
    /// Any [`ManifestError`] but [`ManifestError::MissingBlob`].
    pub fn from_json(key: &EngineKey, json: &[u8]) -> Result<Self, ManifestError> {
        /// The part that every format has.
        #[derive(Deserialize)]
        struct Header {
            format: u64,
        }

        let found = json.len() as u64;
        if found > Self::MAX_JSON_BYTES {
            return Err(ManifestError::TooLarge { key: key.to_string(), found, limit: Self::MAX_JSON_BYTES });
        }
        let broken = |source| ManifestError::Json { key: key.to_string(), source };
        let header: Header = serde_json::from_slice(json).map_err(broken)?;
        if header.format != u64::from(Self::FORMAT) {
            return Err(ManifestError::Format {
                key: key.to_string(),
                found: header.format,
                expected: Self::FORMAT,
            });
        }
        let manifest: Self = serde_json::from_slice(json).map_err(broken)?;
        if manifest.key != *key {
            return Err(ManifestError::OtherEngine { key: key.to_string(), found: manifest.key.to_string() });
        }
        manifest.validate()?;
        Ok(manifest)
    }

    /// As JSON for people and for [`Manifest::from_json`].
    ///
    /// # Errors
    /// [`ManifestError::Json`]: never in practice, a manifest serialises.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        serde_json::to_vec_pretty(self)
            .map_err(|source| ManifestError::Json { key: self.key.to_string(), source })
    }

    /// The size of all blobs together, in bytes. A blob under two names counts once.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let sizes: BTreeMap<&str, u64> =
            self.blobs.iter().map(|blob| (blob.sha256.as_str(), blob.size)).collect();
        sizes.values().fold(0, |sum, size| sum.saturating_add(*size))
    }

    /// The blob of this role.
    ///
    /// # Errors
    /// [`ManifestError::MissingBlob`] when there is none.
    pub fn blob(&self, name: &str) -> Result<&BlobRef, ManifestError> {
        self.blobs
            .iter()
            .find(|blob| blob.name == name)
            .ok_or_else(|| ManifestError::MissingBlob { key: self.key.to_string(), name: name.to_owned() })
    }
}
