//! Which converter an op has.

use roundhouse_graph::Op;
use roundhouse_tensorrt_network::TensorId;

use crate::ConvertError;
use crate::context::Context;
use crate::converters::{
    activation, attention, cache, cast, elementwise, embedding, experts, last_token, layout, linear, norm,
    rotary, softmax,
};
use crate::site::Site;

/// Whether a converter has layers for a node in the form that it has; the reason if not.
type Validate = fn(&Site<'_>) -> Result<(), String>;

/// Writes the layers of a node; the tensor that is its output. The last layer is a new one, so that every output of a
/// graph is a tensor of its own.
type Convert = fn(&mut Context<'_>, &Site<'_>) -> Result<TensorId, ConvertError>;

/// How nodes of an op become layers.
#[derive(Debug)]
pub struct Converter {
    /// The op's name.
    pub op: &'static str,
    pub(crate) validate: Validate,
    pub(crate) convert: Convert,
}

/// All converters. A new op is a function and a line here.
pub static CONVERTERS: &[Converter] = &[
    Converter { op: "embedding", validate: any, convert: embedding::embedding },
    Converter { op: "linear", validate: any, convert: linear::linear },
    Converter { op: "matmul", validate: any, convert: linear::matmul },
    Converter { op: "add", validate: elementwise::validate_broadcast, convert: elementwise::add },
    Converter { op: "mul", validate: elementwise::validate_broadcast, convert: elementwise::mul },
    Converter { op: "scale", validate: any, convert: elementwise::scale },
    Converter { op: "silu", validate: any, convert: activation::silu },
    Converter { op: "sigmoid", validate: any, convert: activation::sigmoid },
    Converter { op: "gelu", validate: any, convert: activation::gelu },
    Converter { op: "soft_cap", validate: any, convert: activation::soft_cap },
    Converter { op: "silu_mul", validate: any, convert: activation::silu_mul },
    Converter { op: "rms_norm", validate: any, convert: norm::rms_norm },
    Converter { op: "layer_norm", validate: any, convert: norm::layer_norm },
    Converter { op: "rotary_embedding", validate: rotary::validate, convert: rotary::rotary_embedding },
    Converter {
        op: "scaled_dot_product_attention",
        validate: attention::validate,
        convert: attention::scaled_dot_product_attention,
    },
    Converter { op: "kv_cache_update", validate: cache::validate, convert: cache::kv_cache_update },
    Converter { op: "last_token", validate: last_token::validate, convert: last_token::last_token },
    Converter { op: "cat", validate: any, convert: layout::cat },
    Converter { op: "slice", validate: any, convert: layout::slice },
    Converter { op: "reshape", validate: layout::validate_reshape, convert: layout::reshape },
    Converter { op: "transpose", validate: any, convert: layout::transpose },
    Converter { op: "gather", validate: any, convert: embedding::gather },
    Converter { op: "mixture_of_experts", validate: experts::validate, convert: experts::mixture_of_experts },
    Converter { op: "softmax", validate: any, convert: softmax::softmax },
    Converter { op: "cast", validate: cast::validate, convert: cast::cast },
];

/// The cases of the conformance suite's ops that there is no form of in a network yet: those of images.
pub const UNSUPPORTED_OPS: &[&str] = &["rotary_embedding_sections", "attention_segments", "replace_rows"];

/// The converter of an op.
pub(crate) fn find(op: &Op) -> Option<&'static Converter> {
    CONVERTERS.iter().find(|converter| converter.op == op.name())
}

/// Every form that a graph can have.
fn any(_: &Site<'_>) -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use roundhouse_graph::{
        AttentionAttributes, DType, ExpertAttributes, GeluApproximation, Quantization,
        QuantizedLinearAttributes, RotaryAttributes, WeightFormat,
    };

    use super::*;

    /// The op after this one. A new variant of [`Op`] does not compile until it has a place in this chain.
    fn next(op: &Op) -> Option<Op> {
        Some(match op {
            Op::Embedding => Op::ReplaceRows,
            Op::ReplaceRows => Op::Linear,
            Op::Linear => Op::QuantizedLinear(QuantizedLinearAttributes {
                quantization: Quantization { format: WeightFormat::Int8, group_size: 32 },
                has_offsets: false,
            }),
            Op::QuantizedLinear(_) => Op::MatMul { transpose_b: false },
            Op::MatMul { .. } => Op::Add,
            Op::Add => Op::Mul,
            Op::Mul => Op::Scale { factor: 1.0 },
            Op::Scale { .. } => Op::Silu,
            Op::Silu => Op::Sigmoid,
            Op::Sigmoid => Op::Gelu { approximation: GeluApproximation::None },
            Op::Gelu { .. } => Op::SoftCap { cap: 1.0 },
            Op::SoftCap { .. } => Op::SiluMul,
            Op::SiluMul => Op::RmsNorm { epsilon: 0.0, unit_offset: false },
            Op::RmsNorm { .. } => Op::LayerNorm { epsilon: 0.0 },
            Op::LayerNorm { .. } => Op::RotaryEmbedding(RotaryAttributes {
                inv_freq: Vec::new(),
                attention_factor: 1.0,
                interleaved: false,
                sections: Vec::new(),
            }),
            Op::RotaryEmbedding(_) => Op::ScaledDotProductAttention(AttentionAttributes::causal()),
            Op::ScaledDotProductAttention(_) => Op::KvCacheUpdate,
            Op::KvCacheUpdate => Op::LastToken,
            Op::LastToken => Op::Cat { axis: 0 },
            Op::Cat { .. } => Op::Slice { axis: 0, start: 0_i64.into(), end: 0_i64.into() },
            Op::Slice { .. } => Op::Reshape { shape: Vec::new() },
            Op::Reshape { .. } => Op::Transpose { permutation: Vec::new() },
            Op::Transpose { .. } => Op::Gather { axis: 0 },
            Op::Gather { .. } => Op::MixtureOfExperts(ExpertAttributes { top_k: 1, normalize: false }),
            Op::MixtureOfExperts(_) => Op::Softmax { axis: 0 },
            Op::Softmax { .. } => Op::Cast { to: DType::F32 },
            Op::Cast { .. } => return None,
        })
    }

    /// Ops that graphs for TensorRT do not have: weights of less than 16 bits, and images.
    const WITHOUT: &[&str] = &["quantized_linear", "replace_rows"];

    #[test]
    fn each_op_has_one_converter_and_each_converter_an_op() {
        let ops: Vec<Op> = std::iter::successors(Some(Op::Embedding), next).collect();
        for op in &ops {
            let found = CONVERTERS.iter().filter(|converter| converter.op == op.name()).count();
            assert_eq!(found, usize::from(!WITHOUT.contains(&op.name())), "{}", op.name());
        }
        assert_eq!(ops.len(), CONVERTERS.len() + WITHOUT.len());
    }
}
