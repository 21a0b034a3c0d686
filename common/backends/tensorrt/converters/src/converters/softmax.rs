//! Softmax.

use roundhouse_graph::Op;
use roundhouse_tensorrt_network::{LayerKind, TensorId};

use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

/// In fp32.
pub(crate) fn softmax(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::Softmax { axis } = site.op() else { return Err(site.wrong_converter()) };
    let x = context.float(site, 0)?;
    let y = context.layer("softmax", LayerKind::SoftMax { axis: *axis }, &[x])?;
    context.store(site, y)
}
