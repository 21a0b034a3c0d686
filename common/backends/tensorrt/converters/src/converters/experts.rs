//! Mixtures of experts, every expert computed.
//!
//! Which experts a token has is known only when the engine runs, and the shapes of layers are not to depend on it. So all
//! experts compute all tokens and those not chosen are weighed with zero. A decode step of a batch reads most experts'
//! weights in any case; a long prompt does `experts / top_k` times the arithmetic that it needs.

use roundhouse_graph::{Dim, ExpertAttributes, Op};
use roundhouse_tensorrt_network::{
    DYNAMIC, DataType, ElementWise, LayerKind, MatrixOp, Reduce, Reshape, TensorId,
};

use super::activation::silu_of;
use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

/// The sizes of a mixture.
struct Sizes {
    batch: Dim,
    seq: Dim,
    hidden: Dim,
    experts: Dim,
    intermediate: Dim,
}

fn sizes(site: &Site<'_>) -> Result<Sizes, ConvertError> {
    match (&site.input(0)?.shape[..], &site.input(1)?.shape[..], &site.input(3)?.shape[..]) {
        ([batch, seq, hidden], [_, _, experts], [_, intermediate]) => Ok(Sizes {
            batch: batch.clone(),
            seq: seq.clone(),
            hidden: hidden.clone(),
            experts: experts.clone(),
            intermediate: intermediate.clone(),
        }),
        _ => Err(site.internal("x and router logits of three dimensions were expected".to_owned())),
    }
}

pub(crate) fn validate(site: &Site<'_>) -> Result<(), String> {
    let sizes = sizes(site).map_err(|error| error.to_string())?;
    if [&sizes.hidden, &sizes.experts, &sizes.intermediate].iter().any(|dim| dim.as_constant().is_none()) {
        return Err("the width of x or of the experts is no constant".to_owned());
    }
    if ![&sizes.batch, &sizes.seq].into_iter().all(|dim| site.is_positive(dim)) {
        return Err("there may be no tokens".to_owned());
    }
    Ok(())
}

pub(crate) fn mixture_of_experts(
    context: &mut Context<'_>,
    site: &Site<'_>,
) -> Result<TensorId, ConvertError> {
    let Op::MixtureOfExperts(attributes) = site.op() else { return Err(site.wrong_converter()) };
    let sizes = sizes(site)?;
    let weights = router_weights(context, site, *attributes, &sizes)?;
    let activated = activated(context, site, &sizes)?;
    let weighed = context.elementwise("weighed", ElementWise::Prod, activated, weights)?;
    let y = down(context, site, &sizes, weighed)?;
    context.store(site, y)
}

/// The weight of each expert, zero where it is not chosen, `[B, S, E, 1]` fp32.
fn router_weights(
    context: &mut Context<'_>,
    site: &Site<'_>,
    attributes: ExpertAttributes,
    sizes: &Sizes,
) -> Result<TensorId, ConvertError> {
    let one = Dim::constant(1);
    let shape = [sizes.batch.clone(), sizes.seq.clone(), sizes.experts.clone()];
    let column = [sizes.batch.clone(), sizes.seq.clone(), sizes.experts.clone(), one.clone()];
    let row = [sizes.batch.clone(), sizes.seq.clone(), one.clone(), sizes.experts.clone()];
    let logits = context.float(site, 1)?;
    let own = context.reshape("own", logits, &shape, &column)?;
    let others = context.reshape("others", logits, &shape, &row)?;
    // How many experts come before one: those of a larger logit, and of an equal one and a lower index.
    let index = context.iota("expert", &sizes.experts)?;
    let flat = [sizes.experts.clone()];
    let own_index = context.reshape(
        "own_index",
        index,
        &flat,
        &[one.clone(), one.clone(), flat[0].clone(), one.clone()],
    )?;
    let other_index =
        context.reshape("other_index", index, &flat, &[one.clone(), one.clone(), one, flat[0].clone()])?;
    let lower = context.elementwise("lower", ElementWise::Less, other_index, own_index)?;
    let equal = context.elementwise("equal", ElementWise::Equal, others, own)?;
    let first = context.elementwise("first", ElementWise::And, equal, lower)?;
    let larger = context.elementwise("larger", ElementWise::Greater, others, own)?;
    let before = context.elementwise("before", ElementWise::Or, larger, first)?;
    let before = context.cast("before_fp32", before, DataType::Float)?;
    let place = context.reduce("place", Reduce::Sum, 3, before)?;
    #[expect(clippy::cast_precision_loss, reason = "experts are few")]
    let top_k = context.number("top_k", attributes.top_k as f32, 4, DataType::Float)?;
    let chosen = context.elementwise("chosen", ElementWise::Less, place, top_k)?;
    let probabilities = context.layer("softmax", LayerKind::SoftMax { axis: 2 }, &[own])?;
    let zero = context.number("zero", 0.0, 4, DataType::Float)?;
    let weights = context.layer("weights", LayerKind::Select, &[chosen, probabilities, zero])?;
    if !attributes.normalize {
        return Ok(weights);
    }
    let sum = context.reduce("sum", Reduce::Sum, 2, weights)?;
    context.elementwise("normalized", ElementWise::Div, weights, sum)
}

