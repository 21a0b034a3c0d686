//! The table of families.

use roundhouse_backend::WeightSource;
use roundhouse_engine::ModelInfo;
use roundhouse_graph::Graph;
use serde_json::Value;

use crate::{Config, ModelError, llama};

/// Fields of config.json that say nothing about the computation of a forward pass.
const DESCRIPTIVE: &[&str] = &[
    "_name_or_path",
    "attention_dropout",
    "dtype",
    "initializer_range",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// Builds a config's graph, `(input_ids, position_ids) → logits`, and says what an executor needs to know of the model.
pub type BuildModel = fn(&Config<'_>, &dyn WeightSource) -> Result<(Graph, ModelInfo), ModelError>;

/// A family: which checkpoints, and how their graph is built.
#[derive(Debug, Clone, Copy)]
pub struct ModelFamily {
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// The first of `architectures` of config.json.
    pub architecture: &'static str,
    /// Builds the graph of a config, with the checkpoint's tensors checked against it.
    pub build: BuildModel,
}

/// The families this compiler knows.
pub const FAMILIES: &[ModelFamily] = &[llama::FAMILY];

/// A model's graph, and what an executor needs to know of it.
#[derive(Debug, Clone)]
pub struct ModelGraph {
    /// `(input_ids [batch, seq] i64, position_ids [batch, seq] i64) → logits [batch, seq, vocab_size] f32`.
    pub graph: Graph,
    /// What an executor needs to know.
    pub info: ModelInfo,
    /// Fields of config.json that this family has no meaning for. Transformers' class of the same name ignores them
    /// too; a log should name them.
    pub ignored_fields: Vec<String>,
}

/// Builds the graph of the checkpoint that `config` (config.json) and `weights` make up. `name` is for messages and
/// dumps, e.g. the model ID.
///
/// # Errors
/// [`ModelError::UnsupportedArchitecture`] lists those that are; other variants name the field or tensor.
pub fn build_graph(name: &str, config: &Value, weights: &dyn WeightSource) -> Result<ModelGraph, ModelError> {
    let config = Config::new(config)?;
    let family = find_family(&config)?;
    let (mut graph, info) = (family.build)(&config, weights)?;
    name.clone_into(&mut graph.name);
    let mut ignored_fields = config.unread();
    ignored_fields.retain(|field| !DESCRIPTIVE.contains(&field.as_str()));
    Ok(ModelGraph { graph, info, ignored_fields })
}

/// The family of a config: by its first architecture and its model type, either of which may be left out, not both.
fn find_family(config: &Config<'_>) -> Result<&'static ModelFamily, ModelError> {
    let model_type = config.optional_string("model_type")?;
    let architecture = match config.get("architectures") {
        None => None,
        Some(value) => match value.get(0).and_then(Value::as_str) {
            Some(architecture) => Some(architecture),
            None => {
                return Err(config.invalid("architectures", value, "a list that begins with a name").into());
            }
        },
    };
    if architecture.is_none() && model_type.is_none() {
        return Err(config.missing("architectures", "a list that begins with a name").into());
    }
    let fits = |family: &&ModelFamily| {
        architecture.is_none_or(|name| name == family.architecture)
            && model_type.is_none_or(|name| name == family.model_type)
    };
    FAMILIES.iter().find(fits).ok_or_else(|| {
        let quoted =
            |name: Option<&str>| name.map_or_else(|| "(none)".to_owned(), |name| format!("{name:?}"));
        let supported: Vec<String> = FAMILIES
            .iter()
            .map(|family| format!("{} (model_type {:?})", family.architecture, family.model_type))
            .collect();
        ModelError::UnsupportedArchitecture {
            found: format!("{} (model_type {})", architecture.unwrap_or("(none)"), quoted(model_type)),
            supported: supported.join(", "),
        }
    })
}
