//! What decoders have in common outside their layers, and the usual layer.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::{Graph, Op, ValueId};

use crate::family::{ModelFamily, ModelSource};
use crate::graph_builder::GraphBuilder;
use crate::head::head_weight;
use crate::norm::RmsNorm;
use crate::{Config, ConfigError, ModelError};

/// What a family's configs mean by leaving these fields out: the defaults of its class in Transformers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderDefaults {
    pub(crate) max_position_embeddings: u32,
    pub(crate) rms_norm_eps: f64,
    pub(crate) tie_word_embeddings: bool,
}

/// Where a decoder is in its checkpoint, and what it takes beside tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderPlace {
    /// What its tensors' names begin with.
    pub(crate) model: &'static str,
    /// The name of its output layer's weight.
    pub(crate) head: &'static str,
    /// What the names of other components' tensors begin with.
    pub(crate) others: &'static [&'static str],
    /// Whether features of images stand for some embeddings.
    pub(crate) takes_images: bool,
    /// How many axes positions have, where they are several.
    pub(crate) position_axes: Option<usize>,
}

impl DecoderPlace {
    /// A language model by itself.
    pub(crate) const ALONE: Self = Self {
        model: "model",
        head: "lm_head.weight",
        others: &[],
        takes_images: false,
        position_axes: None,
    };
}

/// What a config says of a decoder outside its layers, named as there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decoder {
    pub(crate) vocab_size: u32,
    pub(crate) hidden_size: u32,
    pub(crate) num_hidden_layers: u32,
    pub(crate) max_position_embeddings: u32,
    pub(crate) tie_word_embeddings: bool,
    /// The model's norm, before the head and in its layers.
    pub(crate) norm: RmsNorm,
    /// Factor on the embeddings.
    pub(crate) embedding_scale: Option<f32>,
    /// Soft cap of the logits.
    pub(crate) logits_soft_cap: Option<f32>,
    /// Where it is in its checkpoint.
    pub(crate) place: DecoderPlace,
}

/// One layer of a decoder.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Counted from 0.
    pub(crate) index: usize,
    /// What its tensors' names begin with: `model.layers.N` in a language model by itself.
    pub(crate) prefix: String,
}

impl Layer {
    /// The name of a module of the layer.
    pub(crate) fn module(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }
}

impl Decoder {
    /// Reads them, with a plain norm and neither scale nor cap. Sizes have to be there.
    ///
    /// # Errors
    /// When a field is missing or malformed.
    pub(crate) fn read(config: &Config<'_>, defaults: DecoderDefaults) -> Result<Self, ConfigError> {
        let max_position_embeddings = config.optional_positive("max_position_embeddings")?;
        let epsilon = config.optional_positive_number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps);
        Ok(Self {
            vocab_size: config.positive("vocab_size")?,
            hidden_size: config.positive("hidden_size")?,
            num_hidden_layers: config.positive("num_hidden_layers")?,
            max_position_embeddings: max_position_embeddings.unwrap_or(defaults.max_position_embeddings),
            tie_word_embeddings: config.boolean("tie_word_embeddings", defaults.tie_word_embeddings)?,
            norm: RmsNorm { epsilon: epsilon as f32, unit_offset: false },
            embedding_scale: None,
            logits_soft_cap: None,
            place: DecoderPlace::ALONE,
        })
    }

    /// The longest sequence of an engine of this model: the model's limit or the engine's, whichever is less.
    pub(crate) fn longest(&self, source: &ModelSource<'_>) -> u32 {
        self.max_position_embeddings.min(source.max_seq_len)
    }

    /// The whole graph: embedding, layers, norm, head. `layer` builds one, `hidden [batch, seq, hidden_size]` → the
    /// same.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or not used.
    pub(crate) fn build(
        &self,
        family: &ModelFamily,
        source: &ModelSource<'_>,
        mut layer: impl FnMut(&mut GraphBuilder<'_>, &Layer, ValueId) -> Result<ValueId, ModelError>,
    ) -> Result<(Graph, ModelInfo), ModelError> {
        let info = family.info(
            source.config,
            self.vocab_size,
            self.num_hidden_layers,
            self.max_position_embeddings,
        )?;
        let DecoderPlace { model, head: head_name, others, takes_images, position_axes } = self.place;
        let mut builder = GraphBuilder::decoder(
            family.model_type,
            self.max_position_embeddings,
            position_axes,
            source.weights,
        );
        let shape = [self.vocab_size, self.hidden_size];
        let table_name = format!("{model}.embed_tokens.weight");
        let table = builder.weight(&table_name, &shape)?;
        let input_ids = builder.input("input_ids")?;
        let mut hidden = builder.node(Op::Embedding, &[input_ids, table])?;
        if takes_images {
            let [features, indices] = builder.image_inputs(self.hidden_size);
            hidden = builder.node(Op::ReplaceRows, &[hidden, features, indices])?;
        }
        if let Some(factor) = self.embedding_scale {
            hidden = builder.node(Op::Scale { factor }, &[hidden])?;
        }
        for index in 0..self.num_hidden_layers {
            let prefix = format!("{model}.layers.{index}");
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            hidden = layer(&mut builder, &Layer { index, prefix }, hidden)?;
        }
        let hidden = self.norm.apply(&mut builder, &format!("{model}.norm"), hidden, self.hidden_size)?;
        let embedding = (table_name.as_str(), table);
        let head = head_weight(&mut builder, head_name, shape, embedding, self.tie_word_embeddings)?;
        let mut logits = builder.node(Op::Linear, &[hidden, head])?;
        if let Some(cap) = self.logits_soft_cap {
            logits = builder.node(Op::SoftCap { cap }, &[logits])?;
        }
        // Old checkpoints carry the rotary angles as buffers; a tied one may carry its table twice.
        let ignored = |name: &str| {
            name.ends_with(".rotary_emb.inv_freq")
                || (head == table && name == head_name)
                || others.iter().any(|prefix| name.starts_with(prefix))
        };
        Ok((builder.finish(logits, family.architecture, ignored)?, info))
    }

    /// The usual layer, which norms what attention and feed-forward network read: `input_layernorm`, `attention`,
    /// `post_attention_layernorm`, `feed_forward`.
    pub(crate) fn pre_norm_layer(
        &self,
        builder: &mut GraphBuilder<'_>,
        layer: &Layer,
        hidden: ValueId,
        attention: impl FnOnce(&mut GraphBuilder<'_>, &str, ValueId) -> Result<ValueId, ModelError>,
        feed_forward: impl FnOnce(&mut GraphBuilder<'_>, &str, ValueId) -> Result<ValueId, ModelError>,
    ) -> Result<ValueId, ModelError> {
        let norm = |builder: &mut GraphBuilder<'_>, name: &str, x| {
            self.norm.apply(builder, &layer.module(name), x, self.hidden_size)
        };
        let normed = norm(builder, "input_layernorm", hidden)?;
        let attended = attention(builder, &layer.module("self_attn"), normed)?;
        let hidden = builder.node(Op::Add, &[hidden, attended])?;
        let normed = norm(builder, "post_attention_layernorm", hidden)?;
        let fed_forward = feed_forward(builder, &layer.module("mlp"), normed)?;
        builder.node(Op::Add, &[hidden, fed_forward])
    }
}
