//! `Phi3ForCausalLM`: Phi-3 mini and medium, Phi-3.5 mini, Phi-4 and Phi-4-mini. Llama's layers, with queries, keys and
//! values in one tensor, gate and up in another, and positions in a part of each head.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::{Graph, ValueId};
use serde_json::{Value, json};

use crate::attention::{HeadDefaults, Heads, LayerAttention};
use crate::decoder::{Decoder, DecoderDefaults};
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::GatedFeedForward;
use crate::graph_builder::GraphBuilder;
use crate::refused_fields::refuse_fields;
use crate::{ModelError, RopeForm, RopeParameters, layer_types};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    models: "Phi-3 mini and medium, Phi-3.5 mini, Phi-4, Phi-4-mini",
    build,
    components: None,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 4096, rms_norm_eps: 1e-5, tie_word_embeddings: false };

/// Phi-3's first configs called `longrope` by other names.
const ROPE: RopeForm = RopeForm {
    rope_types: &["default", "longrope"],
    aliases: &[("su", "longrope"), ("yarn", "longrope")],
    partial: true,
    default_original_max_position_embeddings: Some(4096),
    ..RopeForm::new(10_000.0)
};

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &["sliding_window", "partial_rotary_factor"])?;
    for bias in ["attention_bias", "mlp_bias"] {
        config.refuse_unless(bias, &[json!(false)])?;
    }
    let decoder = Decoder::read(config, DEFAULTS)?;
    let heads = Heads::read(config, decoder.hidden_size, HeadDefaults::default())?;
    let feed_forward = GatedFeedForward::read(config, decoder.hidden_size)?;
    if feed_forward.intermediate_size > u32::MAX / 2 {
        let found = Value::from(feed_forward.intermediate_size);
        return Err(config.invalid("intermediate_size", &found, "a size of which two fit a tensor").into());
    }
    let rope = RopeParameters::read(config, &ROPE, heads.head_dim)?;
    let window = config.optional_positive("sliding_window")?;
    let window = layer_types::uniform(config, decoder.num_hidden_layers, window)?;
    let longest = decoder.longest(source);
    let layer_attention = LayerAttention::new(Some(rope.attributes(longest)), window, longest);

    decoder.build(&FAMILY, source, |builder, layer, hidden| {
        decoder.pre_norm_layer(
            builder,
            layer,
            hidden,
            |builder, prefix, x| attention(builder, prefix, x, &heads, &layer_attention),
            |builder, prefix, x| feed_forward.build_fused(builder, prefix, x),
        )
    })
}

/// Self-attention whose `qkv_proj` holds the rows of the queries, then of the keys, then of the values.
fn attention(
    builder: &mut GraphBuilder<'_>,
    prefix: &str,
    x: ValueId,
    heads: &Heads,
    layer: &LayerAttention,
) -> Result<ValueId, ModelError> {
    let fused = format!("{prefix}.qkv_proj");
    let keys = heads.query_width;
    let values = keys + heads.key_value_width;
    let end = values + heads.key_value_width;
    let mut project = |part, rows| builder.linear_rows(&fused, x, [heads.hidden_size, end], (part, rows));
    let query = project("query", 0..keys)?;
    let key = project("key", keys..values)?;
    let value = project("value", values..end)?;
    let query = heads.split_query(builder, query)?;
    let key = heads.split_key_value(builder, key)?;
    let value = heads.split_key_value(builder, value)?;
    let attended = heads.attend(builder, [query, key, value], layer)?;
    builder.linear(&format!("{prefix}.o_proj"), attended, [heads.query_width, heads.hidden_size], false)
}
