//! Fields that change the computation of some models.

use serde_json::{Value, json};

use crate::{Config, ConfigError};

/// Fields that change the computation of some family, or of a model in other programs, each with the values for which
/// they change nothing.
fn known_fields() -> Vec<(&'static str, Vec<Value>)> {
    let off = || vec![json!(false)];
    let one = || vec![json!(1)];
    vec![
        ("pretraining_tp", one()),
        ("quantization_config", vec![]),
        ("rope_interleaved", off()),
        ("partial_rotary_factor", one()),
        ("sliding_window", vec![]),
        ("use_sliding_window", off()),
        ("no_rope_layers", vec![]),
        ("attention_chunk_size", vec![]),
        ("is_causal", vec![json!(true)]),
        ("use_bidirectional_attention", off()),
        ("is_encoder_decoder", off()),
        ("add_cross_attention", off()),
        ("qk_norm", off()),
        ("use_qk_norm", off()),
        ("clip_qkv", vec![]),
        ("attn_logit_softcapping", vec![]),
        ("final_logit_softcapping", vec![]),
        ("query_pre_attn_scalar", vec![]),
        ("attention_multiplier", vec![]),
        ("embedding_multiplier", one()),
        ("residual_multiplier", one()),
        ("logits_scaling", one()),
        ("scale_emb", one()),
        ("scale_depth", vec![]),
        ("dim_model_base", vec![]),
        ("num_local_experts", one()),
        ("num_experts", one()),
        ("n_routed_experts", vec![]),
        ("n_shared_experts", vec![json!(0)]),
        ("first_k_dense_replace", vec![json!(0)]),
        ("scoring_func", vec![json!("softmax")]),
        ("routed_scaling_factor", one()),
        ("n_group", one()),
        ("topk_group", one()),
        ("per_layer_config", vec![]),
        ("block_configs", vec![]),
        ("lm_head_bias", off()),
        ("full_attn_mod", one()),
        ("interpolate_factor", one()),
    ]
}

/// Refuses each of these fields that asks for something, but for those that the family reads itself.
///
/// # Errors
/// [`ConfigError::Unsupported`] names the first.
pub(crate) fn refuse_fields(config: &Config<'_>, read_by_family: &[&str]) -> Result<(), ConfigError> {
    let mut fields = known_fields();
    fields.retain(|(name, _)| !read_by_family.contains(name));
    fields.iter().try_for_each(|(name, neutral)| config.refuse_unless(name, neutral))
}
