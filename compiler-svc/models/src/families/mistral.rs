//! `MistralForCausalLM`: Llama's layers, with a sliding window in the first version's.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::Graph;

use crate::attention::HeadDefaults;
use crate::decoder::DecoderDefaults;
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::GatedFeedForward;
use crate::pre_norm::{PreNormDecoder, PreNormForm};
use crate::refused_fields::refuse_fields;
use crate::{Config, ConfigError, ModelError, RopeForm, layer_types};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    models: "Mistral 7B, Mistral NeMo, Mistral Small 24B",
    build,
    components: None,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 131_072, rms_norm_eps: 1e-6, tie_word_embeddings: false };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &["sliding_window"])?;
    let form = PreNormForm {
        decoder: DEFAULTS,
        heads: HeadDefaults { num_key_value_heads: Some(8), head_dim: None },
        rope: RopeForm::new(10_000.0),
        query_key_value_bias: false,
        output_bias: false,
        head_norm: false,
        windows,
    };
    let decoder = PreNormDecoder::read(source, &form)?;
    let feed_forward = GatedFeedForward::read(config, decoder.hidden_size())?;

    decoder.build(&FAMILY, source, |builder, layer, x| feed_forward.build(builder, &layer.module("mlp"), x))
}

fn windows(config: &Config<'_>, num_hidden_layers: u32) -> Result<Vec<Option<u32>>, ConfigError> {
    let window = config.positive_unless_null("sliding_window", Some(4096))?;
    layer_types::uniform_windows(config, num_hidden_layers, window)
}
