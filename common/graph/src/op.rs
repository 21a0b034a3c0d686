//! The ops: a closed set, with the field's names.

use serde::{Deserialize, Serialize};

use crate::{DType, Dim, QuantizedLinearAttributes};

/// What a node computes. The doc of each variant gives its inputs → outputs with their shapes; `?` marks an optional
/// last input. `[…]` stands for any leading dimensions. Floating-point ops compute and accumulate in fp32 whatever
/// the dtype of their values, and round once, when they store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// `ids [B, S] i64, table [V, H] → [B, S, H]`: row `ids` of the table.
    Embedding,
    /// `x [B, S, H], rows [N, H], indices [B, S] i64 → [B, S, H]`: row `indices[b, s]` of `rows` where that is not
    /// negative, else `x`'s own. `N` may be 0.
    ReplaceRows,
    /// `x […, K], weight [N, K], bias? [N] → […, N]`: `x · weightᵀ + bias`.
    Linear,
    /// `x […, K], weight [N, K · bits / 8] u8, scales [N, K / group_size], offsets? [N, K / group_size], bias? [N] →
    /// […, N]`: `x · wᵀ + bias` with `w` as [`crate::WeightFormat`] reads it. Scales and offsets share a float dtype of
    /// their own.
    QuantizedLinear(QuantizedLinearAttributes),
    /// `a […, M, K], b […, K, N] → […, M, N]`, leading dimensions equal; with `transpose_b`, `b` is `[…, N, K]`.
    MatMul {
        /// Whether `b` is given transposed.
        transpose_b: bool,
    },
    /// `a, b → a + b`, with broadcasting of dimensions of 1 and missing leading ones.
    Add,
    /// `a, b → a · b`, with broadcasting as in `Add`.
    Mul,
    /// `x → factor · x`.
    Scale {
        /// The factor.
        factor: f32,
    },
    /// `x → x · sigmoid(x)` (Elfwing et al. 2017).
    Silu,
    /// `x → 1 / (1 + exp(−x))`.
    Sigmoid,
    /// `x → x · Φ(x)` (Hendrycks and Gimpel 2016).
    Gelu {
        /// Exact, or by tanh.
        approximation: GeluApproximation,
    },
    /// `x → cap · tanh(x / cap)` (Gemma 2).
    SoftCap {
        /// The bound.
        cap: f32,
    },
    /// `gate […, N], up […, N] → […, N]`: `silu(gate) · up` (SwiGLU, Shazeer 2020). Made by fusion.
    SiluMul,
    /// `x […, H], weight [H] → […, H]`: `x / sqrt(mean(x²) + epsilon) · weight` (Zhang and Sennrich 2019).
    RmsNorm {
        /// `rms_norm_eps` of the config.
        epsilon: f32,
        /// Whether the factor is `1 + weight` (Gemma).
        unit_offset: bool,
    },
    /// `x […, H], weight [H], bias? [H] → […, H]` (Ba et al. 2016).
    LayerNorm {
        /// `layer_norm_epsilon` of the config.
        epsilon: f32,
    },
    /// `x [B, N, S, D], position_ids [B, S] i64 → [B, N, S, D]` (Su et al. 2021). With `A` sections the positions are
    /// `[B, A, S]`, along as many axes.
    RotaryEmbedding(RotaryAttributes),
    /// `q [B, Nq, S, D], k [B, Nkv, L, D], v [B, Nkv, L, Dv], extra? → [B, Nq, S, Dv]`, `Nq` a multiple of `Nkv`
    /// (query head `h` reads key head `h / (Nq / Nkv)`). See [`AttentionAttributes`] for `extra`.
    ScaledDotProductAttention(AttentionAttributes),
    /// `cache [B, N, L, D], update [B, N, S, D], write_indices [B] i64 → [B, N, L, D]`: `update` written at
    /// positions `write_indices[b] + s` of the third axis; positions from `L` on, which only the padding of a batch
    /// reaches, are dropped. The output is the cache itself, changed in place: nothing reads `cache` afterwards.
    KvCacheUpdate,
    /// `x [B, S, H], query_lengths? [B] i64 → [B, 1, H]`: the last position of each sequence, `query_lengths[b] - 1`
    /// where given, else `S - 1`. A runtime that packs sequences selects each one's last row, or all rows when asked.
    LastToken,
    /// `a, b, … → joined along axis`.
    Cat {
        /// The axis.
        axis: usize,
    },
    /// `x → x[start..end]` along an axis.
    Slice {
        /// The axis.
        axis: usize,
        /// First index.
        start: Dim,
        /// One past the last index.
        end: Dim,
    },
    /// `x → x` with another shape of as many elements, row-major.
    Reshape {
        /// The new shape.
        shape: Vec<Dim>,
    },
    /// `x → x` with its axes permuted: output axis `i` is input axis `permutation[i]`.
    Transpose {
        /// A permutation of `0..rank`.
        permutation: Vec<usize>,
    },
    /// `x, indices [I…] i64 → x` with `axis` replaced by `I…`.
    Gather {
        /// The axis.
        axis: usize,
    },
    /// `x [B, S, H], router_logits [B, S, E], gate_up [E·2I, H], down [E·H, I] → [B, S, H]`: each token's
    /// `top_k` experts by router logit (the lower index where two are equal), of which expert `e` has the SwiGLU rows
    /// `e·2I..e·2I + I` (gate) and `e·2I + I..(e + 1)·2I` (up) and the output rows `e·H..(e + 1)·H`; their outputs
    /// summed with the softmax of the router logits over all experts (Shazeer et al. 2017). Only chosen experts are
    /// computed.
    MixtureOfExperts(ExpertAttributes),
    /// `x → exp(x) / Σ exp(x)` along an axis.
    Softmax {
        /// The axis.
        axis: usize,
    },
    /// `x → x` in another dtype.
    Cast {
        /// The dtype.
        to: DType,
    },
}

