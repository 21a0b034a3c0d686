//! Whether a graph with an in-place cache can run packed: all sequences' new tokens as the rows of one batch.
//!
//! Packed, the batch is 1 and the tokens of all sequences follow each other along one axis. That is right only if no
//! op but attention, the cache's update and the choice of the last token looks at more than one token at a time. The
//! check follows the axis of the tokens through the graph.

use std::collections::HashMap;

use roundhouse_backend::BackendError;
use roundhouse_graph::{Dim, Graph, Node, Op, ValueId};

use super::signature::{Role, Signature};
use crate::error::unsupported;

/// What a value has to do with tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The same for all tokens.
    Constant,
    /// One entry a token along this axis.
    Tokens(usize),
    /// A cache tensor.
    Cache,
    /// One entry a sequence, for attention and the cache alone.
    Sequences(Role),
}

/// Checks that a graph can run packed.
///
/// # Errors
/// [`BackendError::Unsupported`] names the first node that mixes tokens.
pub(super) fn check_packed(graph: &Graph, signature: &Signature) -> Result<(), BackendError> {
    let mut kinds: HashMap<ValueId, Kind> = HashMap::new();
    for &(id, role) in &signature.inputs {
        let kind = match role {
            Role::InputIds => Kind::Tokens(1),
            Role::PositionIds => Kind::Tokens(graph.value(id).shape.len().saturating_sub(1)),
            Role::CacheTensor(_) => Kind::Cache,
            Role::Start | Role::End => {
                return Err(unsupported(format!(
                    "the input {:?} beside write_indices",
                    graph.value(id).name
                )));
            }
            Role::WriteIndices
            | Role::KvLengths
            | Role::QueryLengths
            | Role::ImageFeatures
            | Role::ImageIndices => Kind::Sequences(role),
            Role::Tensor(_) => {
                return Err(unsupported(format!("the input {:?} of a component", graph.value(id).name)));
            }
        };
        kinds.insert(id, kind);
    }
    for (_, node) in graph.nodes() {
        let inputs: Vec<Kind> =
            node.inputs.iter().map(|id| kinds.get(id).copied().unwrap_or(Kind::Constant)).collect();
        let kind = node_kind(graph, node, &inputs).ok_or_else(|| {
            let name = &graph.value(node.output).name;
            unsupported(format!("{name:?}: {} over several tokens of a packed batch", node.op.name()))
        })?;
        kinds.insert(node.output, kind);
    }
    let logits = graph.value(signature.logits);
    if logits.shape.len() != 3 || kinds.get(&signature.logits) != Some(&Kind::Tokens(1)) {
        return Err(unsupported(format!("logits {:?} that are not [batch, seq, vocab_size]", logits.name)));
    }
    for id in &signature.cache_outputs {
        if kinds.get(id) != Some(&Kind::Cache) {
            return Err(unsupported(format!(
                "the output {:?}, which is no updated cache",
                graph.value(*id).name
            )));
        }
    }
    Ok(())
}

