//! Decoders whose layers are all the usual one: norms of what attention and feed-forward network read, a projection each
//! for queries, keys and values.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::{Graph, ValueId};

use crate::attention::{HeadDefaults, Heads, LayerAttention, SelfAttention};
use crate::decoder::{Decoder, DecoderDefaults, DecoderPlace, Layer};
use crate::family::{ModelFamily, ModelSource};
use crate::graph_builder::GraphBuilder;
use crate::{Config, ConfigError, ModelError, RopeForm, RopeParameters};

/// Reads each layer's window of a config, given the number of layers.
pub(crate) type Windows = fn(&Config<'_>, u32) -> Result<Vec<Option<u32>>, ConfigError>;

/// What sets a family of such decoders apart.
pub(crate) struct PreNormForm {
    pub(crate) decoder: DecoderDefaults,
    pub(crate) heads: HeadDefaults,
    pub(crate) rope: RopeForm,
    /// Whether `q_proj`, `k_proj` and `v_proj` have a bias.
    pub(crate) query_key_value_bias: bool,
    /// Whether `o_proj` has one.
    pub(crate) output_bias: bool,
    /// Whether every head's queries and keys are normed.
    pub(crate) head_norm: bool,
    pub(crate) windows: Windows,
}

/// Such a decoder, but for its feed-forward networks.
pub(crate) struct PreNormDecoder {
    decoder: Decoder,
    attention: SelfAttention,
    layers: Vec<LayerAttention>,
}

impl PreNormDecoder {
    /// Reads it.
    ///
    /// # Errors
    /// When a field is missing, malformed or not supported.
    pub(crate) fn read(source: &ModelSource<'_>, form: &PreNormForm) -> Result<Self, ConfigError> {
        let config = source.config;
        let decoder = Decoder::read(config, form.decoder)?;
        let heads = Heads::read(config, decoder.hidden_size, form.heads)?;
        let attention = SelfAttention {
            heads,
            query_key_value_bias: form.query_key_value_bias,
            output_bias: form.output_bias,
            head_norm: form.head_norm.then_some(decoder.norm),
        };
        let rope = RopeParameters::read(config, &form.rope, heads.head_dim)?;
        let longest = decoder.longest(source);
        let rotary = rope.attributes(longest);
        let windows = (form.windows)(config, decoder.num_hidden_layers)?;
        let layers = windows
            .into_iter()
            .map(|window| LayerAttention::new(Some(rotary.clone()), window, longest))
            .collect();
        Ok(Self { decoder, attention, layers })
    }

    /// The same decoder at another place, or with a head that is the embedding table.
    pub(crate) fn placed(self, place: DecoderPlace, tied: bool) -> Self {
        let tie_word_embeddings = self.decoder.tie_word_embeddings || tied;
        Self { decoder: Decoder { place, tie_word_embeddings, ..self.decoder }, ..self }
    }

    pub(crate) fn hidden_size(&self) -> u32 {
        self.decoder.hidden_size
    }

    pub(crate) fn num_hidden_layers(&self) -> u32 {
        self.decoder.num_hidden_layers
    }

    /// The whole graph. `feed_forward` builds a layer's network, `x [batch, seq, hidden_size]` → the same.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or not used.
    pub(crate) fn build(
        &self,
        family: &ModelFamily,
        source: &ModelSource<'_>,
        feed_forward: impl Fn(&mut GraphBuilder<'_>, &Layer, ValueId) -> Result<ValueId, ModelError>,
    ) -> Result<(Graph, ModelInfo), ModelError> {
        self.decoder.build(family, source, |builder, layer, hidden| {
            self.decoder.pre_norm_layer(
                builder,
                layer,
                hidden,
                |builder, prefix, x| self.attention.build(builder, prefix, x, &self.layers[layer.index]),
                |builder, _, x| feed_forward(builder, layer, x),
            )
        })
    }
}
