//! `Qwen3ForCausalLM`: Llama's layers, with a norm of every head's queries and keys, and sliding windows in the upper
//! layers where the config switches them on.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::Graph;

use crate::attention::{HeadDefaults, Heads, LayerAttention, SelfAttention};
use crate::decoder::{Decoder, DecoderDefaults};
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::GatedFeedForward;
use crate::refused_fields::refuse_fields;
use crate::{ModelError, RopeForm, RopeParameters, layer_types};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily =
    ModelFamily { model_type: "qwen3", architecture: "Qwen3ForCausalLM", models: "Qwen 3 (dense)", build };

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 32_768, rms_norm_eps: 1e-6, tie_word_embeddings: false };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &["sliding_window", "use_sliding_window"])?;
    let decoder = Decoder::read(config, DEFAULTS)?;
    let heads = Heads::read(
        config,
        decoder.hidden_size,
        HeadDefaults { num_key_value_heads: Some(32), head_dim: Some(128) },
    )?;
    let attention_bias = config.boolean("attention_bias", false)?;
    let attention = SelfAttention {
        heads,
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        head_norm: Some(decoder.norm),
    };
    let feed_forward = GatedFeedForward::read(config, decoder.hidden_size)?;
    let rope = RopeParameters::read(config, &RopeForm::new(10_000.0), heads.head_dim)?;
    let longest = decoder.longest(source);
    let rotary = rope.attributes(longest);
    let windows = layer_types::upper_windows(config, decoder.num_hidden_layers)?;
    let layers: Vec<LayerAttention> = windows
        .into_iter()
        .map(|window| LayerAttention::new(Some(rotary.clone()), window, longest))
        .collect();

    decoder.build(&FAMILY, source, |builder, layer, hidden| {
        decoder.pre_norm_layer(
            builder,
            layer,
            hidden,
            |builder, prefix, x| attention.build(builder, prefix, x, &layers[layer.index]),
            |builder, prefix, x| feed_forward.build(builder, prefix, x),
        )
    })
}
