//! Decoders small enough to interpret, that differ in what model families differ in.

use roundhouse_engine::ModelInfo;
use roundhouse_graph::{
    AttentionAttributes, DType, Dim, GeluApproximation, Graph, GraphError, Op, RotaryAttributes, ValueId,
    WeightExpr,
};

use crate::{MemoryWeights, Rng};

/// Which norm a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// RMS norm.
    Rms,
    /// RMS norm with `1 + weight`, as in Gemma.
    RmsUnitOffset,
    /// Layer norm with a bias.
    Layer,
}

/// Which feed-forward block a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// `down(silu(gate) · up)`.
    SwiGlu,
    /// `down(gelu(gate) · up)`, tanh form, as in Gemma.
    GeGlu,
    /// `down(gelu(up))`, exact form, with biases.
    Gelu,
}

/// A decoder: its sizes, and what it does differently from Llama.
#[derive(Debug, Clone)]
pub struct TinyModel {
    /// For messages.
    pub name: &'static str,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Rows of the embedding and columns of the logits.
    pub vocab_size: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Sliding window of every other layer, the first included.
    pub sliding_window: Option<u32>,
    /// Soft cap of attention scores.
    pub attention_soft_cap: Option<f32>,
    /// Soft cap of the logits.
    pub final_soft_cap: Option<f32>,
    /// Whether the query, key and value projections have biases.
    pub attention_bias: bool,
    /// Whether queries and keys are normed a head, as in Qwen 3.
    pub query_key_norm: bool,
    /// The norms.
    pub norm: Norm,
    /// The feed-forward block.
    pub mlp: Mlp,
    /// Dimensions of a head that are rotated.
    pub rotary_dim: usize,
    /// Whether rotated pairs are neighbours.
    pub interleaved: bool,
    /// Whether the logits' weight is the embedding table.
    pub tie_word_embeddings: bool,
    /// Factor on embeddings, as in Gemma.
    pub embedding_scale: Option<f32>,
}

impl TinyModel {
    /// Llama: grouped-query attention, RMS norm, SwiGLU.
    #[must_use]
    pub const fn llama() -> Self {
        Self {
            name: "llama",
            num_hidden_layers: 2,
            hidden_size: 64,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            intermediate_size: 96,
            vocab_size: 97,
            max_position_embeddings: 64,
            sliding_window: None,
            attention_soft_cap: None,
            final_soft_cap: None,
            attention_bias: false,
            query_key_norm: false,
            norm: Norm::Rms,
            mlp: Mlp::SwiGlu,
            rotary_dim: 16,
            interleaved: false,
            tie_word_embeddings: false,
            embedding_scale: None,
        }
    }

    /// Mistral: every other layer sees a window of 5, and groups of 3 query heads share a key head.
    #[must_use]
    pub const fn mistral() -> Self {
        Self {
            name: "mistral",
            num_attention_heads: 6,
            num_key_value_heads: 2,
            sliding_window: Some(5),
            ..Self::llama()
        }
    }

    /// Qwen 2: biased projections, tied embeddings, one key head for all.
    #[must_use]
    pub const fn qwen2() -> Self {
        Self {
            name: "qwen2",
            num_key_value_heads: 1,
            attention_bias: true,
            tie_word_embeddings: true,
            ..Self::llama()
        }
    }

    /// Qwen 3: normed queries and keys, heads wider than the residual stream.
    #[must_use]
    pub const fn qwen3() -> Self {
        Self { name: "qwen3", head_dim: 32, rotary_dim: 32, query_key_norm: true, ..Self::llama() }
    }

    /// Gemma 2: soft caps, window, GeGLU, norms with an offset, scaled embeddings.
    #[must_use]
    pub const fn gemma2() -> Self {
        Self {
            name: "gemma2",
            sliding_window: Some(7),
            attention_soft_cap: Some(2.0),
            final_soft_cap: Some(3.0),
            norm: Norm::RmsUnitOffset,
            mlp: Mlp::GeGlu,
            tie_word_embeddings: true,
            embedding_scale: Some(8.0),
            ..Self::llama()
        }
    }

    /// Phi: layer norm, plain GELU block, heads rotated in part, no sharing of key heads.
    #[must_use]
    pub const fn phi() -> Self {
        Self {
            name: "phi",
            num_key_value_heads: 4,
            attention_bias: true,
            norm: Norm::Layer,
            mlp: Mlp::Gelu,
            rotary_dim: 8,
            ..Self::llama()
        }
    }

    /// GLM: interleaved rotation of half a head.
    #[must_use]
    pub const fn glm() -> Self {
        Self { name: "glm", rotary_dim: 8, interleaved: true, attention_bias: true, ..Self::llama() }
    }

