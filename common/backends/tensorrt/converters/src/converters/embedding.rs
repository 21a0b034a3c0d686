//! Rows of tables.

use roundhouse_graph::Op;
use roundhouse_tensorrt_network::{LayerKind, TensorId};

use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

pub(crate) fn embedding(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let ids = context.operand(site, 0)?;
    let table = context.operand(site, 1)?;
    context.layer("gather", LayerKind::Gather { axis: 0 }, &[table, ids])
}

pub(crate) fn gather(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::Gather { axis } = site.op() else { return Err(site.wrong_converter()) };
    let x = context.operand(site, 0)?;
    let indices = context.operand(site, 1)?;
    context.layer("gather", LayerKind::Gather { axis: *axis }, &[x, indices])
}
