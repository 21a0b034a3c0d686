//! The last position of each sequence.

use roundhouse_graph::Dim;
use roundhouse_tensorrt_network::{DYNAMIC, ElementWise, LayerKind, Reshape, TensorId};

use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

pub(crate) fn validate(site: &Site<'_>) -> Result<(), String> {
    let shape = &site.input(0).map_err(|error| error.to_string())?.shape;
    if site.has(1) && shape.last().is_none_or(|hidden| hidden.as_constant().is_none()) {
        return Err("the width of its operand is no constant".to_owned());
    }
    match shape.iter().find(|dim| !site.is_positive(dim)) {
        Some(dim) => {
            let dim = dim.display(site.graph.symbols());
            Err(format!("a dimension of its operand, {dim}, may be zero: there would be no last position"))
        }
        None => Ok(()),
    }
}

/// `[B, S, H] → [B, 1, H]`.
pub(crate) fn last_token(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let x = context.operand(site, 0)?;
    let shape = &site.input(0)?.shape;
    let [batch, seq, hidden] = &shape[..] else { return Err(site.wrong_converter()) };
    if !site.has(1) {
        let last = context.dim(&(seq.clone() - Dim::constant(1)))?;
        return context.layer("gather", LayerKind::Gather { axis: 1 }, &[x, last]);
    }
    // `IGatherLayer` has no index for each sequence, but rows of all sequences have one: b · S + length − 1.
    let rows = batch_times_seq(context, batch, seq)?;
    let lengths = context.operand(site, 1)?;
    let one = context.integer("one", 1, 1)?;
    let last = context.elementwise("last", ElementWise::Sub, lengths, one)?;
    let row = context.elementwise("row", ElementWise::Sum, rows, last)?;
    let row =
        context.reshape("rows", row, std::slice::from_ref(batch), &[batch.clone(), Dim::constant(1)])?;
    let reshape = Some(Reshape::Static(vec![DYNAMIC, hidden.as_constant().unwrap_or(DYNAMIC)]));
    let flat = LayerKind::Shuffle { first_transpose: None, reshape, second_transpose: None };
    let flat = context.layer("flat", flat, &[x])?;
    context.layer("gather", LayerKind::Gather { axis: 0 }, &[flat, row])
}

/// The first row of each sequence: `b · S`, `[B]`.
fn batch_times_seq(context: &mut Context<'_>, batch: &Dim, seq: &Dim) -> Result<TensorId, ConvertError> {
    let sequences = context.iota("sequences", batch)?;
    let seq = context.dim(seq)?;
    context.elementwise("first", ElementWise::Prod, sequences, seq)
}
