//! `IAttention`.

use roundhouse_tensorrt_network::{CausalMask, DataType, LayerKind, TensorId};

use super::mask::{MASK, Visible, kv_lengths, lowest, visible, zero_where_nothing_is_visible};
use super::{attributes, may_see_nothing, scaled_query};
use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

/// TensorRT masks causally and by length itself; a window or a mask excludes that, and then all rules are one mask. It
/// may fall back to several kernels, so that a plan is never refused for want of a fused one.
pub(super) fn attention(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let attributes = attributes(site)?;
    let query = scaled_query(context, site)?;
    let query = context.cast("query", query, DataType::from(site.output().dtype))?;
    let mut inputs = vec![query, context.operand(site, 1)?, context.operand(site, 2)?];
    if attributes.window.is_none() && !attributes.has_mask {
        let lengths = kv_lengths(site)?;
        if let Some(index) = lengths {
            inputs.push(context.int32(site, index)?);
        }
        let causal = if attributes.causal { CausalMask::LowerRight } else { CausalMask::None };
        let kind = LayerKind::Attention {
            causal,
            decomposable: true,
            has_mask: false,
            has_kv_lengths: lengths.is_some(),
        };
        return context.layer("attention", kind, &inputs);
    }
    let visible = visible(context, site)?;
    let all = visible.all.ok_or_else(|| site.internal("a mask of nothing".to_owned()))?;
    inputs.push(if visible.mask_is_added { added(context, site, visible)? } else { all });
    let kind = LayerKind::Attention {
        causal: CausalMask::None,
        decomposable: true,
        has_mask: true,
        has_kv_lengths: false,
    };
    let output = context.layer("attention", kind, &inputs)?;
    if may_see_nothing(site)? {
        return zero_where_nothing_is_visible(context, output, all);
    }
    Ok(output)
}

/// The float mask, with the lowest number of its dtype where a key is hidden by its position.
fn added(context: &mut Context<'_>, site: &Site<'_>, visible: Visible) -> Result<TensorId, ConvertError> {
    let mask = context.operand(site, MASK)?;
    let Some(by_position) = visible.by_position else { return Ok(mask) };
    let (rank, dtype) = context.form(mask);
    let lowest = context.number("lowest", lowest(dtype), rank, dtype)?;
    context.layer("mask", LayerKind::Select, &[by_position, mask, lowest])
}
