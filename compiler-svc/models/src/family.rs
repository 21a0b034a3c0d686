//! What a family is, and the choice of a config's.

use roundhouse_backend::WeightSource;
use roundhouse_engine::{Component, ModelInfo, VisionInfo};
use roundhouse_graph::Graph;
use serde_json::Value;

use crate::{Config, ConfigError, FAMILIES, ModelError};

/// Fields of config.json that say nothing about the computation of a forward pass.
const DESCRIPTIVE: &[&str] = &[
    "_name_or_path",
    "attention_dropout",
    "attn_pdrop",
    "auto_map",
    "cache_implementation",
    "dtype",
    "embd_pdrop",
    "initializer_range",
    "output_router_logits",
    "pad_token_id",
    "resid_pdrop",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "task_specific_params",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// What a family builds a graph from.
#[derive(Clone, Copy)]
pub struct ModelSource<'a> {
    /// config.json.
    pub config: &'a Config<'a>,
    /// The checkpoint's tensors.
    pub weights: &'a dyn WeightSource,
    /// The longest sequence that the engine is to hold; the model's own limit may be less.
    pub max_seq_len: u32,
}

/// Builds a config's graph, `(input_ids, position_ids) → logits`, and says what an executor needs to know of the model.
pub type BuildModel = fn(&ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError>;

/// Builds the graphs of a config's other components, whose tensors the language model's graph leaves alone, and says what
/// an executor needs to know of them.
pub type BuildComponents = fn(&ModelSource<'_>) -> Result<(VisionInfo, Vec<(Component, Graph)>), ModelError>;

/// A family: which checkpoints, and how their graph is built.
#[derive(Debug, Clone, Copy)]
pub struct ModelFamily {
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// The first of `architectures` of config.json.
    pub architecture: &'static str,
    /// Published models of the family.
    pub models: &'static str,
    /// Builds the graph of a config, with the checkpoint's tensors checked against it.
    pub build: BuildModel,
    /// Builds what a vision-language model has beside its language model.
    pub components: Option<BuildComponents>,
}

impl ModelFamily {
    /// What an executor needs to know of one of its models.
    pub(crate) fn info(
        &self,
        config: &Config<'_>,
        vocab_size: u32,
        num_hidden_layers: u32,
        max_position_embeddings: u32,
    ) -> Result<ModelInfo, ConfigError> {
        Ok(ModelInfo {
            model_type: self.model_type.to_owned(),
            architecture: self.architecture.to_owned(),
            vocab_size,
            num_hidden_layers,
            max_position_embeddings,
            eos_token_ids: config.token_ids("eos_token_id")?,
            bos_token_id: config.token_ids("bos_token_id")?.first().copied(),
            vision: None,
        })
    }
}

/// A model's graph, and what an executor needs to know of it.
#[derive(Debug, Clone)]
pub struct ModelGraph {
    /// `(input_ids [batch, seq] i64, position_ids [batch, seq] i64) → logits [batch, seq, vocab_size] f32`.
    pub graph: Graph,
    /// What a vision-language model has beside its language model, a graph each. The language model's inputs are then
    /// also `image_features [image_rows, hidden_size] f32` and `image_indices [batch, seq] i64`.
    pub components: Vec<(Component, Graph)>,
    /// What an executor needs to know.
    pub info: ModelInfo,
    /// Fields of config.json that this family has no meaning for. Transformers' class of the same name ignores them
    /// too; a log should name them.
    pub ignored_fields: Vec<String>,
}

/// Builds the graph of the checkpoint that `config` (config.json) and `weights` make up. `name` is for messages and
/// dumps, e.g. the model ID. `max_seq_len` is the longest sequence that the engine is to hold, past and new tokens
/// together; where that is more than the model's own limit, it is the limit.
///
/// # Errors
/// [`ModelError::UnsupportedArchitecture`] lists those that are; other variants name the field or tensor.
pub fn build_graph(
    name: &str,
    config: &Value,
    weights: &dyn WeightSource,
    max_seq_len: u32,
) -> Result<ModelGraph, ModelError> {
    let config = Config::new(config)?;
    let family = find_family(&config)?;
    let source = ModelSource { config: &config, weights, max_seq_len };
    let (mut graph, mut info) = (family.build)(&source)?;
    let mut components = Vec::new();
    if let Some(build) = family.components {
        let (vision, graphs) = build(&source)?;
        (info.vision, components) = (Some(vision), graphs);
    }
    name.clone_into(&mut graph.name);
    for (component, graph) in &mut components {
        graph.name = format!("{name} {component}");
    }
    let mut ignored_fields = config.unread();
    ignored_fields.retain(|field| !DESCRIPTIVE.contains(&field.as_str()));
    Ok(ModelGraph { graph, components, info, ignored_fields })
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
