//! `Qwen2_5_VLForConditionalGeneration` (Bai et al. 2025): Qwen 2's layers with positions along time, height and width
//! (M-RoPE), and a vision tower that attends within windows, and within whole images in some layers.
//!
//! Windows, positions and images enter the tower's graph as inputs, so one graph takes images of any size:
//!
//! * `vision`: `pixel_values [patches, channels · temporal_patch_size · patch_size²] f32`, `position_ids [1, 2, patches]`
//!   (height and width), `window_index [tokens]`, `window_segment_ids [1, patches]`, `image_segment_ids [1, patches]`, all
//!   i64, → hidden states `[1, patches, hidden_size]`. `window_index` is the order of tokens (groups of
//!   `spatial_merge_size²` patches) by window; all inputs but the pixels, and the hidden states, are in that order.
//! * `projector`: those hidden states, `reverse_index [tokens] i64` (the way back to the pixels' order) → features
//!   `[tokens, out_hidden_size]`.

use roundhouse_backend::{WeightError, WeightSource};
use roundhouse_engine::{Component, ModelInfo, Patches, VisionInfo};
use roundhouse_graph::{
    AttentionAttributes, DType, Dim, GeluApproximation, Graph, Op, RotaryAttributes, ValueId, WeightExpr,
};
use serde_json::{Value, json};

use crate::attention::HeadDefaults;
use crate::decoder::{DecoderDefaults, DecoderPlace};
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::{GatedFeedForward, activation};
use crate::graph_builder::{GraphBuilder, constant};
use crate::norm::RmsNorm;
use crate::pre_norm::{PreNormDecoder, PreNormForm};
use crate::refused_fields::refuse_fields;
use crate::{Config, ConfigError, ModelError, RopeForm, layer_types};

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "qwen2_5_vl",
    architecture: "Qwen2_5_VLForConditionalGeneration",
    models: "Qwen 2.5 VL",
    build,
    components: Some(build_components),
};

const DEFAULTS: DecoderDefaults =
    DecoderDefaults { max_position_embeddings: 32_768, rms_norm_eps: 1e-5, tie_word_embeddings: false };
const PLACE: DecoderPlace =
    DecoderPlace { others: &["visual."], takes_images: true, position_axes: Some(3), ..DecoderPlace::ALONE };
/// As Transformers names tensors in memory, and in checkpoints that it writes so.
const PLACE_IN_MEMORY: DecoderPlace =
    DecoderPlace { model: "model.language_model", others: &["model.visual."], ..PLACE };
/// `rms_norm_eps` of the vision tower, which no config says.
const VISION_NORM: RmsNorm = RmsNorm { epsilon: 1e-6, unit_offset: false };
/// Fields of the vision section that say nothing about the computation.
const DESCRIPTIVE: &[&str] =
    &["model_type", "initializer_range", "tokens_per_second", "spatial_patch_size", "dtype", "torch_dtype"];

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let section = source.config.section("text_config")?;
    let config = section.as_ref().unwrap_or(source.config);
    refuse_fields(config, &["sliding_window", "use_sliding_window"])?;
    let form = PreNormForm {
        decoder: DEFAULTS,
        heads: HeadDefaults { num_key_value_heads: Some(8), head_dim: None },
        rope: RopeForm {
            aliases: &[("mrope", "default")],
            default_sections: &[16, 24, 24],
            ..RopeForm::new(1_000_000.0)
        },
        query_key_value_bias: true,
        output_bias: false,
        head_norm: false,
        windows: layer_types::upper_windows,
    };
    let text = ModelSource { config, ..*source };
    let tied = source.config.boolean("tie_word_embeddings", false)?;
    let place = if is_in_memory(source.weights)? { PLACE_IN_MEMORY } else { PLACE };
    let decoder = PreNormDecoder::read(&text, &form)?.placed(place, tied);
    let feed_forward = GatedFeedForward::read(config, decoder.hidden_size())?;
    let width = VisionConfig::read(source)?.out_hidden_size;
    if width != decoder.hidden_size() {
        let expected = format!("{}, the hidden_size of the language model", decoder.hidden_size());
        return Err(source.config.invalid("vision_config.out_hidden_size", &json!(width), &expected).into());
    }
    decoder.build(&FAMILY, &text, |builder, layer, x| feed_forward.build(builder, &layer.module("mlp"), x))
}