/// The attributes of `MixtureOfExperts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertAttributes {
    /// Experts of a token: `num_experts_per_tok`.
    pub top_k: u32,
    /// Whether the weights of the chosen experts are scaled to sum to one: `norm_topk_prob`; Mixtral always does.
    pub normalize: bool,
}

/// Which formula `Gelu` uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GeluApproximation {
    /// `x · ½ (1 + erf(x / √2))`.
    None,
    /// `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`: `gelu_new`, `gelu_pytorch_tanh`.
    Tanh,
}

/// The attributes of `RotaryEmbedding`. Pairs are `(x[i], x[i + rotary_dim/2])` (the half-split form of Hugging Face
/// checkpoints), or `(x[2i], x[2i+1])` when interleaved; dimensions from `rotary_dim` on pass unchanged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RotaryAttributes {
    /// Angle per position of each pair, `rotary_dim / 2` of them: scaling (linear, llama3, yarn) is already in.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine (yarn's attention factor); 1 without.
    pub attention_factor: f32,
    /// Whether pairs are neighbours.
    pub interleaved: bool,
    /// How many pairs, from the first on, turn by the position along each axis, where positions have several:
    /// `mrope_section` (Qwen2-VL; Wang et al. 2024). Empty where they have one; else as many in all as there are pairs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<u32>,
}

impl RotaryAttributes {
    /// How many leading dimensions of a head are rotated.
    #[must_use]
    pub fn rotary_dim(&self) -> usize {
        self.inv_freq.len() * 2
    }

    /// How many axes positions have.
    #[must_use]
    pub fn axes(&self) -> usize {
        self.sections.len().max(1)
    }