/// `silu(gate) · up` of every expert, `[B, S, E, I]` fp32.
fn activated(context: &mut Context<'_>, site: &Site<'_>, sizes: &Sizes) -> Result<TensorId, ConvertError> {
    let dtype = DataType::from(site.output().dtype);
    let x = context.operand(site, 0)?;
    let product_dtype = context.product_dtype(dtype);
    let gate_up = context.operand_as(site, 2, 3, product_dtype)?;
    let both = context.product("gate_up", dtype, (x, MatrixOp::None), (gate_up, MatrixOp::Transpose))?;
    let both = context.cast("gate_up_fp32", both, DataType::Float)?;
    let width = sizes.intermediate.as_constant().unwrap_or(0);
    let rows = sizes.experts.times(2 * width);
    let from = [sizes.batch.clone(), sizes.seq.clone(), rows];
    let to = [sizes.batch.clone(), sizes.seq.clone(), sizes.experts.clone(), sizes.intermediate.times(2)];
    let both = context.reshape("of_experts", both, &from, &to)?;
    let mut half = |what: &str, start: i64| {
        let zero = Dim::constant(0);
        let starts = [zero.clone(), zero.clone(), zero, Dim::constant(start)];
        let shape =
            [sizes.batch.clone(), sizes.seq.clone(), sizes.experts.clone(), sizes.intermediate.clone()];
        context.slice(what, both, &starts, &shape)
    };
    let (gate, up) = (half("gate", 0)?, half("up", width)?);
    let gate = silu_of(context, gate)?;
    context.elementwise("activated", ElementWise::Prod, gate, up)
}

/// The sum over experts of `weighed · downᵀ`, `[B, S, H]`: a product for each expert, of all tokens.
fn down(
    context: &mut Context<'_>,
    site: &Site<'_>,
    sizes: &Sizes,
    weighed: TensorId,
) -> Result<TensorId, ConvertError> {
    let dtype = DataType::from(site.output().dtype);
    let known = |dim: &Dim| dim.as_constant().unwrap_or(DYNAMIC);
    let by_expert = LayerKind::Shuffle {
        first_transpose: Some(vec![2, 0, 1, 3]),
        reshape: Some(Reshape::Static(vec![known(&sizes.experts), DYNAMIC, known(&sizes.intermediate)])),
        second_transpose: None,
    };
    let tokens = context.layer("by_expert", by_expert, &[weighed])?;
    let matrix = context.operand(site, 3)?;
    let to = [sizes.experts.clone(), sizes.hidden.clone(), sizes.intermediate.clone()];
    let matrix = context.reshape("down_of_experts", matrix, &site.input(3)?.shape, &to)?;
    let outputs = context.product("down", dtype, (tokens, MatrixOp::None), (matrix, MatrixOp::Transpose))?;
    let outputs = context.cast("down_fp32", outputs, DataType::Float)?;
    let sum = context.reduce("experts", Reduce::Sum, 0, outputs)?;
    let (reshape, shape) = context.reshape_operand(&site.output().shape)?;
    let tokens = LayerKind::Shuffle { first_transpose: None, reshape: Some(reshape), second_transpose: None };
    context.layer("tokens", tokens, &[sum, shape])
}
