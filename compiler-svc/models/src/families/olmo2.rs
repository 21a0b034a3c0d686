//! `Olmo2ForCausalLM`: OLMo 2. Llama's layers, with the norms after attention and feed-forward network instead of before
//! them, and a norm over all heads' queries together, and over all keys (OLMo et al. 2025, section 3).

use roundhouse_engine::ModelInfo;
use roundhouse_graph::{Graph, Op, ValueId};

use crate::attention::{HeadDefaults, Heads, LayerAttention};
use crate::decoder::{Decoder, DecoderDefaults};
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::GatedFeedForward;
use crate::graph_builder::GraphBuilder;
use crate::norm::RmsNorm;
use crate::refused_fields::refuse_fields;
use crate::{ModelError, RopeForm, RopeParameters, layer_types};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    models: "OLMo 2",
    build,
    components: None,
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 2048, rms_norm_eps: 1e-5, tie_word_embeddings: false };

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = source.config;
    refuse_fields(config, &[])?;
    let decoder = Decoder::read(config, DEFAULTS)?;
    layer_types::uniform(config, decoder.num_hidden_layers, None)?;
    let heads = Heads::read(config, decoder.hidden_size, HeadDefaults::default())?;
    let rope = RopeParameters::read(config, &RopeForm::new(10_000.0), heads.head_dim)?;
    let longest = decoder.longest(source);
    let attention = Attention {
        heads,
        bias: config.boolean("attention_bias", false)?,
        norm: decoder.norm,
        layer: LayerAttention::new(Some(rope.attributes(longest)), None, longest),
    };
    let feed_forward = GatedFeedForward::read(config, decoder.hidden_size)?;

    decoder.build(&FAMILY, source, |builder, layer, hidden| {
        let norm = |builder: &mut GraphBuilder<'_>, name: &str, x| {
            decoder.norm.apply(builder, &layer.module(name), x, decoder.hidden_size)
        };
        let attended = attention.build(builder, &layer.module("self_attn"), hidden)?;
        let attended = norm(builder, "post_attention_layernorm", attended)?;
        let hidden = builder.node(Op::Add, &[hidden, attended])?;
        let fed_forward = feed_forward.build(builder, &layer.module("mlp"), hidden)?;
        let fed_forward = norm(builder, "post_feedforward_layernorm", fed_forward)?;
        builder.node(Op::Add, &[hidden, fed_forward])
    })
}

/// Self-attention that norms queries and keys before they are split into heads.
struct Attention {
    heads: Heads,
    bias: bool,
    norm: RmsNorm,
    layer: LayerAttention,
}

impl Attention {
    fn build(&self, builder: &mut GraphBuilder<'_>, prefix: &str, x: ValueId) -> Result<ValueId, ModelError> {
        let heads = &self.heads;
        let project = |builder: &mut GraphBuilder<'_>, name: &str, width| {
            builder.linear(&format!("{prefix}.{name}"), x, [heads.hidden_size, width], self.bias)
        };
        let query = project(builder, "q_proj", heads.query_width)?;
        let query = self.norm.apply(builder, &format!("{prefix}.q_norm"), query, heads.query_width)?;
        let key = project(builder, "k_proj", heads.key_value_width)?;
        let key = self.norm.apply(builder, &format!("{prefix}.k_norm"), key, heads.key_value_width)?;
        let value = project(builder, "v_proj", heads.key_value_width)?;
        let query = heads.split_query(builder, query)?;
        let key = heads.split_key_value(builder, key)?;
        let value = heads.split_key_value(builder, value)?;
        let attended = heads.attend(builder, [query, key, value], &self.layer)?;
        let sizes = [heads.query_width, heads.hidden_size];
        builder.linear(&format!("{prefix}.o_proj"), attended, sizes, self.bias)
    }
}