    /// The axis of each pair, in the order of the pairs.
    pub fn pair_axes(&self) -> impl Iterator<Item = usize> + '_ {
        let ends = self.sections.iter().scan(0_usize, |end, &section| {
            *end = end.saturating_add(usize::try_from(section).unwrap_or(usize::MAX));
            Some(*end)
        });
        let ends: Vec<usize> = ends.collect();
        (0..self.inv_freq.len()).map(move |pair| ends.iter().take_while(|&&end| end <= pair).count())
    }
}

/// The attributes of `ScaledDotProductAttention`: `softmax(cap(scale · q kᵀ) + mask) v`.
///
/// `extra` inputs, in this order: `mask [B|1, Nq|1, S, L]` (bool: where to attend; float: added) if `has_mask`; then
/// `kv_lengths [B] i64` if `has_kv_lengths`: only the first `kv_lengths[b]` keys of sequence `b` exist, the last `S`
/// of them being the queries' own. In a batch padded on the right to `S` new tokens the padding counts, so
/// `kv_lengths[b]` is what was in the cache before plus `S`: causality hides padding from the queries before it, and
/// what padded queries give is not used. A query that may attend to no key gives zeros.
///
/// With `has_segment_ids` the last input is `segment_ids [B, S] i64`, which do not decrease along a sequence: the keys
/// are the queries' own (`L` is `S`), and a query attends to those of its own segment. Nothing else hides keys then:
/// neither causality nor a window, a mask or lengths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionAttributes {
    /// Whether query `i` of `S` sees only keys `j ≤ i + (length − S)`: aligned bottom-right, so right for any number
    /// of new tokens over any past.
    pub causal: bool,
    /// Sliding window `W`: of those, only keys with `i + (length − S) − j < W`.
    pub window: Option<u32>,
    /// Factor on `q kᵀ`; `None` is `1/√D`, which the canonicalisation pass fills in.
    pub scale: Option<f32>,
    /// Soft cap of the scores (Gemma 2).
    pub soft_cap: Option<f32>,
    /// Whether there is a mask input.
    pub has_mask: bool,
    /// Whether there is a `kv_lengths` input.
    pub has_kv_lengths: bool,
    /// Whether there is a `segment_ids` input.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_segment_ids: bool,
}

impl AttentionAttributes {
    /// Plain causal attention.
    #[must_use]
    pub const fn causal() -> Self {
        Self { causal: true, ..Self::full() }
    }

    /// Plain attention of every query to every key.
    #[must_use]
    pub const fn full() -> Self {
        Self {
            causal: false,
            window: None,
            scale: None,
            soft_cap: None,
            has_mask: false,
            has_kv_lengths: false,
            has_segment_ids: false,
        }
    }
}

impl Op {
    /// The name in dumps and counts, as in the serialised form.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::ReplaceRows => "replace_rows",
            Self::Linear => "linear",
            Self::QuantizedLinear(_) => "quantized_linear",
            Self::MatMul { .. } => "matmul",
            Self::Add => "add",
            Self::Mul => "mul",
            Self::Scale { .. } => "scale",
            Self::Silu => "silu",
            Self::Sigmoid => "sigmoid",
            Self::MixtureOfExperts(_) => "mixture_of_experts",
            Self::Gelu { .. } => "gelu",
            Self::SoftCap { .. } => "soft_cap",
            Self::SiluMul => "silu_mul",
            Self::RmsNorm { .. } => "rms_norm",
            Self::LayerNorm { .. } => "layer_norm",
            Self::RotaryEmbedding(_) => "rotary_embedding",
            Self::ScaledDotProductAttention(_) => "scaled_dot_product_attention",
            Self::KvCacheUpdate => "kv_cache_update",
            Self::LastToken => "last_token",
            Self::Cat { .. } => "cat",
            Self::Slice { .. } => "slice",
            Self::Reshape { .. } => "reshape",
            Self::Transpose { .. } => "transpose",
            Self::Gather { .. } => "gather",
            Self::Softmax { .. } => "softmax",
            Self::Cast { .. } => "cast",
        }
    }
}
