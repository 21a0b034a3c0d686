//! Graphs of small vision towers, with every op that real ones have: one over patches of images of any size, one over
//! tiles.

use roundhouse_graph::{AttentionAttributes, DType, Dim, Graph, GraphError, Op, RotaryAttributes, ValueId};
use roundhouse_graph::{GeluApproximation, WeightExpr};

use crate::{MemoryWeights, Rng};

/// Patches of a token of [`TinyTowers::grid`].
pub const GRID_PATCHES: usize = 4;
const HIDDEN: usize = 16;
const HEADS: usize = 2;

/// Both towers, fp32.
#[derive(Debug)]
pub struct TinyTowers {
    /// `pixel_values [4 · tokens, 12] f32, position_ids [1, 2, 4 · tokens] i64, order [tokens] i64, segment_ids [1, 4 ·
    /// tokens] i64 → output [tokens, 24]`, of 1 to 8 tokens.
    pub grid: Graph,
    /// `pixel_values [tiles, 2, 4, 4] f32 → output [tiles, 4, 16]`, of 1 to 3 tiles.
    pub tiles: Graph,
    /// Of both.
    pub weights: MemoryWeights,
}

impl TinyTowers {
    /// Columns of the grid's pixels.
    pub const GRID_COLUMNS: usize = 12;
    /// Channels of a tile, and its side.
    pub const TILE: [usize; 2] = [2, 4];

    /// Builds them.
    ///
    /// # Errors
    /// Never: the graphs are what the ops take.
    pub fn new() -> Result<Self, GraphError> {
        let mut towers = Tower { graph: Graph::new("grid"), weights: MemoryWeights::new(), rng: Rng::new(3) };
        towers.grid()?;
        let grid = std::mem::replace(&mut towers.graph, Graph::new("tiles"));
        towers.tiles()?;
        Ok(Self { grid, tiles: towers.graph, weights: towers.weights })
    }
}

struct Tower {
    graph: Graph,
    weights: MemoryWeights,
    rng: Rng,
}

impl Tower {
    fn grid(&mut self) -> Result<(), GraphError> {
        let tokens = Dim::symbol(self.graph.add_symbol("tokens", 1, 8));
        let (one, patches) = (Dim::constant(1), tokens.times(GRID_PATCHES as i64));
        let columns = TinyTowers::GRID_COLUMNS;
        let pixels = self.graph.add_input("pixel_values", DType::F32, vec![patches.clone(), columns.into()]);
        let mut input = |name: &str, shape| self.graph.add_input(name, DType::I64, shape);
        let positions = input("position_ids", vec![one.clone(), Dim::constant(2), patches.clone()]);
        let order = input("order", vec![tokens.clone()]);
        let segments = input("segment_ids", vec![one.clone(), patches.clone()]);

        let x = self.linear(pixels, [columns, HIDDEN])?;
        let x = self.reshape(x, vec![tokens.clone(), (GRID_PATCHES * HIDDEN).into()])?;
        let x = self.node(Op::Gather { axis: 0 }, &[x, order])?;
        let x = self.reshape(x, vec![one.clone(), patches.clone(), HIDDEN.into()])?;
        let pairs = HIDDEN / HEADS / 2;
        let rotary = Op::RotaryEmbedding(RotaryAttributes {
            inv_freq: (0..pairs).map(|pair| 0.5_f32.powi(pair as i32 % 2)).collect(),
            attention_factor: 1.0,
            interleaved: false,
            sections: vec![pairs as u32 / 2; 2],
        });
        let leading = [one, patches];
        let [query, key, value] = self.heads(x, &leading)?;
        let query = self.node(rotary.clone(), &[query, positions])?;
        let key = self.node(rotary, &[key, positions])?;
        let attributes = AttentionAttributes { has_segment_ids: true, ..AttentionAttributes::full() };
        let attended =
            self.node(Op::ScaledDotProductAttention(attributes), &[query, key, value, segments])?;
        let attended = self.merge(attended, &leading)?;
        let x = self.node(Op::Add, &[x, attended])?;
        let weight = self.weight(&[HIDDEN], 1.0);
        let x = self.node(Op::RmsNorm { epsilon: 1e-6, unit_offset: false }, &[x, weight])?;
        let x = self.reshape(x, vec![tokens, (GRID_PATCHES * HIDDEN).into()])?;
        let x = self.linear(x, [GRID_PATCHES * HIDDEN, 24])?;
        let x = self.node(Op::Gelu { approximation: GeluApproximation::None }, &[x])?;
        let x = self.node(Op::Gather { axis: 0 }, &[x, order])?;
        self.graph.add_output("output", x);
        Ok(())
    }