/// Whether tensors are named as Transformers has them in memory, and not as in the published checkpoints.
fn is_in_memory(weights: &dyn WeightSource) -> Result<bool, WeightError> {
    match weights.shape("model.visual.patch_embed.proj.weight") {
        Ok(_) => Ok(true),
        Err(WeightError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn build_components(source: &ModelSource<'_>) -> Result<(VisionInfo, Vec<(Component, Graph)>), ModelError> {
    let vision = VisionConfig::read(source)?;
    let prefix = if is_in_memory(source.weights)? { "model.visual" } else { "visual" };
    let image_token_id = source.config.optional_unsigned("image_token_id")?;
    let info = VisionInfo {
        image_token_id,
        image_token: "<|image_pad|>".to_owned(),
        feature_size: vision.out_hidden_size,
        patches: Patches::Grid {
            patch_size: vision.patch_size,
            temporal_patch_size: vision.temporal_patch_size,
            spatial_merge_size: vision.spatial_merge_size,
            window_size: vision.window_size,
        },
    };
    // Tokens of videos, and marks that the chat template writes.
    for name in ["video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id"] {
        let _ = source.config.get(name);
    }
    let tower = vision.tower(source.weights, prefix)?;
    let projector = vision.projector(source.weights, prefix)?;
    Ok((info, vec![(Component::Vision, tower), (Component::Projector, projector)]))
}

/// What the config says of the vision tower, named as there.
struct VisionConfig {
    hidden_size: u32,
    num_heads: u32,
    intermediate_size: u32,
    hidden_act: Op,
    out_hidden_size: u32,
    in_channels: u32,
    patch_size: u32,
    temporal_patch_size: u32,
    spatial_merge_size: u32,
    window_size: u32,
    /// By layer.
    attends_fully: Vec<bool>,
    rope_theta: f64,
    /// The most tokens of all images of a call: no more fit a sequence.
    max_tokens: u32,
}

impl VisionConfig {
    fn read(source: &ModelSource<'_>) -> Result<Self, ConfigError> {
        let Some(config) = source.config.section("vision_config")? else {
            return Err(source.config.missing("vision_config", "an object"));
        };
        let size = |name: &str, default| Ok(config.optional_positive(name)?.unwrap_or(default));
        let channels = size("in_channels", 3)?;
        let depth = size("depth", 32)?;
        let vision = Self {
            hidden_size: size("hidden_size", 3584)?,
            num_heads: size("num_heads", 16)?,
            intermediate_size: size("intermediate_size", 3420)?,
            hidden_act: activation(&config, "hidden_act", "silu")?,
            out_hidden_size: size("out_hidden_size", 3584)?,
            in_channels: size("in_chans", channels)?,
            patch_size: size("patch_size", 14)?,
            temporal_patch_size: size("temporal_patch_size", 2)?,
            spatial_merge_size: size("spatial_merge_size", 2)?,
            window_size: size("window_size", 112)?,
            attends_fully: attends_fully(&config, depth)?,
            rope_theta: rope_theta(&config)?,
            max_tokens: source.max_seq_len,
        };
        for name in DESCRIPTIVE {
            let _ = config.get(name);
        }
        config.refuse_unread()?;
        vision.check(&config)?;
        Ok(vision)
    }

    fn check(&self, config: &Config<'_>) -> Result<(), ConfigError> {
        let invalid = |name: &str, found: u32, expected: String| {
            Err(config.invalid(name, &Value::from(found), &expected))
        };
        let heads = self.num_heads.checked_mul(4);
        if !heads.is_some_and(|heads| self.hidden_size.is_multiple_of(heads)) {
            let expected = format!("a multiple of four times num_heads, which is {}", self.num_heads);
            return invalid("hidden_size", self.hidden_size, expected);
        }
        // Of a size that tensors can have: three projections in one, a token's patches side by side.
        let columns = self.patch_columns().zip(self.token_columns()).zip(self.hidden_size.checked_mul(3));
        if columns.is_none() {
            return invalid("hidden_size", self.hidden_size, "a size of which a tensor can be".to_owned());
        }
        if self.window_size / self.spatial_merge_size / self.patch_size == 0 {
            let least = u64::from(self.spatial_merge_size) * u64::from(self.patch_size);
            return invalid("window_size", self.window_size, format!("{least} or more: one token at least"));
        }
        Ok(())
    }

    /// Numbers of a flattened patch.
    fn patch_columns(&self) -> Option<u32> {
        let area = self.patch_size.checked_mul(self.patch_size)?;
        self.in_channels.checked_mul(self.temporal_patch_size)?.checked_mul(area)
    }

    /// Columns of a token: its patches' hidden states side by side.
    fn token_columns(&self) -> Option<u32> {
        self.spatial_merge_size.checked_mul(self.spatial_merge_size)?.checked_mul(self.hidden_size)
    }

    /// A graph with the symbol of its tokens; tokens and patches.
    fn graph(&self, name: &str) -> (Graph, Dim, Dim) {
        let mut graph = Graph::new(name);
        let tokens = Dim::symbol(graph.add_symbol("tokens", 1, i64::from(self.max_tokens.max(1))));
        let patches = tokens.times(i64::from(self.spatial_merge_size) * i64::from(self.spatial_merge_size));
        (graph, tokens, patches)
    }

    fn tower(&self, weights: &dyn WeightSource, prefix: &str) -> Result<Graph, ModelError> {
        let (mut graph, tokens, patches) = self.graph("vision");
        let (columns, token_columns) = (self.patch_columns().unwrap_or(0), self.token_columns().unwrap_or(0));
        let hidden_size = self.hidden_size;
        let pixels = graph.add_input("pixel_values", DType::F32, vec![patches.clone(), constant(columns)]);
        let one = Dim::constant(1);
        let mut input = |name: &str, shape: &[&Dim]| {
            graph.add_input(name, DType::I64, shape.iter().map(|&dim| dim.clone()).collect())
        };
        let positions = input("position_ids", &[&one, &Dim::constant(2), &patches]);
        let window_index = input("window_index", &[&tokens]);
        let windows = input("window_segment_ids", &[&one, &patches]);
        let images = input("image_segment_ids", &[&one, &patches]);
        let mut own = GraphBuilder::component(graph, [one.clone(), patches.clone()], weights);
        let builder = &mut own;

        let kernel = format!("{prefix}.patch_embed.proj.weight");
        let [channels, frames, side] = [self.in_channels, self.temporal_patch_size, self.patch_size];
        let flattened = WeightExpr::Flattened { name: kernel.clone() };
        let windows_of = [hidden_size, channels, frames, side, side];
        let kernel =
            builder.derived(&kernel, &kernel, &windows_of, &[hidden_size, columns], |_| flattened)?;
        let mut hidden = builder.node(Op::Linear, &[pixels, kernel])?;
        let by_token = vec![tokens, constant(token_columns)];
        hidden = builder.node(Op::Reshape { shape: by_token }, &[hidden])?;
        hidden = builder.node(Op::Gather { axis: 0 }, &[hidden, window_index])?;
        let by_patch = vec![one, patches, constant(hidden_size)];
        hidden = builder.node(Op::Reshape { shape: by_patch }, &[hidden])?;

        let rotary = Op::RotaryEmbedding(self.rotary());
        for (index, attends_fully) in self.attends_fully.iter().enumerate() {
            let block = format!("{prefix}.blocks.{index}");
            let normed = VISION_NORM.apply(builder, &format!("{block}.norm1"), hidden, hidden_size)?;
            let segments = if *attends_fully { images } else { windows };
            let attended = self.attention(builder, &block, normed, &rotary, [positions, segments])?;
            hidden = builder.node(Op::Add, &[hidden, attended])?;
            let normed = VISION_NORM.apply(builder, &format!("{block}.norm2"), hidden, hidden_size)?;
            let fed_forward = self.feed_forward().build(builder, &format!("{block}.mlp"), normed)?;
            hidden = builder.node(Op::Add, &[hidden, fed_forward])?;
        }
        own.finish_as("output", hidden, FAMILY.architecture, |name| {
            !name.starts_with(&format!("{prefix}.")) || name.starts_with(&format!("{prefix}.merger."))
        })
    }

    fn attention(
        &self,
        builder: &mut GraphBuilder<'_>,
        block: &str,
        x: ValueId,
        rotary: &Op,
        [positions, segments]: [ValueId; 2],
    ) -> Result<ValueId, ModelError> {
        let (hidden_size, head_dim) = (self.hidden_size, self.hidden_size / self.num_heads);
        let mut project = |part: &str, index: u32| {
            let rows = index * hidden_size..(index + 1) * hidden_size;
            let sizes = [hidden_size, 3 * hidden_size];
            let x = builder.linear_rows_and_bias(&format!("{block}.attn.qkv"), x, sizes, (part, rows))?;
            builder.split_heads(x, self.num_heads, head_dim)
        };
        let [query, key, value] = [project("q", 0)?, project("k", 1)?, project("v", 2)?];
        let query = builder.node(rotary.clone(), &[query, positions])?;
        let key = builder.node(rotary.clone(), &[key, positions])?;
        let attributes = AttentionAttributes { has_segment_ids: true, ..AttentionAttributes::full() };
        let attention = Op::ScaledDotProductAttention(attributes);
        let attended = builder.node(attention, &[query, key, value, segments])?;
        let attended = builder.merge_heads(attended, hidden_size)?;
        builder.linear(&format!("{block}.attn.proj"), attended, [hidden_size, hidden_size], true)
    }

    fn feed_forward(&self) -> GatedFeedForward {
        GatedFeedForward {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            activation: self.hidden_act.clone(),
            bias: true,
        }
    }

    /// The first half of the pairs by height, the second by width, with the same angles.
    fn rotary(&self) -> RotaryAttributes {
        let pairs = self.hidden_size / self.num_heads / 4;
        let angle = |pair: u32| {
            let exponent = pair as f32 / pairs as f32;
            (self.rope_theta.powf(f64::from(exponent)) as f32).recip()
        };
        let angles: Vec<f32> = (0..pairs).map(angle).collect();
        RotaryAttributes {
            inv_freq: [angles.clone(), angles].concat(),
            attention_factor: 1.0,
            interleaved: false,
            sections: vec![pairs, pairs],
        }
    }

    fn projector(&self, weights: &dyn WeightSource, prefix: &str) -> Result<Graph, ModelError> {
        let (mut graph, tokens, patches) = self.graph("projector");
        let (hidden_size, width) = (self.hidden_size, self.token_columns().unwrap_or(0));
        let one = Dim::constant(1);
        let shape = vec![one.clone(), patches.clone(), constant(hidden_size)];
        let hidden = graph.add_input("hidden_states", DType::F32, shape);
        let reverse_index = graph.add_input("reverse_index", DType::I64, vec![tokens.clone()]);
        let mut own = GraphBuilder::component(graph, [one, patches], weights);
        let builder = &mut own;
        let merger = format!("{prefix}.merger");
        let normed = VISION_NORM.apply(builder, &format!("{merger}.ln_q"), hidden, hidden_size)?;
        let joined = builder.node(Op::Reshape { shape: vec![tokens, constant(width)] }, &[normed])?;
        let x = builder.linear(&format!("{merger}.mlp.0"), joined, [width, width], true)?;
        let x = builder.node(Op::Gelu { approximation: GeluApproximation::None }, &[x])?;
        let x = builder.linear(&format!("{merger}.mlp.2"), x, [width, self.out_hidden_size], true)?;
        let features = builder.node(Op::Gather { axis: 0 }, &[x, reverse_index])?;
        own.finish_as("output", features, FAMILY.architecture, |name| {
            !name.starts_with(&format!("{merger}."))
        })
    }
}

/// `fullatt_block_indexes`, by layer.
fn attends_fully(config: &Config<'_>, depth: u32) -> Result<Vec<bool>, ConfigError> {
    const NAME: &str = "fullatt_block_indexes";
    let mut layers = vec![false; usize::try_from(depth).unwrap_or(usize::MAX)];
    let default = [7, 15, 23, 31].map(Value::from);
    let list = config.optional_list(NAME)?.unwrap_or(&default);
    for value in list {
        let layer = value.as_u64().and_then(|layer| usize::try_from(layer).ok());
        match layer.and_then(|layer| layers.get_mut(layer)) {
            Some(attends_fully) => *attends_fully = true,
            None => return Err(config.invalid(NAME, value, &format!("a layer of {depth}, counted from 0"))),
        }
    }
    Ok(layers)
}

/// `rope_theta` of the tower, whose rotary embedding is of one form.
fn rope_theta(config: &Config<'_>) -> Result<f64, ConfigError> {
    const DEFAULT: f64 = 10_000.0;
    let Some(section) = config.section("rope_parameters")? else { return Ok(DEFAULT) };
    section.refuse_unless("rope_type", &[json!("axial")])?;
    let theta = section.optional_positive_number("rope_theta")?.unwrap_or(DEFAULT);
    section.refuse_unread()?;
    Ok(theta)
}
