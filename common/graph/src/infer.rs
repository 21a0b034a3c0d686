//! The shape and dtype rules of every op.
//!
//! Dimensions are compared as linear expressions: two are equal when they are the same expression. What cannot be
//! proven equal is refused. The float inputs of a node share one dtype, weights included; only `cast` changes it.
//! Whether a slice stays inside its input is known here only for constants; [`crate::verify`] adds the symbols' ranges,
//! and a runtime checks the rest.

mod attention;
mod check;
mod elementwise;
mod layout;
mod linear;

use crate::{DType, Graph, GraphError, Node, Op, Shape, Value};

/// The most dimensions that a value has.
pub(crate) const MAX_RANK: usize = 8;

/// The dtype and shape of a node's output.
///
/// # Errors
/// [`GraphError::InputCount`] for a wrong number of inputs; [`GraphError::Type`], which names the op, the input, what
/// was expected and what was found, when an input or an attribute does not fit.
pub fn infer(op: &Op, inputs: &[&Value]) -> Result<(DType, Shape), GraphError> {
    let (dtype, shape) = match op {
        Op::Embedding => linear::embedding(op, inputs),
        Op::ReplaceRows => layout::replace_rows(op, inputs),
        Op::Linear => linear::linear(op, inputs),
        Op::MixtureOfExperts(attributes) => linear::mixture_of_experts(op, inputs, *attributes),
        Op::QuantizedLinear(attributes) => linear::quantized_linear(op, inputs, *attributes),
        Op::MatMul { transpose_b } => linear::matmul(op, inputs, *transpose_b),
        Op::Add | Op::Mul => elementwise::binary(op, inputs),
        Op::Scale { factor } => elementwise::unary(op, inputs, &[("factor", *factor)]),
        Op::Silu | Op::Sigmoid | Op::Gelu { .. } => elementwise::unary(op, inputs, &[]),
        Op::SoftCap { cap } => elementwise::soft_cap(op, inputs, *cap),
        Op::SiluMul => elementwise::silu_mul(op, inputs),
        Op::RmsNorm { epsilon, .. } => elementwise::norm(op, inputs, *epsilon, &["x", "weight"]),
        Op::LayerNorm { epsilon } => elementwise::norm(op, inputs, *epsilon, &["x", "weight", "bias"]),
        Op::Softmax { axis } => elementwise::softmax(op, inputs, *axis),
        Op::RotaryEmbedding(attributes) => attention::rotary_embedding(op, inputs, attributes),
        Op::ScaledDotProductAttention(attributes) => attention::scaled_dot_product(op, inputs, attributes),
        Op::KvCacheUpdate => attention::kv_cache_update(op, inputs),
        Op::LastToken => attention::last_token(op, inputs),
        Op::Cat { axis } => layout::cat(op, inputs, *axis),
        Op::Slice { axis, start, end } => layout::slice(op, inputs, *axis, start, end),
        Op::Reshape { shape } => layout::reshape(op, inputs, shape),
        Op::Transpose { permutation } => layout::transpose(op, inputs, permutation),
        Op::Gather { axis } => layout::gather(op, inputs, *axis),
        Op::Cast { to } => layout::cast(op, inputs, *to),
    }?;
    if shape.len() > MAX_RANK {
        let what =
            format!("the output would have {} dimensions, at most {MAX_RANK} are allowed", shape.len());
        return Err(GraphError::Type { op: op.name(), what });
    }
    Ok((dtype, shape))
}

/// [`infer()`] of a graph's node, whose IDs are in range; an error names the node's output.
pub(crate) fn infer_node(graph: &Graph, node: &Node) -> Result<(DType, Shape), GraphError> {
    let inputs: Vec<&Value> = node.inputs.iter().map(|&id| graph.value(id)).collect();
    infer(&node.op, &inputs).map_err(|error| {
        let name = &graph.value(node.output).name;
        match error {
            GraphError::Type { op, what } => GraphError::Type { op, what: format!("node {name:?}: {what}") },
            GraphError::InputCount { op, expected, found } => {
                let what = format!("node {name:?}: takes {expected} inputs and was given {found}");
                GraphError::Type { op, what }
            }
            other => other,
        }
    })
}

#[cfg(test)]
mod tests;
