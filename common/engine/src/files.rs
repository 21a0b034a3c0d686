//! An engine on local disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Component, ComputeCapability, Manifest, ManifestError};

/// The roles of blobs.
pub mod blob_names {
    /// The lowered graph, JSON of `roundhouse_graph::Graph`: what the runtime runs.
    pub const GRAPH: &str = "graph.json";
    /// The graph as the model file made it, before any pass: what a rebuild for another target starts from.
    pub const SOURCE_GRAPH: &str = "graph.source.json";
    /// The weights in the engine's precision, safetensors, named as in the graph.
    pub const WEIGHTS: &str = "weights.safetensors";
    /// A TensorRT plan for all targets of the engine.
    pub const PLAN: &str = "engine.plan";

    /// A TensorRT plan for one of several targets, where an engine has a plan for each: `engine.sm_89.plan`.
    #[must_use]
    pub fn plan_for(target: super::ComputeCapability) -> String {
        format!("engine.{target}.plan")
    }

    /// A component's file of one of these roles: `vision.graph.json`.
    #[must_use]
    pub fn of_component(component: super::Component, name: &str) -> String {
        format!("{component}.{name}")
    }

    /// The TensorRT network that a plan was built from, JSON: its inputs, outputs, profiles and layers.
    pub const NETWORK: &str = "network.json";
    /// The tokenizer in Hugging Face's format.
    pub const TOKENIZER: &str = "tokenizer.json";
    /// The chat template, Jinja; absent where the checkpoint has none.
    pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
    /// `tokenizer_config.json` as in the checkpoint; absent where it has none.
    pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
    /// `generation_config.json` as in the checkpoint; absent where it has none.
    pub const GENERATION_CONFIG: &str = "generation_config.json";
    /// `preprocessor_config.json` as in the checkpoint: how images become pixel values. Only of a model with components; absent
    /// where the checkpoint has none.
    pub const PREPROCESSOR_CONFIG: &str = "preprocessor_config.json";
    /// `config.json` as in the checkpoint.
    pub const CONFIG: &str = "config.json";
}

/// A manifest with its blobs as verified local files.
#[derive(Debug, Clone)]
pub struct EngineFiles {
    /// The manifest.
    pub manifest: Manifest,
    /// Where each blob is, by role.
    pub paths: BTreeMap<String, PathBuf>,
}

impl EngineFiles {
    /// The file of a role.
    ///
    /// # Errors
    /// [`ManifestError::MissingBlob`] when the engine has none.
    pub fn path(&self, name: &str) -> Result<&Path, ManifestError> {
        self.paths.get(name).map(PathBuf::as_path).ok_or_else(|| ManifestError::MissingBlob {
            key: self.manifest.key.to_string(),
            name: name.to_owned(),
        })
    }

    /// The TensorRT plan for a GPU: its own where the engine has one for each target, else the one for all of them.
    ///
    /// # Errors
    /// [`ManifestError::MissingBlob`] when the engine has neither.
    pub fn plan(&self, device: ComputeCapability) -> Result<&Path, ManifestError> {
        let own = self.paths.get(&blob_names::plan_for(device));
        own.map_or_else(|| self.path(blob_names::PLAN), |own| Ok(own.as_path()))
    }
}
