//! `Qwen3MoeForCausalLM`: Qwen 3's layers with mixtures of experts, and a sliding window in all of them where the config
//! switches it on.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::Graph;
use serde_json::json;

use super::qwen2_moe::EXPERT_NAMES;
use crate::attention::HeadDefaults;
use crate::decoder::DecoderDefaults;
use crate::family::{ModelFamily, ModelSource};
use crate::mixture::{EXPERT_FIELDS, MixtureOfExperts, SparseFeedForward};
use crate::pre_norm::{PreNormDecoder, PreNormForm};
use crate::refused_fields::refuse_fields;
use crate::{Config, ConfigError, ModelError, RopeForm, layer_types};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    models: "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
    build,
    components: None,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 32_768, rms_norm_eps: 1e-6, tie_word_embeddings: false };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    let own = ["sliding_window", "use_sliding_window", "use_qk_norm"];
    refuse_fields(config, &[&EXPERT_FIELDS[..], &own].concat())?;
    // Some published configs say what the class does in any case.
    for (field, value) in [
        ("use_qk_norm", json!(true)),
        ("qkv_bias", json!(false)),
        ("shared_expert_intermediate_size", json!(0)),
    ] {
        config.refuse_unless(field, &[value])?;
    }
    let attention_bias = config.boolean("attention_bias", false)?;
    let form = PreNormForm {
        decoder: DEFAULTS,
        heads: HeadDefaults { num_key_value_heads: Some(4), head_dim: None },
        rope: RopeForm::new(10_000.0),
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        head_norm: true,
        windows,
    };
    let decoder = PreNormDecoder::read(source, &form)?;
    let hidden_size = decoder.hidden_size();
    let normalize = config.boolean("norm_topk_prob", false)?;
    let experts =
        MixtureOfExperts::read(config, hidden_size, "moe_intermediate_size", normalize, EXPERT_NAMES)?;
    let feed_forward = SparseFeedForward::read(config, hidden_size, decoder.num_hidden_layers(), experts)?;

    decoder.build(&FAMILY, source, |builder, layer, x| {
        feed_forward.build(builder, layer, x, |_, mixed| Ok(mixed))
    })
}

fn windows(config: &Config<'_>, num_hidden_layers: u32) -> Result<Vec<Option<u32>>, ConfigError> {
    let window = config.positive_unless_null("sliding_window", Some(4096))?;
    let window = if config.boolean("use_sliding_window", false)? { window } else { None };
    layer_types::uniform_windows(config, num_hidden_layers, window)
}
