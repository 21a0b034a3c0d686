//! `LlamaForCausalLM`: Llama 2, 3, 3.1 and 3.2, SmolLM2, and the many checkpoints that share their architecture.

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
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    models: "Llama 2, 3, 3.1, 3.2; SmolLM2",
    build,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 2048, rms_norm_eps: 1e-6, tie_word_embeddings: false };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &[])?;
    let decoder = Decoder::read(config, DEFAULTS)?;
    layer_types::uniform(config, decoder.num_hidden_layers, None)?;
    let heads = Heads::read(config, decoder.hidden_size, HeadDefaults::default())?;
    let attention_bias = config.boolean("attention_bias", false)?;
    let attention = SelfAttention {
        heads,
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        head_norm: None,
    };
    let feed_forward = GatedFeedForward {
        bias: config.boolean("mlp_bias", false)?,
        ..GatedFeedForward::read(config, decoder.hidden_size)?
    };
    let rope = RopeParameters::read(config, &RopeForm::new(10_000.0), heads.head_dim)?;
    let longest = decoder.longest(source);
    let layer_attention = LayerAttention::new(Some(rope.attributes(longest)), None, longest);

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
