//! Removes what changes nothing, and merges chains into one node.
//!
//! Nodes that become identities (a scale by 1, a cast to the same dtype, a slice of everything, …) are bypassed;
//! chains of one op (scales, casts, reshapes, transposes, slices) become their product.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{DType, Dim, Graph, GraphError, NodeId, Op, Origin, PassReport, Rewriter, ValueId};

use crate::LoweringError;
use crate::literal::is_all;

pub(crate) const NAME: &str = "constant_fold";

pub(crate) fn run(graph: Graph, _: &EngineOptions) -> Result<(Graph, PassReport), LoweringError> {
    let mut rewriter = Rewriter::new(graph);
    let (mut merged, mut bypassed) = (0, 0);
    // In execution order, so that what a node reads is folded before it is.
    for id in rewriter.nodes_where(|_| true) {
        while let Some((op, input)) = merge(&rewriter, id) {
            rewriter.set_node(id, op, &[input])?;
            merged += 1;
        }
        if let Some(input) = identity(&rewriter, id)
            && bypass(&mut rewriter, id, input)?
        {
            bypassed += 1;
        }
    }
    let counts = [("merged_nodes", merged), ("bypassed_nodes", bypassed)];
    Ok((rewriter.finish()?, PassReport::new(NAME, counts)))
}

/// The op that does what a node and the one it reads do together, and what that one reads.
fn merge(rewriter: &Rewriter, id: NodeId) -> Option<(Op, ValueId)> {
    let outer = rewriter.node(id);
    let &[between] = &outer.inputs[..] else { return None };
    let inner = rewriter.node(rewriter.producer(between)?);
    let &[input] = &inner.inputs[..] else { return None };
    let op = match (&inner.op, &outer.op) {
        (Op::Scale { factor: first }, Op::Scale { factor: second }) => {
            let factor = first * second;
            // A product that is zero or infinite where neither factor is would not be the same computation.
            if !(factor.is_normal() || *first == 0.0 || *second == 0.0) {
                return None;
            }
            Op::Scale { factor }
        }
        (Op::Reshape { .. }, Op::Reshape { shape }) => Op::Reshape { shape: shape.clone() },
        (Op::Transpose { permutation: first }, Op::Transpose { permutation: second }) => {
            Op::Transpose { permutation: second.iter().map(|&axis| first[axis]).collect() }
        }
        (Op::Slice { axis: first_axis, start: offset, .. }, Op::Slice { axis, start, end })
            if first_axis == axis =>
        {
            Op::Slice {
                axis: *axis,
                start: offset.clone() + start.clone(),
                end: offset.clone() + end.clone(),
            }
        }
        (Op::Cast { to: middle }, Op::Cast { to }) if holds(*middle, rewriter.value(input).dtype) => {
            Op::Cast { to: *to }
        }
        _ => return None,
    };
    Some((op, input))
}

/// Whether every number of dtype `from` is one of dtype `middle`.
fn holds(middle: DType, from: DType) -> bool {
    middle == from
        || matches!((from, middle), (DType::F16 | DType::Bf16, DType::F32))
        || (from == DType::Bool && middle != DType::Bool)
}

/// What a node's output equals, if that is one of its inputs.
fn identity(rewriter: &Rewriter, id: NodeId) -> Option<ValueId> {
    let node = rewriter.node(id);
    let output = rewriter.value(node.output);
    let first = *node.inputs.first()?;
    let input = rewriter.value(first);
    let same = match &node.op {
        Op::Scale { factor } => *factor == 1.0,
        Op::Cast { to } => *to == input.dtype,
        Op::Reshape { .. } => output.shape == input.shape,
        Op::Transpose { permutation } => permutation.iter().copied().eq(0..permutation.len()),
        Op::Slice { axis, start, end } => *start == Dim::constant(0) && *end == input.shape[*axis],
        Op::Cat { .. } => node.inputs.len() == 1,
        Op::Add | Op::Mul => {
            let neutral = if node.op == Op::Add { 0.0 } else { 1.0 };
            let &[a, b] = &node.inputs[..] else { return None };
            return [(a, b), (b, a)].into_iter().find_map(|(kept, other)| {
                (is_all(rewriter, other, neutral) && rewriter.value(kept).shape == output.shape)
                    .then_some(kept)
            });
        }
        _ => false,
    };
    same.then_some(first)
}

/// Makes readers of a node read `input`, and removes the node; not where an output would have to become an input, a
/// weight or a second output.
fn bypass(rewriter: &mut Rewriter, id: NodeId, input: ValueId) -> Result<bool, GraphError> {
    let output = rewriter.node(id).output;
    let outputs = rewriter.graph().outputs();
    let free = rewriter.value(input).origin == Origin::Node && !outputs.contains(&input);
    if outputs.contains(&output) && !free {
        return Ok(false);
    }
    rewriter.replace_uses(output, input)?;
    rewriter.remove_node(id)?;
    Ok(true)
}