    /// All of them.
    #[must_use]
    pub fn all() -> Vec<Self> {
        vec![
            Self::llama(),
            Self::mistral(),
            Self::qwen2(),
            Self::qwen3(),
            Self::gemma2(),
            Self::phi(),
            Self::glm(),
        ]
    }

    /// The graph, fp32 and without a cache: `(input_ids, position_ids) → logits [batch, seq, vocab_size]`.
    ///
    /// # Errors
    /// When the sizes do not fit each other.
    pub fn graph(&self) -> Result<Graph, GraphError> {
        Decoder::new(self).build()
    }

    /// Random weights for [`TinyModel::graph`], the same at every call, scaled so that activations and logits stay
    /// around 1.
    ///
    /// # Errors
    /// As for [`TinyModel::graph`].
    pub fn weights(&self) -> Result<MemoryWeights, GraphError> {
        let mut rng = Rng::new(0x5EED);
        let mut weights = MemoryWeights::new();
        for (_, value, _) in self.graph()?.weights() {
            let shape: Vec<usize> =
                value.shape.iter().filter_map(|dim| dim.as_constant()).map(|dim| dim as usize).collect();
            let name = value.name.as_str();
            let norm_center = if self.norm == Norm::RmsUnitOffset { 0.0 } else { 1.0 };
            let (center, scale) = match shape[..] {
                _ if name.ends_with("embed_tokens.weight") => {
                    (0.0, 1.0 / self.embedding_scale.unwrap_or(1.0))
                }
                // Uniform in ±√(3/K): products keep the variance of their input.
                [_, inner] => (0.0, (3.0 / inner as f32).sqrt()),
                _ if name.ends_with("norm.weight") => (norm_center, 0.25),
                _ => (0.0, 0.25),
            };
            weights.insert_random(&mut rng, name, &shape, center, scale);
        }
        Ok(weights)
    }

    /// What the manifest of its engine says of it.
    #[must_use]
    pub fn info(&self) -> ModelInfo {
        ModelInfo {
            model_type: self.name.to_owned(),
            architecture: format!("Tiny{}ForCausalLM", self.name),
            vocab_size: self.vocab_size as u32,
            num_hidden_layers: self.num_hidden_layers as u32,
            max_position_embeddings: self.max_position_embeddings as u32,
            eos_token_ids: vec![0],
            bos_token_id: None,
            vision: None,
        }
    }
}

/// A graph under construction.
struct Decoder<'a> {
    model: &'a TinyModel,
    graph: Graph,
    batch: Dim,
    seq: Dim,
    position_ids: ValueId,
}

impl<'a> Decoder<'a> {
    fn new(model: &'a TinyModel) -> Self {
        let mut graph = Graph::new(model.name);
        let batch = Dim::symbol(graph.add_symbol("batch", 1, 1 << 16));
        let seq = Dim::symbol(graph.add_symbol("seq", 1, model.max_position_embeddings as i64));
        let shape = vec![batch.clone(), seq.clone()];
        graph.add_input("input_ids", DType::I64, shape.clone());
        let position_ids = graph.add_input("position_ids", DType::I64, shape);
        Self { model, graph, batch, seq, position_ids }
    }

    fn build(mut self) -> Result<Graph, GraphError> {
        let model = self.model;
        let input_ids = self.graph.inputs()[0];
        let table = self.weight("model.embed_tokens.weight", &[model.vocab_size, model.hidden_size]);
        let mut x = self.graph.add_node(Op::Embedding, &[input_ids, table])?;
        if let Some(factor) = model.embedding_scale {
            x = self.graph.add_node(Op::Scale { factor }, &[x])?;
        }
        for layer in 0..model.num_hidden_layers {
            let prefix = format!("model.layers.{layer}");
            let normed = self.norm(&format!("{prefix}.input_layernorm"), x, model.hidden_size)?;
            let attended = self.attention(&prefix, layer, normed)?;
            x = self.graph.add_node(Op::Add, &[x, attended])?;
            let normed = self.norm(&format!("{prefix}.post_attention_layernorm"), x, model.hidden_size)?;
            let fed = self.feed_forward(&format!("{prefix}.mlp"), normed)?;
            x = self.graph.add_node(Op::Add, &[x, fed])?;
        }
        let x = self.norm("model.norm", x, model.hidden_size)?;
        let head = if model.tie_word_embeddings {
            table
        } else {
            self.weight("lm_head.weight", &[model.vocab_size, model.hidden_size])
        };
        let mut logits = self.graph.add_node(Op::Linear, &[x, head])?;
        if let Some(cap) = model.final_soft_cap {
            logits = self.graph.add_node(Op::SoftCap { cap }, &[logits])?;
        }
        self.graph.add_output("logits", logits);
        Ok(self.graph)
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        self.graph.add_weight(name, DType::F32, &shape, WeightExpr::tensor(name))
    }

