//! `Qwen3ForCausalLM`: Llama's layers, with a norm of every head's queries and keys, and sliding windows in the upper
//! layers where the config switches them on.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::Graph;

use crate::attention::HeadDefaults;
use crate::decoder::DecoderDefaults;
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::GatedFeedForward;
use crate::pre_norm::{PreNormDecoder, PreNormForm};
use crate::refused_fields::refuse_fields;
use crate::{ModelError, RopeForm, layer_types};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    models: "Qwen 3 (dense)",
    build,
    components: None,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 32_768, rms_norm_eps: 1e-6, tie_word_embeddings: false };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &["sliding_window", "use_sliding_window"])?;
    let attention_bias = config.boolean("attention_bias", false)?;
    let form = PreNormForm {
        decoder: DEFAULTS,
        heads: HeadDefaults { num_key_value_heads: Some(32), head_dim: Some(128) },
        rope: RopeForm::new(10_000.0),
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        head_norm: true,
        windows: layer_types::upper_windows,
    };
    let decoder = PreNormDecoder::read(source, &form)?;
    let feed_forward = GatedFeedForward::read(config, decoder.hidden_size())?;

    decoder.build(&FAMILY, source, |builder, layer, x| feed_forward.build(builder, &layer.module("mlp"), x))
}
