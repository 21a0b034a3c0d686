//! The vision tower of `SiglipVisionModel` (Zhai et al. 2023), for tiles of one size: a patch embedding with learned
//! positions, layers with layer norms and biases that attend to the whole tile, and no pooling.

use roundhouse_graph::{AttentionAttributes, DType, Dim, Graph, Op, SymbolId, ValueId, WeightExpr};
use serde_json::Value;

use crate::feed_forward::activation;
use crate::graph_builder::{GraphBuilder, constant};
use crate::{Config, ConfigError, ModelError};

/// What a config says of a tower, named as there.
pub(crate) struct SiglipTower {
    pub(crate) hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_channels: u32,
    /// Pixels of a tile's side.
    pub(crate) image_size: u32,
    patch_size: u32,
    hidden_act: Op,
    layer_norm_eps: f32,
}

impl SiglipTower {
    /// Reads it, for tiles of `image_size` pixels where that is given.
    ///
    /// # Errors
    /// When a field is missing, malformed or not supported, or sizes do not fit each other.
    pub(crate) fn read(config: &Config<'_>, image_size: Option<u32>) -> Result<Self, ConfigError> {
        let size = |name: &str, default| Ok(config.optional_positive(name)?.unwrap_or(default));
        let own_image_size = size("image_size", 224)?;
        let epsilon = config.optional_positive_number("layer_norm_eps")?.unwrap_or(1e-6);
        let tower = Self {
            hidden_size: size("hidden_size", 768)?,
            intermediate_size: size("intermediate_size", 3072)?,
            num_hidden_layers: size("num_hidden_layers", 12)?,
            num_attention_heads: size("num_attention_heads", 12)?,
            num_channels: size("num_channels", 3)?,
            image_size: image_size.unwrap_or(own_image_size),
            patch_size: size("patch_size", 16)?,
            hidden_act: activation(config, "hidden_act", "gelu_pytorch_tanh")?,
            layer_norm_eps: epsilon as f32,
        };
        let invalid = |name: &str, found: u32, expected: String| {
            Err(config.invalid(name, &Value::from(found), &expected))
        };
        if !tower.hidden_size.is_multiple_of(tower.num_attention_heads) {
            let expected = format!("a multiple of num_attention_heads, {}", tower.num_attention_heads);
            return invalid("hidden_size", tower.hidden_size, expected);
        }
        if tower.side() == 0 || tower.side().checked_mul(tower.side()).is_none() {
            let expected = format!("a size of which image_size, {}, has some", tower.image_size);
            return invalid("patch_size", tower.patch_size, expected);
        }
        if tower.patch_columns().is_none() {
            return invalid("patch_size", tower.patch_size, "a size that fits a tensor".to_owned());
        }
        Ok(tower)
    }

    /// Patches of a tile's side.
    pub(crate) fn side(&self) -> u32 {
        self.image_size / self.patch_size
    }

    /// Patches of a tile.
    pub(crate) fn patches(&self) -> u32 {
        self.side() * self.side()
    }

    /// Numbers of a flattened patch.
    fn patch_columns(&self) -> Option<u32> {
        self.patch_size.checked_mul(self.patch_size)?.checked_mul(self.num_channels)
    }

    /// The graph's input: `pixel_values [tiles, channels, image_size, image_size] f32`.
    pub(crate) fn add_input(&self, graph: &mut Graph, tiles: SymbolId) -> ValueId {
        let side = constant(self.image_size);
        let shape = vec![Dim::symbol(tiles), constant(self.num_channels), side.clone(), side];
        graph.add_input("pixel_values", DType::F32, shape)
    }

    /// The last hidden states, `[tiles, patches, hidden_size]`, of the tensors under `prefix`.
    pub(crate) fn build(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        tiles: SymbolId,
    ) -> Result<ValueId, ModelError> {
        let mut hidden = self.embed(builder, &format!("{prefix}.embeddings"), tiles)?;
        for layer in 0..self.num_hidden_layers {
            let layer = format!("{prefix}.encoder.layers.{layer}");
            let normed = self.norm(builder, &format!("{layer}.layer_norm1"), hidden)?;
            let attended = self.attention(builder, &format!("{layer}.self_attn"), normed)?;
            hidden = builder.node(Op::Add, &[hidden, attended])?;
            let normed = self.norm(builder, &format!("{layer}.layer_norm2"), hidden)?;
            let sizes = [self.hidden_size, self.intermediate_size];
            let x = builder.linear(&format!("{layer}.mlp.fc1"), normed, sizes, true)?;
            let x = builder.node(self.hidden_act.clone(), &[x])?;
            let sizes = [self.intermediate_size, self.hidden_size];
            let fed_forward = builder.linear(&format!("{layer}.mlp.fc2"), x, sizes, true)?;
            hidden = builder.node(Op::Add, &[hidden, fed_forward])?;
        }
        self.norm(builder, &format!("{prefix}.post_layernorm"), hidden)
    }

