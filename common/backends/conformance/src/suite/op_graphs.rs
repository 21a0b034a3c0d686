//! A small graph for every op and every form of it.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::{
    AttentionAttributes, DType, Dim, ExpertAttributes, GeluApproximation, Graph, GraphError, Op,
    RotaryAttributes, ValueId, WeightExpr,
};

use super::engine::{MAX_SEQ_LEN, Source};
use crate::{MemoryWeights, Rng};

const VOCAB_SIZE: usize = 33;
pub(super) const HIDDEN: usize = 32;
/// Heads of the attention cases, and their width.
const HEADS: usize = 4;
const HEAD_DIM: usize = 8;

/// One op in one form.
pub struct OpCase {
    /// The op, and what is special about the form.
    pub name: &'static str,
    /// A graph that has little else, with its weights.
    pub source: Source,
    /// Whether only the last token's logits are asked for, for which the lowering adds a node.
    pub last_token: bool,
}

/// `input_ids → embedding → op → linear → logits`.
pub(super) struct OpGraph {
    pub(super) graph: Graph,
    weights: MemoryWeights,
    pub(super) rng: Rng,
    pub(super) dtype: DType,
    batch: Dim,
    seq: Dim,
    input_ids: ValueId,
    position_ids: ValueId,
    /// The embedded tokens `[batch, seq, HIDDEN]`.
    pub(super) x: ValueId,
}

pub(super) type Result<T> = std::result::Result<T, GraphError>;
/// Applies an op to the embedded tokens; `[batch, seq or 1, any]`.
type Form = fn(&mut OpGraph) -> Result<ValueId>;

