//! Computes the logits of the last position only.
//!
//! From the logits back, as long as each position depends on nothing but itself, the computation moves behind a
//! `last_token`: for a decoder, the final norm and the output layer.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{Graph, Op, PassReport, Rewriter, ValueId};

use crate::LoweringError;
use crate::symbol_ranges::batch_and_seq_dims;

pub(crate) const NAME: &str = "last_token";

pub(crate) fn run(graph: Graph, _: &EngineOptions) -> Result<(Graph, PassReport), LoweringError> {
    let [batch, seq] = batch_and_seq_dims(&graph, NAME)?;
    let mut rewriter = Rewriter::new(graph);
    let logits = rewriter.graph().outputs().first().copied();
    let logits =
        logits.filter(|&id| matches!(&rewriter.value(id).shape[..], [b, s, _] if (b, s) == (&batch, &seq)));
    let Some(logits) = logits else {
        let what = "the first output is not logits [batch, seq, vocab_size]".to_owned();
        return Err(LoweringError::Unsupported { pass: NAME, what });
    };

    let chain = per_position_chain(&rewriter, logits);
    let first = chain.first().copied();
    let from = first.map_or(logits, |node| rewriter.node(node).inputs[0]);
    let made = rewriter.producer(from);
    let last = match (made, first) {
        (Some(made), _) => rewriter.insert_after(made, NAME, Op::LastToken, &[from])?,
        (None, Some(first)) => rewriter.insert_before(first, NAME, Op::LastToken, &[from])?,
        (None, None) => rewriter.append(NAME, Op::LastToken, &[from])?,
    };
    match first {
        Some(first) => {
            let mut inputs = rewriter.node(first).inputs.clone();
            inputs[0] = last;
            rewriter.set_inputs(first, &inputs)?;
        }
        None => {
            if let Some(node) = rewriter.producer(last) {
                rewriter.replace_uses_after(node, logits, last)?;
            }
        }
    }
    let counts = [("last_token_nodes", 1), ("nodes_on_one_position", chain.len() as u64)];
    Ok((rewriter.finish()?, PassReport::new(NAME, counts)))
}

/// The nodes that lead to `logits` and work on each position by itself, in execution order. None but the next reads
/// what one of them makes.
fn per_position_chain(rewriter: &Rewriter, logits: ValueId) -> Vec<roundhouse_graph::NodeId> {
    let mut chain = Vec::new();
    let mut value = logits;
    while let Some(node) = rewriter.producer(value) {
        let per_position = matches!(
            rewriter.node(node).op,
            Op::Linear
                | Op::RmsNorm { .. }
                | Op::LayerNorm { .. }
                | Op::Scale { .. }
                | Op::SoftCap { .. }
                | Op::Silu
                | Op::Gelu { .. }
                | Op::Cast { .. }
        );
        if !per_position || (value != logits && rewriter.only_user(value).is_none()) {
            break;
        }
        chain.push(node);
        value = rewriter.node(node).inputs[0];
    }
    chain.reverse();
    chain
}
