//! `Qwen2MoeForCausalLM`: Qwen 2's layers with mixtures of experts, beside each of them an expert that all tokens share,
//! weighed by a gate.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::{Graph, Op};

use crate::attention::HeadDefaults;
use crate::decoder::DecoderDefaults;
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::GatedFeedForward;
use crate::layer_types::{self, LayerType};
use crate::mixture::{ExpertNames, MixtureOfExperts, SparseFeedForward};
use crate::pre_norm::{PreNormDecoder, PreNormForm};
use crate::refused_fields::refuse_fields;
use crate::{Config, ConfigError, ModelError, RopeForm};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "qwen2_moe",
    architecture: "Qwen2MoeForCausalLM",
    models: "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    build,
    components: None,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 32_768, rms_norm_eps: 1e-6, tie_word_embeddings: false };

/// Qwen 3's are called so too.
pub(super) const EXPERT_NAMES: ExpertNames =
    ExpertNames { module: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &["num_experts", "sliding_window", "use_sliding_window"])?;
    let form = PreNormForm {
        decoder: DEFAULTS,
        heads: HeadDefaults { num_key_value_heads: Some(16), head_dim: None },
        rope: RopeForm::new(10_000.0),
        query_key_value_bias: config.boolean("qkv_bias", true)?,
        output_bias: false,
        head_norm: false,
        windows,
    };
    let decoder = PreNormDecoder::read(source, &form)?;
    let hidden_size = decoder.hidden_size();
    let normalize = config.boolean("norm_topk_prob", false)?;
    let experts =
        MixtureOfExperts::read(config, hidden_size, "moe_intermediate_size", normalize, EXPERT_NAMES)?;
    let feed_forward = SparseFeedForward::read(config, hidden_size, decoder.num_hidden_layers(), experts)?;
    let shared = GatedFeedForward {
        intermediate_size: config.positive("shared_expert_intermediate_size")?,
        ..GatedFeedForward::read(config, hidden_size)?
    };

    decoder.build(&FAMILY, source, |builder, layer, x| {
        feed_forward.build(builder, layer, x, |builder, mixed| {
            let shared = shared.build(builder, &layer.module("mlp.shared_expert"), x)?;
            let gate = builder.linear(&layer.module("mlp.shared_expert_gate"), x, [hidden_size, 1], false)?;
            let gate = builder.node(Op::Sigmoid, &[gate])?;
            let shared = builder.node(Op::Mul, &[shared, gate])?;
            builder.node(Op::Add, &[mixed, shared])
        })
    })
}

/// Each layer's window: `use_sliding_window` switches it on, for every other layer below `max_window_layers`, from the
/// first on, unless `layer_types` says which.
fn windows(config: &Config<'_>, num_hidden_layers: u32) -> Result<Vec<Option<u32>>, ConfigError> {
    // Transformers writes 0 for a window that is switched off.
    let window = match config.boolean("use_sliding_window", false)? {
        true => config.positive_unless_null("sliding_window", Some(4096))?,
        false => config.optional_unsigned("sliding_window")?.and(None),
    };
    let end = config.optional_unsigned("max_window_layers")?.unwrap_or(28);
    let by_index = |layer: u32| match window {
        Some(_) if layer.is_multiple_of(2) && layer < end => LayerType::Sliding,
        _ => LayerType::Full,
    };
    let types = match layer_types::layer_types(config, num_hidden_layers)? {
        Some(types) => types,
        None => (0..num_hidden_layers).map(by_index).collect(),
    };
    layer_types::windows(config, &types, window)
}
