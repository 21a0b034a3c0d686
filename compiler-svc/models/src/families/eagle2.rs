//! `Eagle2ChatModel` (Li et al. 2025): a SigLIP tower over tiles of one size, pixel shuffle and an MLP, and Qwen 2.
//!
//! * `vision`: `pixel_values [tiles, 3, image_size, image_size] f32` → hidden states `[tiles, patches, hidden_size]`.
//! * `projector`: those hidden states → features `[tiles · patches / 4, hidden_size of the language model]`: the four patches
//!   of a square become one token.
//!
//! The class is in the checkpoints and not in Transformers; what it computes is written down in
//! `tests/golden/tiny_eagle2.py`.

use roundhouse_backend::{WeightError, WeightSource};
use roundhouse_engine::{Component, ModelInfo, Patches, VisionInfo};
use roundhouse_graph::{DType, Dim, GeluApproximation, Graph, Op, ValueId};
use serde_json::{Value, json};

use crate::decoder::DecoderPlace;
use crate::family::{ModelFamily, ModelSource};
use crate::feed_forward::GatedFeedForward;
use crate::graph_builder::{GraphBuilder, constant};
use crate::pre_norm::PreNormDecoder;
use crate::refused_fields::refuse_fields;
use crate::siglip::{SiglipTower, layer_norm};
use crate::{Config, ConfigError, ModelError};

use super::qwen2;

/// The family's line in the table.
pub(super) const FAMILY: ModelFamily = ModelFamily {
    model_type: "eagle_chat",
    architecture: "Eagle2ChatModel",
    models: "Eagle2 1B and 2B",
    build,
    components: Some(build_components),
};

const PLACE: DecoderPlace = DecoderPlace {
    model: "language_model.model",
    head: "language_model.lm_head.weight",
    others: &["vision_model.", "mlp1."],
    takes_images: true,
    position_axes: None,
};
/// PyTorch's default, which the projector's norm has.
const PROJECTOR_EPSILON: f32 = 1e-5;
/// Patches of a token's side.
const MERGE: u32 = 2;
/// Fields about training, prompts and pre-processing.
const DESCRIPTIVE: &[&str] = &[
    "dynamic_image_size",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "mlp_checkpoint",
    "template",
    "use_thumbnail",
];

fn build(source: &ModelSource<'_>) -> Result<(Graph, ModelInfo), ModelError> {
    let config = language(source)?;
    refuse_fields(&config, &["sliding_window", "use_sliding_window"])?;
    let text = ModelSource { config: &config, ..*source };
    let decoder = PreNormDecoder::read(&text, &qwen2::form())?.placed(PLACE, false);
    let feed_forward = GatedFeedForward::read(&config, decoder.hidden_size())?;
    decoder.build(&FAMILY, &text, |builder, layer, x| feed_forward.build(builder, &layer.module("mlp"), x))
}

/// The section of the language model.
fn language<'a>(source: &ModelSource<'a>) -> Result<Config<'a>, ConfigError> {
    let Some(config) = source.config.section("llm_config")? else {
        return Err(source.config.missing("llm_config", "an object"));
    };
    let architectures = config.get("architectures").cloned().unwrap_or_default();
    if architectures.get(0).and_then(Value::as_str) != Some("Qwen2ForCausalLM") {
        return Err(config.unsupported("architectures", &architectures, "[\"Qwen2ForCausalLM\"]"));
    }
    Ok(config)
}

fn build_components(source: &ModelSource<'_>) -> Result<(VisionInfo, Vec<(Component, Graph)>), ModelError> {
    let config = source.config;
    for name in ["use_backbone_lora", "use_llm_lora"] {
        config.refuse_unless(name, &[json!(0)])?;
    }
    config.refuse_unless("select_layer", &[json!(-1)])?;
    config.refuse_unless("downsample_ratio", &[json!(0.5)])?;
    for name in ["pre_feature_reduction", "keep_aspect_ratio"] {
        config.refuse_unless(name, &[json!(false)])?;
    }
    for name in DESCRIPTIVE {
        let _ = config.get(name);
    }
    let eagle = Eagle2 {
        tower: tower(config)?,
        feature_size: language(source)?.positive("hidden_size")?,
        max_seq_len: source.max_seq_len,
    };
    let info = VisionInfo {
        image_token_id: config.optional_unsigned("image_token_index")?,
        image_token: "<IMG_CONTEXT>".to_owned(),
        feature_size: eagle.feature_size,
        patches: Patches::Tiles { image_size: eagle.tower.image_size, tokens: eagle.tokens() },
    };
    let (vision, projector) = (eagle.vision(source.weights)?, eagle.projector(source.weights)?);
    Ok((info, vec![(Component::Vision, vision), (Component::Projector, projector)]))
}