    /// Patches of pixels to hidden states with their positions.
    fn embed(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        tiles: SymbolId,
    ) -> Result<ValueId, ModelError> {
        let (side, patch, channels) = (self.side(), self.patch_size, self.num_channels);
        let (columns, hidden_size) = (self.patch_columns().unwrap_or(0), self.hidden_size);
        let pixels = builder.input("pixel_values")?;
        // A tile that is no whole number of patches loses what is left over, as a convolution does.
        let whole = Dim::from(i64::from(side * patch));
        let mut x = pixels;
        for axis in [2, 3].into_iter().filter(|_| side * patch < self.image_size) {
            x = builder.node(Op::Slice { axis, start: Dim::constant(0), end: whole.clone() }, &[x])?;
        }
        let tiles = Dim::symbol(tiles);
        let [by_side, by_patch] = [side, patch].map(constant);
        let shape = [&tiles, &constant(channels), &by_side, &by_patch, &by_side, &by_patch];
        let x = builder.node(Op::Reshape { shape: shape.map(Clone::clone).to_vec() }, &[x])?;
        let x = builder.node(Op::Transpose { permutation: vec![0, 2, 4, 1, 3, 5] }, &[x])?;
        let shape = vec![tiles, constant(self.patches()), constant(columns)];
        let x = builder.node(Op::Reshape { shape }, &[x])?;

        let kernel = format!("{prefix}.patch_embedding.weight");
        let flattened = WeightExpr::Flattened { name: kernel.clone() };
        let windows = [hidden_size, channels, patch, patch];
        let kernel = builder.derived(&kernel, &kernel, &windows, &[hidden_size, columns], |_| flattened)?;
        let bias = builder.weight(&format!("{prefix}.patch_embedding.bias"), &[hidden_size])?;
        let embedded = builder.node(Op::Linear, &[x, kernel, bias])?;
        let positions = format!("{prefix}.position_embedding.weight");
        let positions = builder.weight(&positions, &[self.patches(), hidden_size])?;
        builder.node(Op::Add, &[embedded, positions])
    }

    fn attention(
        &self,
        builder: &mut GraphBuilder<'_>,
        prefix: &str,
        x: ValueId,
    ) -> Result<ValueId, ModelError> {
        let (heads, width) = (self.num_attention_heads, self.hidden_size);
        let mut project = |name: &str| {
            let x = builder.linear(&format!("{prefix}.{name}"), x, [width, width], true)?;
            builder.split_heads(x, heads, width / heads)
        };
        let qkv = [project("q_proj")?, project("k_proj")?, project("v_proj")?];
        let attended = builder.node(Op::ScaledDotProductAttention(AttentionAttributes::full()), &qkv)?;
        let attended = builder.merge_heads(attended, width)?;
        builder.linear(&format!("{prefix}.out_proj"), attended, [width, width], true)
    }

    fn norm(&self, builder: &mut GraphBuilder<'_>, prefix: &str, x: ValueId) -> Result<ValueId, ModelError> {
        layer_norm(builder, prefix, x, (self.hidden_size, self.layer_norm_eps))
    }
}

/// A layer norm by `{prefix}.weight` and `{prefix}.bias`.
pub(crate) fn layer_norm(
    builder: &mut GraphBuilder<'_>,
    prefix: &str,
    x: ValueId,
    (width, epsilon): (u32, f32),
) -> Result<ValueId, ModelError> {
    let weight = builder.weight(&format!("{prefix}.weight"), &[width])?;
    let bias = builder.weight(&format!("{prefix}.bias"), &[width])?;
    builder.node(Op::LayerNorm { epsilon }, &[x, weight, bias])
}