    fn linear(
        &mut self,
        prefix: &str,
        x: ValueId,
        [inner, outer]: [usize; 2],
        bias: bool,
    ) -> Result<ValueId, GraphError> {
        let mut inputs = vec![x, self.weight(&format!("{prefix}.weight"), &[outer, inner])];
        if bias {
            inputs.push(self.weight(&format!("{prefix}.bias"), &[outer]));
        }
        self.graph.add_node(Op::Linear, &inputs)
    }

    fn norm(&mut self, prefix: &str, x: ValueId, width: usize) -> Result<ValueId, GraphError> {
        let weight = self.weight(&format!("{prefix}.weight"), &[width]);
        let epsilon = 1e-5;
        match self.model.norm {
            Norm::Rms => self.graph.add_node(Op::RmsNorm { epsilon, unit_offset: false }, &[x, weight]),
            Norm::RmsUnitOffset => {
                self.graph.add_node(Op::RmsNorm { epsilon, unit_offset: true }, &[x, weight])
            }
            Norm::Layer => {
                let bias = self.weight(&format!("{prefix}.bias"), &[width]);
                self.graph.add_node(Op::LayerNorm { epsilon }, &[x, weight, bias])
            }
        }
    }

    /// Projects to heads `[batch, heads, seq, head_dim]`.
    fn heads(&mut self, prefix: &str, x: ValueId, heads: usize) -> Result<ValueId, GraphError> {
        let model = self.model;
        let x = self.linear(prefix, x, [model.hidden_size, heads * model.head_dim], model.attention_bias)?;
        let shape = vec![self.batch.clone(), self.seq.clone(), heads.into(), model.head_dim.into()];
        let x = self.graph.add_node(Op::Reshape { shape }, &[x])?;
        self.graph.add_node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x])
    }

    fn rotate(&mut self, x: ValueId) -> Result<ValueId, GraphError> {
        let half = self.model.rotary_dim / 2;
        let attributes = RotaryAttributes {
            inv_freq: (0..half).map(|pair| 100_f32.powf(-(pair as f32) / half as f32)).collect(),
            attention_factor: 1.0,
            interleaved: self.model.interleaved,
            sections: Vec::new(),
        };
        self.graph.add_node(Op::RotaryEmbedding(attributes), &[x, self.position_ids])
    }

    fn attention(&mut self, prefix: &str, layer: usize, x: ValueId) -> Result<ValueId, GraphError> {
        let model = self.model;
        let prefix = format!("{prefix}.self_attn");
        let mut q = self.heads(&format!("{prefix}.q_proj"), x, model.num_attention_heads)?;
        let mut k = self.heads(&format!("{prefix}.k_proj"), x, model.num_key_value_heads)?;
        let v = self.heads(&format!("{prefix}.v_proj"), x, model.num_key_value_heads)?;
        if model.query_key_norm {
            q = self.norm(&format!("{prefix}.q_norm"), q, model.head_dim)?;
            k = self.norm(&format!("{prefix}.k_norm"), k, model.head_dim)?;
        }
        let (q, k) = (self.rotate(q)?, self.rotate(k)?);
        let attributes = AttentionAttributes {
            window: model.sliding_window.filter(|_| layer.is_multiple_of(2)),
            soft_cap: model.attention_soft_cap,
            ..AttentionAttributes::causal()
        };
        let x = self.graph.add_node(Op::ScaledDotProductAttention(attributes), &[q, k, v])?;
        let x = self.graph.add_node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x])?;
        let width = model.num_attention_heads * model.head_dim;
        let shape = vec![self.batch.clone(), self.seq.clone(), width.into()];
        let x = self.graph.add_node(Op::Reshape { shape }, &[x])?;
        self.linear(&format!("{prefix}.o_proj"), x, [width, model.hidden_size], false)
    }

    fn feed_forward(&mut self, prefix: &str, x: ValueId) -> Result<ValueId, GraphError> {
        let (hidden, inner) = (self.model.hidden_size, self.model.intermediate_size);
        let bias = self.model.mlp == Mlp::Gelu;
        let up = self.linear(&format!("{prefix}.up_proj"), x, [hidden, inner], bias)?;
        let activated = match self.model.mlp {
            Mlp::Gelu => self.graph.add_node(Op::Gelu { approximation: GeluApproximation::None }, &[up])?,
            Mlp::SwiGlu | Mlp::GeGlu => {
                let gate = self.linear(&format!("{prefix}.gate_proj"), x, [hidden, inner], false)?;
                let activation = match self.model.mlp {
                    Mlp::SwiGlu => Op::Silu,
                    _ => Op::Gelu { approximation: GeluApproximation::Tanh },
                };
                let gate = self.graph.add_node(activation, &[gate])?;
                self.graph.add_node(Op::Mul, &[gate, up])?
            }
        };
        self.linear(&format!("{prefix}.down_proj"), activated, [inner, hidden], bias)
    }
}