    fn tiles(&mut self) -> Result<(), GraphError> {
        let tiles = Dim::symbol(self.graph.add_symbol("tiles", 1, 3));
        let [channels, side] = TinyTowers::TILE;
        let shape = vec![tiles.clone(), channels.into(), side.into(), side.into()];
        let pixels = self.graph.add_input("pixel_values", DType::F32, shape);
        // Patches of two by two pixels.
        let (half, two) = (Dim::from(side / 2), Dim::constant(2));
        let shape = [&tiles, &channels.into(), &half, &two, &half, &two].map(Dim::clone).to_vec();
        let x = self.reshape(pixels, shape)?;
        let x = self.node(Op::Transpose { permutation: vec![0, 2, 4, 1, 3, 5] }, &[x])?;
        let (patches, columns) = (side * side / 4, channels * 4);
        let leading = [tiles.clone(), Dim::from(patches)];
        let x = self.reshape(x, vec![tiles, patches.into(), columns.into()])?;
        let x = self.linear(x, [columns, HIDDEN])?;
        let positions = self.weight(&[patches, HIDDEN], 0.0);
        let x = self.node(Op::Add, &[x, positions])?;
        let [weight, bias] = [1.0, 0.0].map(|center| self.weight(&[HIDDEN], center));
        let normed = self.node(Op::LayerNorm { epsilon: 1e-6 }, &[x, weight, bias])?;
        let qkv = self.heads(normed, &leading)?;
        let attended = self.node(Op::ScaledDotProductAttention(AttentionAttributes::full()), &qkv)?;
        let attended = self.merge(attended, &leading)?;
        let x = self.node(Op::Add, &[x, attended])?;
        self.graph.add_output("output", x);
        Ok(())
    }

    fn node(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        self.graph.add_node(op, inputs)
    }

    fn reshape(&mut self, x: ValueId, shape: Vec<Dim>) -> Result<ValueId, GraphError> {
        self.node(Op::Reshape { shape }, &[x])
    }

    /// Uniform within ±½ of a number, times `√(6 / columns)` for a matrix.
    fn weight(&mut self, shape: &[usize], center: f32) -> ValueId {
        let count = shape.iter().product();
        let spread = if shape.len() == 2 { (6.0 / shape[1] as f32).sqrt() } else { 1.0 };
        let name = format!("{}.{}", self.graph.name, self.graph.weights().count());
        self.weights.insert(&name, shape, self.rng.uniform_vec(count, center, 0.5 * spread));
        let dims: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        self.graph.add_weight(&name, DType::F32, &dims, WeightExpr::tensor(&name))
    }

    fn linear(&mut self, x: ValueId, [inputs, outputs]: [usize; 2]) -> Result<ValueId, GraphError> {
        let (weight, bias) = (self.weight(&[outputs, inputs], 0.0), self.weight(&[outputs], 0.0));
        self.node(Op::Linear, &[x, weight, bias])
    }

    /// Queries, keys and values of `x [batch, seq, HIDDEN]`.
    fn heads(&mut self, x: ValueId, [batch, seq]: &[Dim; 2]) -> Result<[ValueId; 3], GraphError> {
        let mut project = || {
            let x = self.linear(x, [HIDDEN, HIDDEN])?;
            let shape = vec![batch.clone(), seq.clone(), HEADS.into(), (HIDDEN / HEADS).into()];
            let x = self.reshape(x, shape)?;
            self.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x])
        };
        Ok([project()?, project()?, project()?])
    }

    fn merge(&mut self, x: ValueId, [batch, seq]: &[Dim; 2]) -> Result<ValueId, GraphError> {
        let x = self.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x])?;
        self.reshape(x, vec![batch.clone(), seq.clone(), HIDDEN.into()])
    }
}
