//! `MistralForCausalLM`: Llama's layers, with a sliding window in the first version's.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::Graph;

use crate::attention::{HeadDefaults, Heads, LayerAttention, SelfAttention};
use crate::decoder::{Decoder, DecoderDefaults};
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::GatedFeedForward;
use crate::refused_fields::refuse_fields;
use crate::{ModelError, RopeForm, RopeParameters, layer_types};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    models: "Mistral 7B, Mistral NeMo, Mistral Small 24B",
    build,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 131_072, rms_norm_eps: 1e-6, tie_word_embeddings: false };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &["sliding_window"])?;
    let decoder = Decoder::read(config, DEFAULTS)?;
    let heads = Heads::read(
        config,
        decoder.hidden_size,
        HeadDefaults { num_key_value_heads: Some(8), head_dim: None },
    )?;
    let attention = SelfAttention { heads, query_key_value_bias: false, output_bias: false, head_norm: None };
    let feed_forward = GatedFeedForward::read(config, decoder.hidden_size)?;
    let rope = RopeParameters::read(config, &RopeForm::new(10_000.0), heads.head_dim)?;
    let window = config.positive_unless_null("sliding_window", Some(4096))?;
    let window = layer_types::uniform(config, decoder.num_hidden_layers, window)?;
    let longest = decoder.longest(source);
    let layer_attention = LayerAttention::new(Some(rope.attributes(longest)), window, longest);

    decoder.build(&FAMILY, source, |builder, layer, hidden| {
        decoder.pre_norm_layer(
            builder,
            layer,
            hidden,
            |builder, prefix, x| attention.build(builder, prefix, x, &layer_attention),
            |builder, prefix, x| feed_forward.build(builder, prefix, x),
        )
    })
}
