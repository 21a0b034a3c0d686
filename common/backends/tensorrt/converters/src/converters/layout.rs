//! Ops that move, cut or join elements.

use roundhouse_graph::{Dim, Op};
use roundhouse_tensorrt_network::{DYNAMIC, Dims, LayerKind, Reshape, TensorId};

use crate::ConvertError;
use crate::context::Context;
use crate::reshape::plan;
use crate::site::Site;

/// Joined parts. Where the lengths of the parts are unknown and their sum is not, as in a static cache, TensorRT is told
/// the sum.
pub(crate) fn cat(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::Cat { axis } = site.op() else { return Err(site.wrong_converter()) };
    let parts: Result<Vec<TensorId>, ConvertError> =
        (0..site.node.inputs.len()).map(|index| context.operand(site, index)).collect();
    let whole = context.layer("concatenation", LayerKind::Concatenation { axis: *axis }, &parts?)?;
    let length = site.output().shape.get(*axis).and_then(Dim::as_constant);
    let found = context.network.tensor(whole).dims.clone();
    match length {
        Some(length) if found.get(*axis) == Some(&DYNAMIC) => {
            // 0 copies.
            let dims: Dims = (0..found.len()).map(|at| if at == *axis { length } else { 0 }).collect();
            let reshape = Some(Reshape::Static(dims));
            let kind = LayerKind::Shuffle { first_transpose: None, reshape, second_transpose: None };
            context.layer("length", kind, &[whole])
        }
        _ => Ok(whole),
    }
}

pub(crate) fn slice(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::Slice { axis, start, .. } = site.op() else { return Err(site.wrong_converter()) };
    let sizes = &site.output().shape;
    let starts: Vec<Dim> =
        (0..sizes.len()).map(|at| if at == *axis { start.clone() } else { Dim::constant(0) }).collect();
    let x = context.operand(site, 0)?;
    context.slice("slice", x, &starts, sizes)
}

pub(crate) fn validate_reshape(site: &Site<'_>) -> Result<(), String> {
    let from = &site.input(0).map_err(|error| error.to_string())?.shape;
    plan(from, &site.output().shape, site.graph.symbols()).map(|_| ())
}

pub(crate) fn reshape(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let x = context.operand(site, 0)?;
    context.reshape("reshape", x, &site.input(0)?.shape, &site.output().shape)
}

pub(crate) fn transpose(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::Transpose { permutation } = site.op() else { return Err(site.wrong_converter()) };
    let x = context.operand(site, 0)?;
    context.transpose("transpose", x, permutation)
}