/// All cases of [`ops()`](super::ops()), in a float dtype: graphs from tokens to logits without a cache.
///
/// # Errors
/// Never: the graphs are what the ops take.
pub fn op_cases(dtype: DType) -> Result<Vec<OpCase>> {
    let forms: &[(&'static str, Form)] = &[
        ("embedding", |g| Ok(g.x)),
        ("linear", |g| {
            let weight = g.matrix(48, HIDDEN);
            g.node(Op::Linear, &[g.x, weight])
        }),
        ("linear_bias", |g| {
            let (weight, bias) = (g.matrix(48, HIDDEN), g.vector(48, 0.0));
            g.node(Op::Linear, &[g.x, weight, bias])
        }),
        ("matmul", |g| g.attention_by_hand(false)),
        ("matmul_transposed", |g| g.attention_by_hand(true)),
        ("add", |g| {
            let y = g.unary(Op::Silu)?;
            g.node(Op::Add, &[g.x, y])
        }),
        ("add_vector", |g| {
            let y = g.vector(HIDDEN, 0.0);
            g.node(Op::Add, &[g.x, y])
        }),
        ("mul", |g| {
            let y = g.unary(Op::Silu)?;
            g.node(Op::Mul, &[g.x, y])
        }),
        ("mul_vector", |g| {
            let y = g.vector(HIDDEN, 1.0);
            g.node(Op::Mul, &[g.x, y])
        }),
        ("mul_position", OpGraph::times_position),
        ("scale", |g| g.unary(Op::Scale { factor: -1.75 })),
        ("silu", |g| g.unary(Op::Silu)),
        ("sigmoid", |g| g.unary(Op::Sigmoid)),
        ("gelu", |g| g.unary(Op::Gelu { approximation: GeluApproximation::None })),
        ("gelu_tanh", |g| g.unary(Op::Gelu { approximation: GeluApproximation::Tanh })),
        ("soft_cap", |g| g.unary(Op::SoftCap { cap: 0.5 })),
        ("silu_mul", |g| {
            let y = g.unary(Op::Scale { factor: 0.5 })?;
            g.node(Op::SiluMul, &[g.x, y])
        }),
        ("rms_norm", |g| g.norm(Op::RmsNorm { epsilon: 1e-2, unit_offset: false }, false)),
        ("rms_norm_unit_offset", |g| g.norm(Op::RmsNorm { epsilon: 1e-2, unit_offset: true }, false)),
        ("rms_norm_of_heads", |g| {
            let (x, weight) = (g.heads(HEADS)?, g.vector(HEAD_DIM, 1.0));
            let x = g.node(Op::RmsNorm { epsilon: 1e-5, unit_offset: false }, &[x, weight])?;
            g.merge(x)
        }),
        ("layer_norm", |g| g.norm(Op::LayerNorm { epsilon: 1e-2 }, false)),
        ("layer_norm_bias", |g| g.norm(Op::LayerNorm { epsilon: 1e-2 }, true)),
        ("rotary_embedding", |g| g.rotary(HEAD_DIM, 1.0, false)),
        ("rotary_embedding_partial", |g| g.rotary(HEAD_DIM / 2, 1.0, false)),
        ("rotary_embedding_interleaved", |g| g.rotary(HEAD_DIM, 1.0, true)),
        ("rotary_embedding_interleaved_partial", |g| g.rotary(HEAD_DIM / 2, 1.0, true)),
        ("rotary_embedding_attention_factor", |g| g.rotary(HEAD_DIM, 1.25, false)),
        ("rotary_embedding_sections", OpGraph::rotary_of_axes),
        ("attention", |g| g.attention(HEADS, |_| {})),
        ("attention_grouped", |g| g.attention(2, |_| {})),
        ("attention_one_key_head", |g| g.attention(1, |_| {})),
        ("attention_window", |g| g.attention(2, |a| a.window = Some(2))),
        ("attention_scale", |g| g.attention(2, |a| a.scale = Some(0.9))),
        ("attention_soft_cap", |g| g.attention(2, |a| a.soft_cap = Some(0.3))),
        ("attention_not_causal", |g| g.attention(2, |a| a.causal = false)),
        ("attention_segments", OpGraph::attention_of_segments),
        ("attention_float_mask", |g| g.masked_attention(|_, scores| Ok(scores))),
        ("attention_bool_mask", |g| {
            // Attends everywhere but from and to token 0, whose embedding is zero.
            g.masked_attention(|g, scores| g.node(Op::Cast { to: DType::Bool }, &[scores]))
        }),
        ("replace_rows", OpGraph::replaced_rows),
        ("mixture_of_experts", |g| g.experts(2, true)),
        ("mixture_of_experts_not_normalized", |g| g.experts(3, false)),
        // The lowering puts the op in: see `OpCase::last_token`.
        ("last_token", |g| Ok(g.x)),
        ("cat", |g| {
            let y = g.unary(Op::Silu)?;
            g.node(Op::Cat { axis: 2 }, &[g.x, y, g.x])
        }),
        ("cat_of_heads", |g| {
            let (x, y) = (g.heads(HEADS)?, g.heads(2)?);
            let x = g.node(Op::Cat { axis: 1 }, &[x, y])?;
            g.merge(x)
        }),
        ("slice", |g| g.unary(Op::Slice { axis: 2, start: 5_i64.into(), end: 29_i64.into() })),
        ("slice_of_heads", |g| {
            let x = g.heads(HEADS)?;
            let x = g.node(Op::Slice { axis: 1, start: 1_i64.into(), end: 3_i64.into() }, &[x])?;
            g.merge(x)
        }),
        ("reshape_and_transpose", |g| {
            let x = g.heads(HEADS)?;
            let x = g.node(Op::Transpose { permutation: vec![0, 2, 3, 1] }, &[x])?;
            let shape = vec![g.batch.clone(), g.seq.clone(), HIDDEN.into()];
            g.node(Op::Reshape { shape }, &[x])
        }),
        ("gather", |g| {
            let table = g.matrix(MAX_SEQ_LEN as usize, HIDDEN);
            let positions = g.node(Op::Gather { axis: 0 }, &[table, g.position_ids])?;
            g.node(Op::Add, &[g.x, positions])
        }),
        ("softmax", |g| g.unary(Op::Softmax { axis: 2 })),
        ("cast", |g| {
            let x = g.unary(Op::Cast { to: DType::F32 })?;
            let x = g.node(Op::Silu, &[x])?;
            g.node(Op::Cast { to: g.dtype }, &[x])
        }),
    ];
    forms.iter().map(|&(name, form)| OpGraph::case(name, dtype, form)).collect()
}

impl OpGraph {
    fn case(name: &'static str, dtype: DType, form: Form) -> Result<OpCase> {
        let source = Self::source(name, dtype, form)?;
        Ok(OpCase { name, source, last_token: name == "last_token" })
    }

    /// The graph of one form.
    pub(super) fn source(
        name: &str,
        dtype: DType,
        form: impl FnOnce(&mut Self) -> Result<ValueId>,
    ) -> Result<Source> {
        let mut graph = Graph::new(name);
        let batch = Dim::symbol(graph.add_symbol("batch", 1, 1 << 16));
        let seq = Dim::symbol(graph.add_symbol("seq", 1, i64::from(MAX_SEQ_LEN)));
        let shape = vec![batch.clone(), seq.clone()];
        let input_ids = graph.add_input("input_ids", DType::I64, shape.clone());
        let position_ids = graph.add_input("position_ids", DType::I64, shape);
        let (weights, rng) = (MemoryWeights::new(), Rng::new(6));
        let mut this = Self { graph, weights, rng, dtype, batch, seq, input_ids, position_ids, x: input_ids };
        this.x = this.embedding()?;
        let y = form(&mut this)?;
        let width = this.graph.value(y).shape[2].as_constant().unwrap_or(0) as usize;
        let head = this.matrix(VOCAB_SIZE, width);
        let logits = this.node(Op::Linear, &[y, head])?;
        this.graph.add_output("logits", logits);
        let info = ModelInfo {
            model_type: name.to_owned(),
            architecture: name.to_owned(),
            vocab_size: VOCAB_SIZE as u32,
            num_hidden_layers: 1,
            max_position_embeddings: MAX_SEQ_LEN,
            eos_token_ids: Vec::new(),
            bos_token_id: None,
            vision: None,
        };
        Ok(Source { graph: this.graph, weights: this.weights, info })
    }

    pub(super) fn node(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId> {
        self.graph.add_node(op, inputs)
    }

    fn unary(&mut self, op: Op) -> Result<ValueId> {
        self.node(op, &[self.x])
    }

    fn weight(&mut self, shape: &[usize], values: Vec<f32>) -> ValueId {
        self.weight_of(self.dtype, shape, values)
    }

    pub(super) fn weight_of(&mut self, dtype: DType, shape: &[usize], values: Vec<f32>) -> ValueId {
        let name = format!("weight_{}", self.graph.weights().count());
        self.weights.insert(&name, shape, values);
        let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        self.graph.add_weight(&name, dtype, &shape, WeightExpr::tensor(&name))
    }

    /// `[rows, columns]`, uniform in ±√(3 / columns).
    pub(super) fn matrix(&mut self, rows: usize, columns: usize) -> ValueId {
        let values = self.rng.uniform_vec(rows * columns, 0.0, (3.0 / columns as f32).sqrt());
        self.weight(&[rows, columns], values)
    }

    pub(super) fn vector(&mut self, size: usize, center: f32) -> ValueId {
        let values = self.rng.uniform_vec(size, center, 0.5);
        self.weight(&[size], values)
    }

    /// Embeds the tokens with a table in ±2, of which the first row is zero.
    fn embedding(&mut self) -> Result<ValueId> {
        let mut values = self.rng.uniform_vec(VOCAB_SIZE * HIDDEN, 0.0, 2.0);
        values[..HIDDEN].fill(0.0);
        let table = self.weight(&[VOCAB_SIZE, HIDDEN], values);
        self.node(Op::Embedding, &[self.input_ids, table])
    }

    fn norm(&mut self, op: Op, bias: bool) -> Result<ValueId> {
        let mut inputs = vec![self.x, self.vector(HIDDEN, 1.0)];
        if bias {
            inputs.push(self.vector(HIDDEN, 0.0));
        }
        self.node(op, &inputs)
    }

    /// `x` times each token's position, which broadcasts along the features.
    fn times_position(&mut self) -> Result<ValueId> {
        let positions = self.node(Op::Cast { to: self.dtype }, &[self.position_ids])?;
        let shape = vec![self.batch.clone(), self.seq.clone(), 1_i64.into()];
        let positions = self.node(Op::Reshape { shape }, &[positions])?;
        self.node(Op::Mul, &[self.x, positions])
    }

    /// A projection of `x` to `[batch, heads, seq, HEAD_DIM]`.
    fn heads(&mut self, heads: usize) -> Result<ValueId> {
        let weight = self.matrix(heads * HEAD_DIM, HIDDEN);
        let x = self.node(Op::Linear, &[self.x, weight])?;
        let shape = vec![self.batch.clone(), self.seq.clone(), heads.into(), HEAD_DIM.into()];
        let x = self.node(Op::Reshape { shape }, &[x])?;
        self.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x])
    }

    /// `[batch, heads, seq, HEAD_DIM] → [batch, seq, heads · HEAD_DIM]`.
    fn merge(&mut self, x: ValueId) -> Result<ValueId> {
        let heads = self.graph.value(x).shape[1].clone();
        let x = self.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x])?;
        let shape = vec![self.batch.clone(), self.seq.clone(), heads.times(HEAD_DIM as i64)];
        self.node(Op::Reshape { shape }, &[x])
    }

    fn rotary(&mut self, rotary_dim: usize, attention_factor: f32, interleaved: bool) -> Result<ValueId> {
        let inv_freq = (0..rotary_dim / 2).map(|pair| 0.5_f32.powi(pair as i32)).collect();
        let x = self.heads(HEADS)?;
        let op = Op::RotaryEmbedding(RotaryAttributes {
            inv_freq,
            attention_factor,
            interleaved,
            sections: Vec::new(),
        });
        let x = self.node(op, &[x, self.position_ids])?;
        self.merge(x)
    }

    /// The tokens' positions times this factor, rounded down. Exact in every precision.
    fn scaled_positions(&mut self, factor: f32) -> Result<ValueId> {
        let positions = self.node(Op::Cast { to: self.dtype }, &[self.position_ids])?;
        let positions = self.node(Op::Scale { factor }, &[positions])?;
        self.node(Op::Cast { to: DType::I64 }, &[positions])
    }

    /// Heads that turn by positions along three axes.
    fn rotary_of_axes(&mut self) -> Result<ValueId> {
        let axes = [self.position_ids, self.scaled_positions(2.0)?, self.scaled_positions(0.5)?];
        let shape = vec![self.batch.clone(), 1_i64.into(), self.seq.clone()];
        let axes = axes.map(|axis| self.node(Op::Reshape { shape: shape.clone() }, &[axis]));
        let axes = axes.into_iter().collect::<Result<Vec<_>>>()?;
        let positions = self.node(Op::Cat { axis: 1 }, &axes)?;
        let pairs = HEAD_DIM as u32 / 2;
        let rotary = RotaryAttributes {
            inv_freq: (0..pairs).map(|pair| 0.5_f32.powi(pair as i32)).collect(),
            attention_factor: 1.0,
            interleaved: false,
            sections: vec![1, pairs - 3, 2],
        };
        let x = self.heads(HEADS)?;
        let x = self.node(Op::RotaryEmbedding(rotary), &[x, positions])?;
        self.merge(x)
    }

    /// Attention within segments of two and three tokens.
    fn attention_of_segments(&mut self) -> Result<ValueId> {
        let segments = self.scaled_positions(0.375)?;
        let attributes = AttentionAttributes { has_segment_ids: true, ..AttentionAttributes::full() };
        let inputs = [self.heads(HEADS)?, self.heads(2)?, self.heads(2)?, segments];
        let x = self.node(Op::ScaledDotProductAttention(attributes), &inputs)?;
        self.merge(x)
    }

    /// The rows of two that the embeddings' first numbers choose; a negative one chooses none.
    fn replaced_rows(&mut self) -> Result<ValueId> {
        let first = self.unary(Op::Slice { axis: 2, start: 0_i64.into(), end: 1_i64.into() })?;
        let shape = vec![self.batch.clone(), self.seq.clone()];
        let first = self.node(Op::Reshape { shape }, &[first])?;
        let indices = self.node(Op::Cast { to: DType::I64 }, &[first])?;
        let rows = self.matrix(2, HIDDEN);
        self.node(Op::ReplaceRows, &[self.x, rows, indices])
    }

    fn experts(&mut self, top_k: u32, normalize: bool) -> Result<ValueId> {
        const EXPERTS: usize = 5;
        const INTERMEDIATE: usize = 24;
        let router = self.matrix(EXPERTS, HIDDEN);
        let logits = self.node(Op::Linear, &[self.x, router])?;
        let gate_up = self.matrix(EXPERTS * 2 * INTERMEDIATE, HIDDEN);
        let down = self.matrix(EXPERTS * HIDDEN, INTERMEDIATE);
        let attributes = ExpertAttributes { top_k, normalize };
        self.node(Op::MixtureOfExperts(attributes), &[self.x, logits, gate_up, down])
    }

    fn attention(&mut self, key_heads: usize, change: fn(&mut AttentionAttributes)) -> Result<ValueId> {
        let mut attributes = AttentionAttributes::causal();
        change(&mut attributes);
        let qkv = [self.heads(HEADS)?, self.heads(key_heads)?, self.heads(key_heads)?];
        let x = self.node(Op::ScaledDotProductAttention(attributes), &qkv)?;
        self.merge(x)
    }

    /// Attention with a mask made of products of the tokens' embeddings, `[batch, 1, seq, seq]`.
    fn masked_attention(&mut self, mask: fn(&mut Self, ValueId) -> Result<ValueId>) -> Result<ValueId> {
        let shape = vec![self.batch.clone(), 1_i64.into(), self.seq.clone(), HIDDEN.into()];
        let rows = self.node(Op::Reshape { shape }, &[self.x])?;
        let scores = self.node(Op::MatMul { transpose_b: true }, &[rows, rows])?;
        let scores = self.node(Op::Scale { factor: 0.1 }, &[scores])?;
        let mask = mask(self, scores)?;
        let attributes = AttentionAttributes { has_mask: true, ..AttentionAttributes::causal() };
        let inputs = [self.heads(HEADS)?, self.heads(HEADS)?, self.heads(HEADS)?, mask];
        let x = self.node(Op::ScaledDotProductAttention(attributes), &inputs)?;
        self.merge(x)
    }

    /// `softmax(q kᵀ) v`, with `kᵀ` made by the product or by a transpose.
    fn attention_by_hand(&mut self, transpose_b: bool) -> Result<ValueId> {
        let (q, mut k, v) = (self.heads(HEADS)?, self.heads(HEADS)?, self.heads(HEADS)?);
        if !transpose_b {
            k = self.node(Op::Transpose { permutation: vec![0, 1, 3, 2] }, &[k])?;
        }
        let scores = self.node(Op::MatMul { transpose_b }, &[q, k])?;
        let scores = self.node(Op::Scale { factor: 0.3 }, &[scores])?;
        let scores = self.node(Op::Softmax { axis: 3 }, &[scores])?;
        let x = self.node(Op::MatMul { transpose_b: false }, &[scores, v])?;
        self.merge(x)
    }
}