/// The kind of a node's output; `None` if it mixes tokens.
fn node_kind(graph: &Graph, node: &Node, inputs: &[Kind]) -> Option<Kind> {
    let shape = |index: usize| &graph.value(node.inputs[index]).shape;
    let rank = |index: usize| shape(index).len();
    let first = *inputs.first()?;
    match (&node.op, first) {
        (Op::KvCacheUpdate, Kind::Cache) => {
            let fits = inputs[1] == Kind::Tokens(2) && inputs[2] == Kind::Sequences(Role::WriteIndices);
            return fits.then_some(Kind::Cache);
        }
        (Op::ScaledDotProductAttention(attributes), Kind::Tokens(2)) => {
            let fits = !attributes.has_mask
                && attributes.has_kv_lengths
                && inputs[1..] == [Kind::Cache, Kind::Cache, Kind::Sequences(Role::KvLengths)];
            return fits.then_some(Kind::Tokens(2));
        }
        (Op::LastToken, Kind::Tokens(1)) => {
            let fits = inputs.get(1).is_none_or(|kind| *kind == Kind::Sequences(Role::QueryLengths));
            return fits.then_some(Kind::Tokens(1));
        }
        (Op::ReplaceRows, Kind::Tokens(1)) => {
            let images = [Kind::Sequences(Role::ImageFeatures), Kind::Sequences(Role::ImageIndices)];
            let fits = inputs[1..] == images || inputs[1..] == [Kind::Constant, Kind::Tokens(1)];
            return fits.then_some(Kind::Tokens(1));
        }
        (Op::ScaledDotProductAttention(_) | Op::KvCacheUpdate | Op::LastToken | Op::ReplaceRows, _) => {
            return None;
        }
        (Op::Cast { .. }, kind) => return Some(kind),
        _ => {}
    }
    if inputs.iter().any(|kind| matches!(kind, Kind::Cache | Kind::Sequences(_))) {
        return None;
    }
    let tokens = |index: usize| match inputs.get(index) {
        Some(Kind::Tokens(axis)) => Some(*axis),
        _ => None,
    };
    let axis = match &node.op {
        Op::Embedding => tokens(0).filter(|_| tokens(1).is_none()).map(Some)?,
        Op::Linear | Op::QuantizedLinear(_) => {
            row_axis(tokens(0), rank(0), inputs[1..].iter().all(|kind| *kind == Kind::Constant))?
        }
        Op::RmsNorm { .. } | Op::LayerNorm { .. } => row_axis(tokens(0), rank(0), true)?,
        Op::Softmax { axis } => tokens(0).is_none_or(|tokens| tokens != *axis).then(|| tokens(0))?,
        Op::RotaryEmbedding(_) => {
            let positions = rank(1).checked_sub(1);
            (tokens(0) == Some(2) && tokens(1) == positions).then_some(Some(2))?
        }
        Op::MixtureOfExperts(_) => {
            let weights = inputs[2..].iter().all(|kind| *kind == Kind::Constant);
            (tokens(0) == Some(1) && tokens(1) == Some(1) && weights).then_some(Some(1))?
        }
        Op::Scale { .. } | Op::Silu | Op::Sigmoid | Op::Gelu { .. } | Op::SoftCap { .. } => tokens(0),
        Op::Add | Op::Mul | Op::SiluMul => {
            let output = rank(0).max(rank(1));
            let aligned = |index: usize| tokens(index).map(|axis| axis + output - rank(index));
            match (aligned(0), aligned(1)) {
                (Some(a), Some(b)) => (a == b).then_some(Some(a))?,
                (a, b) => {
                    let axis = a.or(b);
                    // The operand without tokens must be the same for all of them.
                    let other = usize::from(a.is_some());
                    let own = axis.and_then(|axis| (axis + rank(other)).checked_sub(output));
                    let repeats = own.is_none_or(|own| shape(other)[own] == Dim::constant(1));
                    (axis.is_none() || repeats).then_some(axis)?
                }
            }
        }
        Op::MatMul { .. } => {
            let matrix = rank(0).checked_sub(2)?;
            match (tokens(0), tokens(1)) {
                (Some(a), Some(b)) => (a == b && a < matrix).then_some(Some(a))?,
                (Some(a), None) => (a == matrix).then_some(Some(a))?,
                (None, Some(_)) => return None,
                (None, None) => None,
            }
        }
        Op::Cat { axis } => {
            let tokens = tokens(0);
            let same = inputs.iter().all(|kind| *kind == first);
            (same && tokens.is_none_or(|tokens| tokens != *axis)).then_some(tokens)?
        }
        Op::Slice { axis, .. } => tokens(0).is_none_or(|tokens| tokens != *axis).then(|| tokens(0))?,
        Op::Transpose { permutation } => match tokens(0) {
            Some(axis) => Some(permutation.iter().position(|&old| old == axis)?),
            None => None,
        },
        Op::Reshape { shape: new } => match tokens(0) {
            Some(axis) => Some(reshaped_axis(shape(0), axis, new)?),
            None => None,
        },
        Op::Gather { axis } => match (tokens(0), tokens(1)) {
            (None, Some(indices)) => Some(axis + indices),
            (Some(tokens), None) if tokens < *axis => Some(tokens),
            (Some(tokens), None) if tokens > *axis => Some(tokens + rank(1) - 1),
            (None, None) => None,
            _ => return None,
        },
        Op::ScaledDotProductAttention(_)
        | Op::KvCacheUpdate
        | Op::LastToken
        | Op::ReplaceRows
        | Op::Cast { .. } => return None,
    };
    Some(axis.map_or(Kind::Constant, Kind::Tokens))
}

/// The axis of the tokens after a function of rows: not the last one.
fn row_axis(tokens: Option<usize>, rank: usize, other_inputs_fit: bool) -> Option<Option<usize>> {
    let fits = other_inputs_fit && tokens.is_none_or(|axis| axis + 1 < rank);
    fits.then_some(tokens)
}

/// Where the axis of the tokens is in the new shape: an equal dimension with as many elements before it.
fn reshaped_axis(old: &[Dim], axis: usize, new: &[Dim]) -> Option<usize> {
    let before = leading(&old[..axis]);
    let found = (0..new.len()).find(|&found| new[found] == old[axis] && leading(&new[..found]) == before);
    found.filter(|_| before.is_some())
}

/// The product of leading dims that are constants or, like the batch, symbols by themselves.
fn leading(dims: &[Dim]) -> Option<(i64, Vec<Dim>)> {
    let mut product = 1_i64;
    let mut symbols = Vec::new();
    for dim in dims {
        match dim.as_constant() {
            Some(constant) => product = product.checked_mul(constant)?,
            None => symbols.push(dim.clone()),
        }
    }
    symbols.sort_unstable();
    Some((product, symbols))
}
