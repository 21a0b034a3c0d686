//! `MixtralForCausalLM`: Mistral's layers with mixtures of experts.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::Graph;
use serde_json::Value;

use crate::attention::HeadDefaults;
use crate::decoder::DecoderDefaults;
use crate::family::{ModelFamily, ModelSource};
use crate::mixture::{EXPERT_FIELDS, ExpertNames, MixtureOfExperts};
use crate::pre_norm::{PreNormDecoder, PreNormForm};
use crate::refused_fields::refuse_fields;
use crate::{Config, ConfigError, ModelError, RopeForm, layer_types};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "mixtral",
    architecture: "MixtralForCausalLM",
    models: "Mixtral 8x7B and 8x22B",
    build,
    components: None,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 131_072, rms_norm_eps: 1e-5, tie_word_embeddings: false };

const EXPERT_NAMES: ExpertNames =
    ExpertNames { module: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &[&EXPERT_FIELDS[..], &["sliding_window"]].concat())?;
    let form = PreNormForm {
        decoder: DEFAULTS,
        heads: HeadDefaults { num_key_value_heads: Some(8), head_dim: None },
        rope: RopeForm::new(1_000_000.0),
        query_key_value_bias: false,
        output_bias: false,
        head_norm: false,
        windows,
    };
    let decoder = PreNormDecoder::read(source, &form)?;
    let experts =
        MixtureOfExperts::read(config, decoder.hidden_size(), "intermediate_size", true, EXPERT_NAMES)?;
    let experts =
        experts.ok_or_else(|| config.invalid("num_local_experts", &Value::from(0), "one expert or more"))?;

    decoder.build(&FAMILY, source, |builder, layer, x| experts.build(builder, layer, x))
}

fn windows(config: &Config<'_>, num_hidden_layers: u32) -> Result<Vec<Option<u32>>, ConfigError> {
    let window = config.optional_positive("sliding_window")?;
    layer_types::uniform_windows(config, num_hidden_layers, window)
}
