//! `Gemma3ForCausalLM`: the text models of Gemma 3. Sliding and full layers with rotary bases of their own, norms by
//! `1 + weight` before and after attention and feed-forward network, scaled embeddings (Gemma Team 2025).

use roundhouse_engine::ModelInfo;
use roundhouse_graph::{AttentionAttributes, Graph, Op};
use serde_json::json;

use crate::attention::{HeadDefaults, Heads, LayerAttention, SelfAttention};
use crate::decoder::{Decoder, DecoderDefaults};
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::{GatedFeedForward, activation};
use crate::graph_builder::GraphBuilder;
use crate::layer_types::{self, LayerType};
use crate::norm::RmsNorm;
use crate::refused_fields::refuse_fields;
use crate::{Config, ConfigError, ModelError, RopeForm, RopeParameters, RopeScaling};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    models: "Gemma 3 270M and 1B; larger ones as GGUF, text only",
    build,
    components: None,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 131_072, rms_norm_eps: 1e-6, tie_word_embeddings: true };

const HIDDEN_ACTIVATION: &str = "gelu_pytorch_tanh";

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    let own =
        ["sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"];
    refuse_fields(config, &own)?;
    // Named so in Gemma 1; Gemma 3 reads `hidden_activation`.
    config.refuse_unless("hidden_act", &[json!(HIDDEN_ACTIVATION)])?;
    let decoder = Decoder::read(config, DEFAULTS)?;
    let decoder = Decoder {
        norm: RmsNorm { unit_offset: true, ..decoder.norm },
        embedding_scale: Some(f64::from(decoder.hidden_size).sqrt() as f32),
        logits_soft_cap: config.optional_positive_number("final_logit_softcapping")?.map(|cap| cap as f32),
        ..decoder
    };
    let heads = Heads::read(
        config,
        decoder.hidden_size,
        HeadDefaults { num_key_value_heads: Some(4), head_dim: Some(256) },
    )?;
    let attention_bias = config.boolean("attention_bias", false)?;
    let attention = SelfAttention {
        heads,
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        head_norm: Some(decoder.norm),
    };
    let feed_forward = GatedFeedForward {
        hidden_size: decoder.hidden_size,
        intermediate_size: config.positive("intermediate_size")?,
        activation: activation(config, "hidden_activation", HIDDEN_ACTIVATION)?,
        bias: false,
    };
    let layers = layers(config, &decoder, &heads, decoder.longest(source))?;

    decoder.build(&FAMILY, source, |builder, layer, hidden| {
        let norm = |builder: &mut GraphBuilder<'_>, name: &str, x| {
            decoder.norm.apply(builder, &layer.module(name), x, decoder.hidden_size)
        };
        let normed = norm(builder, "input_layernorm", hidden)?;
        let attended = attention.build(builder, &layer.module("self_attn"), normed, &layers[layer.index])?;
        let attended = norm(builder, "post_attention_layernorm", attended)?;
        let hidden = builder.node(Op::Add, &[hidden, attended])?;
        let normed = norm(builder, "pre_feedforward_layernorm", hidden)?;
        let fed_forward = feed_forward.build(builder, &layer.module("mlp"), normed)?;
        let fed_forward = norm(builder, "post_feedforward_layernorm", fed_forward)?;
        builder.node(Op::Add, &[hidden, fed_forward])
    })
}

/// How each layer attends: by `layer_types`, or with every `sliding_window_pattern`-th layer a full one.
fn layers(
    config: &Config<'_>,
    decoder: &Decoder,
    heads: &Heads,
    longest: u32,
) -> Result<Vec<LayerAttention>, ConfigError> {
    let pattern = config.optional_positive("sliding_window_pattern")?.unwrap_or(6);
    let types = match layer_types::layer_types(config, decoder.num_hidden_layers)? {
        Some(types) => {
            // How Transformers writes down what the types came from.
            let _ = config.get("_sliding_window_pattern");
            types
        }
        None => {
            config.refuse_unless("_sliding_window_pattern", &[json!(pattern)])?;
            let kind = |number: u32| match number.is_multiple_of(pattern) {
                true => LayerType::Full,
                false => LayerType::Sliding,
            };
            (1..=decoder.num_hidden_layers).map(kind).collect()
        }
    };
    let sliding_window = config.positive_unless_null("sliding_window", Some(4096))?;
    let windows = layer_types::windows(config, &types, sliding_window)?;
    let [full, sliding] = rope(config, heads.head_dim)?.map(|rope| rope.attributes(longest));
    let query_pre_attn_scalar = config.optional_positive_number("query_pre_attn_scalar")?.unwrap_or(256.0);
    let scale = query_pre_attn_scalar.sqrt().recip() as f32;
    let soft_cap = config.optional_positive_number("attn_logit_softcapping")?.map(|cap| cap as f32);
    let layer = |(kind, window)| {
        let rotary = match kind {
            LayerType::Full => full.clone(),
            LayerType::Sliding => sliding.clone(),
        };
        let layer = LayerAttention::new(Some(rotary), window, longest);
        let attributes = AttentionAttributes { scale: Some(scale), soft_cap, ..layer.attributes };
        LayerAttention { attributes, ..layer }
    };
    Ok(types.into_iter().zip(windows).map(layer).collect())
}

/// The rotary embeddings of full layers and of sliding ones. `rope_parameters` has a section each; before Transformers 5
/// it was `rope_theta` and `rope_scaling` for the one and `rope_local_base_freq` for the other.
fn rope(config: &Config<'_>, head_dim: u32) -> Result<[RopeParameters; 2], ConfigError> {
    let nested = config.section("rope_parameters")?;
    let [mut full, mut sliding] = [None, None];
    if let Some(nested) = &nested {
        full = nested.section("full_attention")?;
        sliding = nested.section("sliding_attention")?;
        nested.refuse_unread()?;
    }
    if let Some(scaling) = config.section("rope_scaling")? {
        if full.is_some() {
            let found = config.get("rope_scaling").cloned().unwrap_or_default();
            let expected = "no such field beside rope_parameters.full_attention";
            return Err(config.unsupported("rope_scaling", &found, expected));
        }
        full = Some(scaling);
    }
    let read = |section: Option<&Config<'_>>, theta_field, default_theta| {
        let theta = config.optional_positive_number(theta_field)?.unwrap_or(default_theta);
        match section {
            Some(section) => {
                RopeParameters::read_section(config, section, &RopeForm::new(theta), theta, head_dim)
            }
            None => Ok(RopeParameters {
                theta,
                rotary_dim: head_dim,
                scaling: RopeScaling::Default,
                sections: Vec::new(),
            }),
        }
    };
    Ok([
        read(full.as_ref(), "rope_theta", 1_000_000.0)?,
        read(sliding.as_ref(), "rope_local_base_freq", 10_000.0)?,
    ])
}
