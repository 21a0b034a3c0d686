//! Product, soft cap, mask, softmax, product.

use roundhouse_graph::Dim;
use roundhouse_tensorrt_network::{DataType, ElementWise, LayerKind, MatrixOp, TensorId};

use super::mask::{MASK, Visible, lowest, visible};
use super::{Shapes, attributes, may_see_nothing, scaled_query, shapes};
use crate::ConvertError;
use crate::context::Context;
use crate::converters::activation::soft_cap_of;
use crate::site::Site;

/// The query heads that share a key head are rows of one product with it: `[B, Nq, S, D]` is also
/// `[B, Nkv, (Nq / Nkv) · S, D]`, as neighbours share. Masks are by query head.
pub(super) fn attention(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let attributes = attributes(site)?;
    let shapes = shapes(site)?;
    let dtype = DataType::from(site.output().dtype);
    let query = scaled_query(context, site)?;
    let query = by_key_head(context, "queries_of_key_head", &shapes, query, shapes.head_dim)?;
    let key = context.operand(site, 1)?;
    let scores = context.product("scores", dtype, (query, MatrixOp::None), (key, MatrixOp::Transpose))?;
    let mut scores = context.cast("scores_fp32", scores, DataType::Float)?;
    if let Some(cap) = attributes.soft_cap {
        scores = soft_cap_of(context, scores, cap)?;
    }
    let probabilities = match visible(context, site)? {
        Visible { all: None, .. } => softmax(context, scores)?,
        visible => {
            let scores = by_query_head(context, "scores_of_query_head", &shapes, scores, shapes.length)?;
            let probabilities = masked_softmax(context, site, scores, visible)?;
            by_key_head(context, "probabilities_of_key_head", &shapes, probabilities, shapes.length)?
        }
    };
    let value = context.operand(site, 2)?;
    let sum = context.product("values", dtype, (probabilities, MatrixOp::None), (value, MatrixOp::None))?;
    let sum = by_query_head(context, "values_of_query_head", &shapes, sum, shapes.value_dim)?;
    context.store(site, sum)
}

fn softmax(context: &mut Context<'_>, scores: TensorId) -> Result<TensorId, ConvertError> {
    let (rank, _) = context.form(scores);
    context.layer("softmax", LayerKind::SoftMax { axis: rank.saturating_sub(1) }, &[scores])
}

/// The softmax of masked scores `[B, Nq, S, L]`; zeros for a query that sees nothing.
fn masked_softmax(
    context: &mut Context<'_>,
    site: &Site<'_>,
    scores: TensorId,
    visible: Visible,
) -> Result<TensorId, ConvertError> {
    let (rank, dtype) = context.form(scores);
    let (mut scores, mut hides) = (scores, visible.all);
    if visible.mask_is_added {
        let mask = context.float(site, MASK)?;
        scores = context.elementwise("mask", ElementWise::Sum, scores, mask)?;
        hides = visible.by_position;
    }
    if let Some(hides) = hides {
        let hidden = context.number("hidden", lowest(dtype), rank, dtype)?;
        scores = context.layer("visible_scores", LayerKind::Select, &[hides, scores, hidden])?;
    }
    let probabilities = softmax(context, scores)?;
    match visible.all {
        Some(all) if may_see_nothing(site)? => {
            let zero = context.number("zero", 0.0, rank, dtype)?;
            context.layer("visible_probabilities", LayerKind::Select, &[all, probabilities, zero])
        }
        _ => Ok(probabilities),
    }
}

/// `[B, Nq, S, last]` as `[B, Nkv, (Nq / Nkv) · S, last]`.
fn by_key_head(
    context: &mut Context<'_>,
    what: &str,
    shapes: &Shapes<'_>,
    x: TensorId,
    last: &Dim,
) -> Result<TensorId, ConvertError> {
    let (from, to) = groupings(shapes, last);
    if from == to { Ok(x) } else { context.reshape(what, x, &from, &to) }
}

/// `[B, Nkv, (Nq / Nkv) · S, last]` as `[B, Nq, S, last]`.
fn by_query_head(
    context: &mut Context<'_>,
    what: &str,
    shapes: &Shapes<'_>,
    x: TensorId,
    last: &Dim,
) -> Result<TensorId, ConvertError> {
    let (to, from) = groupings(shapes, last);
    if from == to { Ok(x) } else { context.reshape(what, x, &from, &to) }
}

/// The shape by query heads and the one by key heads.
fn groupings(shapes: &Shapes<'_>, last: &Dim) -> (Vec<Dim>, Vec<Dim>) {
    let heads = |dim: &Dim| dim.as_constant().unwrap_or(1).max(1);
    let group = heads(shapes.query_heads) / heads(shapes.key_heads);
    let by_query_head =
        vec![shapes.batch.clone(), shapes.query_heads.clone(), shapes.seq.clone(), last.clone()];
    let by_key_head =
        vec![shapes.batch.clone(), shapes.key_heads.clone(), shapes.seq.times(group), last.clone()];
    (by_query_head, by_key_head)
}