fn tower(config: &Config<'_>) -> Result<SiglipTower, ConfigError> {
    let Some(section) = config.section("vision_config")? else {
        return Err(config.missing("vision_config", "an object"));
    };
    // Larger siblings join several towers ("MOB…").
    section.refuse_unless("model_type", &[json!("siglip_vision_model")])?;
    section.refuse_unless("moe_version_type", &[])?;
    let tower = SiglipTower::read(&section, config.optional_positive("force_image_size")?)?;
    if !tower.side().is_multiple_of(MERGE) {
        let expected = format!("a size of {MERGE} patches or a multiple");
        return Err(section.invalid("image_size", &json!(tower.image_size), &expected));
    }
    if tower.hidden_size.checked_mul(MERGE * MERGE).is_none() {
        let expected = "a size of which four fit a tensor";
        return Err(section.invalid("hidden_size", &json!(tower.hidden_size), expected));
    }
    Ok(tower)
}

/// The vision side.
struct Eagle2 {
    tower: SiglipTower,
    feature_size: u32,
    max_seq_len: u32,
}

impl Eagle2 {
    /// Tokens of a tile.
    fn tokens(&self) -> u32 {
        self.tower.patches() / (MERGE * MERGE)
    }

    /// The most tiles of all images of a call: no more fit a sequence.
    fn most_tiles(&self) -> i64 {
        i64::from(self.max_seq_len / self.tokens()).max(1)
    }

    fn vision(&self, weights: &dyn WeightSource) -> Result<Graph, ModelError> {
        let mut graph = Graph::new("vision");
        let tiles = graph.add_symbol("tiles", 1, self.most_tiles());
        self.tower.add_input(&mut graph, tiles);
        let prefix = prefix(weights)?;
        let hidden = [Dim::symbol(tiles), constant(self.tower.patches())];
        let mut builder = GraphBuilder::component(graph, hidden, weights);
        let hidden = self.tower.build(&mut builder, prefix, tiles)?;
        // Checkpoints may hold the pooling that only classification reads.
        let pooling = format!("{prefix}.head.");
        builder.finish_as("output", hidden, FAMILY.architecture, |name| {
            !name.starts_with("vision_model.") || name.starts_with(&pooling)
        })
    }

    fn projector(&self, weights: &dyn WeightSource) -> Result<Graph, ModelError> {
        let (hidden_size, patches) = (self.tower.hidden_size, self.tower.patches());
        let mut graph = Graph::new("projector");
        let tiles = Dim::symbol(graph.add_symbol("tiles", 1, self.most_tiles()));
        let shape = vec![tiles.clone(), constant(patches), constant(hidden_size)];
        let hidden = graph.add_input("hidden_states", DType::F32, shape);
        let leading = [tiles.clone(), constant(self.tokens())];
        let mut builder = GraphBuilder::component(graph, leading, weights);

        let shuffled = self.pixel_shuffle(&mut builder, &tiles, hidden)?;
        let width = MERGE * MERGE * hidden_size;
        let normed = layer_norm(&mut builder, "mlp1.0", shuffled, (width, PROJECTOR_EPSILON))?;
        let x = builder.linear("mlp1.1", normed, [width, self.feature_size], true)?;
        let x = builder.node(Op::Gelu { approximation: GeluApproximation::None }, &[x])?;
        let features = builder.linear("mlp1.3", x, [self.feature_size, self.feature_size], true)?;
        builder.finish_as("output", features, FAMILY.architecture, |name| !name.starts_with("mlp1."))
    }

    /// `[tiles, side · side, c] → [tiles · side² / 4, 4 · c]`: the patches of a square side by side.
    fn pixel_shuffle(
        &self,
        builder: &mut GraphBuilder<'_>,
        tiles: &Dim,
        hidden: ValueId,
    ) -> Result<ValueId, ModelError> {
        let (side, columns) = (self.tower.side(), self.tower.hidden_size);
        let mut view = |x, shape: [u32; 3]| {
            let shape = [&[tiles.clone()][..], &shape.map(constant)].concat();
            builder
                .node(Op::Reshape { shape }, &[x])
                .and_then(|x| builder.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x]))
        };
        let by_row = view(hidden, [side, side / MERGE, columns * MERGE])?;
        let by_square = view(by_row, [side / MERGE, side / MERGE, columns * MERGE * MERGE])?;
        let shape = vec![tiles.times(i64::from(self.tokens())), constant(columns * MERGE * MERGE)];
        builder.node(Op::Reshape { shape }, &[by_square])
    }
}

/// What the tower's tensors' names begin with: the published checkpoints' class holds a module of the same name.
fn prefix(weights: &dyn WeightSource) -> Result<&'static str, WeightError> {
    match weights.shape("vision_model.vision_model.embeddings.patch_embedding.weight") {
        Ok(_) => Ok("vision_model.vision_model"),
        Err(WeightError::NotFound { .. }) => Ok("vision_model"),
        Err(error) => Err(error),
    }
}
