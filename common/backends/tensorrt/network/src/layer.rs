//! The layers: those of `INetworkDefinition` that the converters use, with their attributes.

use serde::{Deserialize, Serialize};

use crate::{Constant, DataType, Dims};

/// What a layer computes. The doc of each variant gives TensorRT's layer and its inputs in TensorRT's order; `?` marks
/// an optional last input. Where an input is Int64, Int32 will do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "layer", rename_all = "snake_case")]
pub enum LayerKind {
    /// `IConstantLayer`. No inputs.
    Constant(Constant),
    /// `IActivationLayer`: `x`.
    Activation {
        /// The function.
        function: Activation,
    },
    /// `IUnaryLayer`: `x`.
    Unary {
        /// The function.
        function: Unary,
    },
    /// `IElementWiseLayer`: `a, b` of equal rank and dtype, with broadcasting of dimensions of 1.
    ElementWise {
        /// The operation.
        operation: ElementWise,
    },
    /// `ICastLayer`: `x`.
    Cast {
        /// The dtype.
        to: DataType,
    },
    /// `IShuffleLayer`: `x, shape? [rank] Int64`: a transpose, then a reshape, then another transpose.
    Shuffle {
        /// Output axis `i` of the first transpose is input axis `first_transpose[i]`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        first_transpose: Option<Vec<usize>>,
        /// The reshape.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reshape: Option<Reshape>,
        /// As `first_transpose`, after the reshape.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        second_transpose: Option<Vec<usize>>,
    },
    /// `ISliceLayer`, strides of 1: `x, start? [rank] Int64, size? [rank] Int64`; the inputs that there are come in this
    /// order.
    Slice {
        /// First index of each axis.
        start: SliceOperand,
        /// Length of each axis.
        size: SliceOperand,
    },
    /// `IConcatenationLayer`: one or more inputs.
    Concatenation {
        /// The axis.
        axis: usize,
    },
    /// `IMatrixMultiplyLayer`: `a, b` of equal rank and dtype, leading dimensions equal or 1.
    MatrixMultiply {
        /// What is done to `a` first.
        op_a: MatrixOp,
        /// What is done to `b` first.
        op_b: MatrixOp,
    },
    /// `IGatherLayer` in mode `kDEFAULT`: `x, indices Int64`: `x` with `axis` replaced by the dimensions of `indices`.
    Gather {
        /// The axis.
        axis: usize,
    },
    /// `IReduceLayer`, dimensions kept: `x`.
    Reduce {
        /// The operation.
        operation: Reduce,
        /// The axes.
        axes: Vec<usize>,
    },
    /// `ISoftMaxLayer`: `x`.
    SoftMax {
        /// The axis.
        axis: usize,
    },
    /// `IShapeLayer`: `x → [rank] Int64`.
    Shape,
    /// `IFillLayer` in mode `kLINSPACE` with alpha 0 and beta 1, one-dimensional: `dims? [1] Int64 → 0, 1, 2, …`.
    Iota {
        /// Its length.
        length: FillDims,
        /// Its dtype.
        dtype: DataType,
    },
    /// `ISelectLayer`: `condition Bool, then, otherwise` of equal rank, with broadcasting of dimensions of 1.
    Select,
    /// `IRotaryEmbeddingLayer`: `x [B, N, S, D], cos [P, R/2], sin [P, R/2], position_ids [B, S] Int64`.
    RotaryEmbedding {
        /// Whether pairs are neighbours.
        interleaved: bool,
        /// How many leading dimensions of a head are rotated (`R`); TensorRT's 0 stands for all of them.
        dim: usize,
    },
    /// `IKVCacheUpdateLayer` in mode `kLINEAR`: `cache [B, N, L, D], update [B, N, S, D], write_indices [B] Int32`
    /// (TensorRT's documentation allows Int64, its compiler does not). The cache is an input of the network that nothing
    /// else reads, and the output an output of the network that aliases it: it is the cache, at the same address.
    /// Positions from `L` on are not written.
    KvCacheUpdate,
    /// `IAttention` with softmax: `q [B, Nq, S, D], k [B, Nkv, L, D], v [B, Nkv, L, D]`, then `mask [B|1, Nq|1, S, L]`
    /// (Bool: where to attend; else added) if `has_mask`, then `kv_lengths [B] Int32` if `has_kv_lengths`. It does not
    /// scale the scores.
    Attention {
        /// Which keys a query sees. A mask excludes any other than [`CausalMask::None`].
        causal: CausalMask,
        /// Whether TensorRT may run it as several kernels where it has no fused one.
        decomposable: bool,
        /// Whether there is a mask input.
        has_mask: bool,
        /// Whether there is a `kv_lengths` input: only the first `kv_lengths[b]` keys of sequence `b` exist.
        has_kv_lengths: bool,
    },
}

/// `ActivationType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `kSIGMOID`.
    Sigmoid,
    /// `kTANH`.
    Tanh,
    /// `kGELU_ERF`: `½ x (1 + erf(x / √2))`.
    GeluErf,
    /// `kGELU_TANH`: `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
}

/// `UnaryOperation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unary {
    /// `kSQRT`.
    Sqrt,
    /// `kRECIP`: `1 / x`.
    Recip,
    /// `kNOT`, of truth values.
    Not,
    /// `kISINF`, gives truth values.
    IsInf,
}

/// `ElementWiseOperation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElementWise {
    /// `kSUM`.
    Sum,
    /// `kPROD`.
    Prod,
    /// `kSUB`.
    Sub,
    /// `kDIV`.
    Div,
    /// `kMAX`.
    Max,
    /// `kMIN`.
    Min,
    /// `kLESS`, gives truth values.
    Less,
    /// `kGREATER`, gives truth values.
    Greater,
    /// `kEQUAL`, gives truth values.
    Equal,
    /// `kAND`, of truth values.
    And,
    /// `kOR`, of truth values.
    Or,
}

/// `MatrixOperation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatrixOp {
    /// `kNONE`: as it is.
    None,
    /// `kTRANSPOSE`: the last two axes exchanged.
    Transpose,
}

/// `ReduceOperation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduce {
    /// `kSUM`.
    Sum,
    /// `kMAX`.
    Max,
    /// `kAVG`.
    Avg,
}

/// `CausalMaskKind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CausalMask {
    /// `kNONE`: every key.
    None,
    /// `kLOWER_RIGHT`: query `i` of `S` sees keys `j ≤ i + (L − S)`, with `kv_lengths[b]` for `L` where it is given.
    LowerRight,
}

/// The dimensions that a shuffle reshapes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "dims", content = "value", rename_all = "snake_case")]
pub enum Reshape {
    /// Given here: 0 copies the input's dimension at this index, at most one −1 is what is left.
    Static(Dims),
    /// The layer's second input; `expected` are the dimensions as far as they are known, −1 where not.
    Input {
        /// What the reshape is expected to give.
        expected: Dims,
    },
}

/// The start or size of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "dims", content = "value", rename_all = "snake_case")]
pub enum SliceOperand {
    /// Given here.
    Static(Dims),
    /// An input of the layer; `expected` are its elements as far as they are known, −1 where not.
    Input {
        /// What the input is expected to hold.
        expected: Dims,
    },
}

/// The length of an iota.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "dims", content = "value", rename_all = "snake_case")]
pub enum FillDims {
    /// Given here.
    Static(i64),
    /// The layer's input, `[1] Int64`.
    Input,
}
