//! `LlamaForCausalLM`: Llama 2, 3, 3.1 and 3.2, SmolLM2, and the many checkpoints that share their architecture.

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
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    models: "Llama 2, 3, 3.1, 3.2; SmolLM2",
    build,
    components: None,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 2048, rms_norm_eps: 1e-6, tie_word_embeddings: false };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &[])?;
    let attention_bias = config.boolean("attention_bias", false)?;
    let form = PreNormForm {
        decoder: DEFAULTS,
        heads: HeadDefaults::default(),
        rope: RopeForm::new(10_000.0),
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        head_norm: false,
        windows: |config, layers| layer_types::uniform_windows(config, layers, None),
    };
    let decoder = PreNormDecoder::read(source, &form)?;
    let feed_forward = GatedFeedForward {
        bias: config.boolean("mlp_bias", false)?,
        ..GatedFeedForward::read(config, decoder.hidden_size())?
    };

    decoder.build(&FAMILY, source, |builder, layer, x| feed_forward.build(builder, &layer.module("mlp"), x))
}
