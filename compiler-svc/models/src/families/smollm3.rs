//! `SmolLM3ForCausalLM`: Llama's layers, some of them without positions (Yang et al. 2025, NoPE).

use roundhouse_engine::ModelInfo;
use roundhouse_graph::Graph;
use serde_json::Value;

use crate::attention::{HeadDefaults, Heads, LayerAttention, SelfAttention};
use crate::decoder::{Decoder, DecoderDefaults};
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::GatedFeedForward;
use crate::layer_types::{self, LayerType};
use crate::refused_fields::refuse_fields;
use crate::{Config, ConfigError, ModelError, RopeForm, RopeParameters};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    models: "SmolLM3",
    build,
    components: None,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 32_768, rms_norm_eps: 1e-6, tie_word_embeddings: true };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &["sliding_window", "use_sliding_window", "no_rope_layers"])?;
    let decoder = Decoder::read(config, DEFAULTS)?;
    let heads = Heads::read(
        config,
        decoder.hidden_size,
        HeadDefaults { num_key_value_heads: Some(4), head_dim: None },
    )?;
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
    let rope = RopeParameters::read(config, &RopeForm::new(2_000_000.0), heads.head_dim)?;
    let longest = decoder.longest(source);
    let rotary = rope.attributes(longest);
    let rotated = rotated_layers(config, decoder.num_hidden_layers)?;
    let windows = windows(config, &rotated)?;
    let layers: Vec<LayerAttention> = rotated
        .iter()
        .zip(windows)
        .map(|(rotated, window)| LayerAttention::new(rotated.then(|| rotary.clone()), window, longest))
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

/// Which layers have positions: those with a 1 in `no_rope_layers`, or all but every `no_rope_layer_interval`-th.
fn rotated_layers(config: &Config<'_>, num_hidden_layers: u32) -> Result<Vec<bool>, ConfigError> {
    const NAME: &str = "no_rope_layers";
    let interval = config.optional_positive("no_rope_layer_interval")?.unwrap_or(4);
    let Some(list) = config.optional_list(NAME)? else {
        return Ok((1..=num_hidden_layers).map(|number| !number.is_multiple_of(interval)).collect());
    };
    let flag = |value: &Value| value.as_u64().filter(|&flag| flag <= 1).map(|flag| flag == 1);
    let layers = usize::try_from(num_hidden_layers).unwrap_or(usize::MAX);
    // A list longer than the model is allowed.
    let flags = list.get(..layers).and_then(|list| list.iter().map(flag).collect());
    flags.ok_or_else(|| {
        let expected = format!("a 0 or 1 for each of {num_hidden_layers} layers");
        config.invalid(NAME, &Value::from(list.to_vec()), &expected)
    })
}

/// Each layer's window: `use_sliding_window` switches it on, for the layers without positions unless `layer_types` says
/// which.
fn windows(config: &Config<'_>, rotated: &[bool]) -> Result<Vec<Option<u32>>, ConfigError> {
    let window = config.optional_positive("sliding_window")?;
    let window = if config.boolean("use_sliding_window", false)? { window } else { None };
    let without_positions = |&rotated: &bool| match window {
        Some(_) if !rotated => LayerType::Sliding,
        _ => LayerType::Full,
    };
    let num_hidden_layers = u32::try_from(rotated.len()).unwrap_or(u32::MAX);
    let types = match layer_types::layer_types(config, num_hidden_layers)? {
        Some(types) => types,
        None => rotated.iter().map(without_positions).collect(),
    };
    layer_types::windows(config, &types, window)
}
