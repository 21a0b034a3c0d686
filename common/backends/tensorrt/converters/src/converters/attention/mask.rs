//! Which keys which queries see.

use roundhouse_graph::{DType, Dim, ValueId};
use roundhouse_tensorrt_network::{DataType, ElementWise, LayerKind, Reduce, Reshape, TensorId, Unary};

use super::{attributes, shapes};
use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

/// Attentions with equal ones share what is visible.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct VisibleKey {
    seq: Dim,
    length: Dim,
    kv_lengths: Option<ValueId>,
    causal: bool,
    window: Option<u32>,
}

/// Where queries see keys, `[B|1, Nq|1, S, L]` truth values; `None` where every query sees every key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visible {
    /// By causality, window and lengths.
    pub(super) by_position: Option<TensorId>,
    /// By these and the mask.
    pub(super) all: Option<TensorId>,
    /// Whether the mask is added to the scores.
    pub(super) mask_is_added: bool,
}

pub(super) fn visible(context: &mut Context<'_>, site: &Site<'_>) -> Result<Visible, ConvertError> {
    let by_position = by_position(context, site)?;
    let by_mask = by_mask(context, site)?;
    let all = match (by_position, by_mask) {
        (Some(a), Some(b)) => Some(context.elementwise("visible", ElementWise::And, a, b)?),
        (a, b) => a.or(b),
    };
    let mask_is_added = attributes(site)?.has_mask && site.input(MASK)?.dtype != DType::Bool;
    Ok(Visible { by_position, all, mask_is_added })
}

/// Where the mask operand lets a query see a key: a float mask everywhere but at −∞.
fn by_mask(context: &mut Context<'_>, site: &Site<'_>) -> Result<Option<TensorId>, ConvertError> {
    if !attributes(site)?.has_mask {
        return Ok(None);
    }
    let mask = context.operand(site, MASK)?;
    if site.input(MASK)?.dtype == DType::Bool {
        return Ok(Some(mask));
    }
    let infinite = context.unary("mask_hides", Unary::IsInf, mask)?;
    context.unary("mask_shows", Unary::Not, infinite).map(Some)
}

/// The mask's place among the operands.
pub(super) const MASK: usize = 3;

/// Which value is the number of keys that exist of each sequence.
pub(super) fn kv_lengths(site: &Site<'_>) -> Result<Option<usize>, ConvertError> {
    let has_kv_lengths = attributes(site)?.has_kv_lengths;
    Ok(has_kv_lengths.then(|| site.node.inputs.len().saturating_sub(1)))
}

/// Where causality, the window and the lengths let a query see a key, `[B|1, 1, S, L]`.
///
/// Query `i` of `S` stands at `i + length − S`, key `j` at `j`, and the age of the key is the difference: causality wants
/// it at least 0, a window `W` less than `W`. Only without causality do the lengths say anything more.
fn by_position(context: &mut Context<'_>, site: &Site<'_>) -> Result<Option<TensorId>, ConvertError> {
    let attributes = attributes(site)?;
    let shapes = shapes(site)?;
    let lengths = kv_lengths(site)?;
    if !attributes.causal && attributes.window.is_none() && lengths.is_none() {
        return Ok(None);
    }
    let shared = VisibleKey {
        seq: shapes.seq.clone(),
        length: shapes.length.clone(),
        kv_lengths: lengths.map(|index| site.id(index)).transpose()?,
        causal: attributes.causal,
        window: attributes.window,
    };
    if let Some(&made) = context.shared.visible.get(&shared) {
        return Ok(Some(made));
    }
    let one = Dim::constant(1);
    let key = context.iota("key", shapes.length)?;
    let across = [one.clone(), one.clone(), one.clone(), shapes.length.clone()];
    let keys = context.reshape("keys", key, &across[3..], &across)?;
    let length = match lengths {
        Some(index) => {
            let lengths = context.operand(site, index)?;
            let column = [shapes.batch.clone(), one.clone(), one.clone(), one.clone()];
            Some(context.reshape("lengths", lengths, &column[..1], &column)?)
        }
        None => None,
    };
    let mut conditions = Vec::new();
    if let (false, Some(length)) = (attributes.causal, length) {
        conditions.push(context.elementwise("exists", ElementWise::Less, keys, length)?);
    }
    if attributes.causal || attributes.window.is_some() {
        let is_whole = shapes.seq == shapes.length;
        let query = if is_whole { key } else { context.iota("query", shapes.seq)? };
        let down = [one.clone(), one.clone(), shapes.seq.clone(), one];
        let mut places = context.reshape("queries", query, &down[2..3], &down)?;
        let past = match length {
            Some(length) => {
                let seq = context.dim(shapes.seq)?;
                let seq = context.unit("seq", seq)?;
                Some(context.elementwise("past", ElementWise::Sub, length, seq)?)
            }
            None if is_whole => None,
            None => {
                let past = context.dim(&(shapes.length.clone() - shapes.seq.clone()))?;
                Some(context.unit("past", past)?)
            }
        };
        if let Some(past) = past {
            places = context.elementwise("places", ElementWise::Sum, places, past)?;
        }
        let ages = context.elementwise("ages", ElementWise::Sub, places, keys)?;
        if attributes.causal {
            let least = context.integer("causal_bound", -1, 4)?;
            conditions.push(context.elementwise("causal", ElementWise::Greater, ages, least)?);
        }
        if let Some(window) = attributes.window {
            let bound = context.integer("window_bound", i64::from(window), 4)?;
            conditions.push(context.elementwise("window", ElementWise::Less, ages, bound)?);
        }
    }
    let mut all = None;
    for condition in conditions {
        all = Some(match all {
            None => condition,
            Some(all) => context.elementwise("positions", ElementWise::And, all, condition)?,
        });
    }
    if let Some(all) = all {
        context.shared.visible.insert(shared, all);
    }
    Ok(all)
}

/// `x`, with zeros for the queries that see no key: `[B, Nq, S, D]`.
pub(super) fn zero_where_nothing_is_visible(
    context: &mut Context<'_>,
    x: TensorId,
    visible: TensorId,
) -> Result<TensorId, ConvertError> {
    let (rank, dtype) = context.form(x);
    let numbers = context.cast("visible_fp32", visible, DataType::Float)?;
    let most = context.reduce("visible_most", Reduce::Max, rank.saturating_sub(1), numbers)?;
    let none = context.number("none", 0.0, rank, DataType::Float)?;
    let any = context.elementwise("sees", ElementWise::Greater, most, none)?;
    let zero = context.number("zero", 0.0, rank, dtype)?;
    context.layer("zero_unless_sees", LayerKind::Select, &[any, x, zero])
}

/// The lowest finite number of a dtype, which hides what it is the score of. Not −∞: a softmax of nothing else is NaN,
/// and in a cache NaN would outlast the step.
pub(super) fn lowest(dtype: DataType) -> f32 {
    match dtype {
        DataType::Half => half::f16::MIN.to_f32(),
        DataType::Bf16 => half::bf16::MIN.to_f32(),
        DataType::Float | DataType::Int32 | DataType::Int64 | DataType::Bool => f32::MIN,
    }
}

impl Context<'_> {
    /// A number `[1]` as `[1, 1, 1, 1]`.
    fn unit(&mut self, what: &str, x: TensorId) -> Result<TensorId, ConvertError> {
        let reshape = Some(Reshape::Static(vec![1; 4]));
        self.layer(what, LayerKind::Shuffle { first_transpose: None, reshape, second_transpose: None }, &[x])
    }
}
