//! Scaled dot-product attention, in two forms.
//!
//! *Fused* is `IAttention`: one kernel, the scores never in memory. *Decomposed* is what it says of itself: product,
//! mask, softmax, product. Which of them a node becomes is an option; by itself it is the fused form where TensorRT has
//! kernels for it. The reason goes into the build report.

mod decomposed;
mod fused;
mod mask;

use roundhouse_engine::AttentionForm;
use roundhouse_graph::{AttentionAttributes, DType, Dim, Op};
use roundhouse_tensorrt_network::TensorId;

use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

pub(crate) use mask::VisibleKey;

/// How an attention is expressed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionChoice {
    /// The node's output.
    pub node: String,
    /// [`AttentionForm::Fused`] or [`AttentionForm::Decomposed`].
    pub form: AttentionForm,
    /// Why.
    pub reason: String,
}

/// Head dimensions of TensorRT's fused kernels: multiples of 8 in this range.
const FUSED_HEAD_DIMS: std::ops::RangeInclusive<i64> = 16..=256;

fn attributes<'a>(site: &Site<'a>) -> Result<&'a AttentionAttributes, ConvertError> {
    match site.op() {
        Op::ScaledDotProductAttention(attributes) => Ok(attributes),
        _ => Err(site.wrong_converter()),
    }
}

/// Queries, keys and values: their shapes.
struct Shapes<'a> {
    batch: &'a Dim,
    query_heads: &'a Dim,
    seq: &'a Dim,
    head_dim: &'a Dim,
    key_heads: &'a Dim,
    length: &'a Dim,
    value_dim: &'a Dim,
}

fn shapes<'a>(site: &Site<'a>) -> Result<Shapes<'a>, ConvertError> {
    match (&site.input(0)?.shape[..], &site.input(1)?.shape[..], &site.input(2)?.shape[..]) {
        ([batch, query_heads, seq, head_dim], [_, key_heads, length, _], [_, _, _, value_dim]) => {
            Ok(Shapes { batch, query_heads, seq, head_dim, key_heads, length, value_dim })
        }
        _ => Err(site.internal("q, k and v of four dimensions were expected".to_owned())),
    }
}

/// Whether a query may see no key at all, for which the op gives zeros. Lengths hold the queries' own keys, and a window
/// the query's own.
fn may_see_nothing(site: &Site<'_>) -> Result<bool, ConvertError> {
    let attributes = attributes(site)?;
    let shapes = shapes(site)?;
    let past = shapes.length.clone() - shapes.seq.clone() + Dim::constant(1);
    Ok(attributes.has_mask || !site.is_positive(&past))
}

/// Why `IAttention` cannot express a node.
fn not_fused(site: &Site<'_>) -> Result<Option<String>, ConvertError> {
    let attributes = attributes(site)?;
    let shapes = shapes(site)?;
    let past = shapes.length.clone() - shapes.seq.clone() + Dim::constant(1);
    Ok(if attributes.soft_cap.is_some() {
        Some("IAttention has no soft cap".to_owned())
    } else if shapes.head_dim != shapes.value_dim {
        let (head_dim, value_dim) = (shapes.head_dim, shapes.value_dim);
        Some(format!("IAttention has one head dimension, not {head_dim} and {value_dim}"))
    } else if !site.is_positive(&past) {
        Some("there may be fewer keys than queries, so that some see none".to_owned())
    } else {
        None
    })
}

/// Why TensorRT has no fused kernel for a node that `IAttention` expresses.
fn no_fused_kernel(site: &Site<'_>) -> Result<Option<String>, ConvertError> {
    let head_dim = shapes(site)?.head_dim;
    Ok(match head_dim.as_constant() {
        _ if site.output().dtype == DType::F32 => Some("there are no fused fp32 kernels".to_owned()),
        Some(dim) if FUSED_HEAD_DIMS.contains(&dim) && dim % 8 == 0 => None,
        _ => Some(format!(
            "there are no fused kernels for heads of {head_dim}: they take multiples of 8 from {} to {}",
            FUSED_HEAD_DIMS.start(),
            FUSED_HEAD_DIMS.end()
        )),
    })
}

/// The form of a node.
///
/// # Errors
/// Inside, why the form that is asked for cannot be.
fn choose(site: &Site<'_>) -> Result<Result<(AttentionForm, String), String>, ConvertError> {
    let asked = site.options.tensorrt.attention;
    Ok(match (asked, not_fused(site)?) {
        (AttentionForm::Decomposed, _) => Ok((AttentionForm::Decomposed, "asked for".to_owned())),
        (AttentionForm::Fused, None) => Ok((AttentionForm::Fused, "asked for".to_owned())),
        (AttentionForm::Fused, Some(reason)) => Err(format!("fused attention is asked for: {reason}")),
        (AttentionForm::Auto, Some(reason)) => Ok((AttentionForm::Decomposed, reason)),
        (AttentionForm::Auto, None) => Ok(match no_fused_kernel(site)? {
            Some(reason) => (AttentionForm::Decomposed, reason),
            None => {
                let (dtype, head_dim) = (site.output().dtype, shapes(site)?.head_dim);
                (AttentionForm::Fused, format!("there are fused kernels for {dtype} and heads of {head_dim}"))
            }
        }),
    })
}

pub(crate) fn validate(site: &Site<'_>) -> Result<(), String> {
    if matches!(site.op(), Op::ScaledDotProductAttention(attributes) if attributes.has_segment_ids) {
        return Err("attention within segments".to_owned());
    }
    let internal = |error: ConvertError| error.to_string();
    let shapes = shapes(site).map_err(internal)?;
    if let Some(dim) =
        [shapes.batch, shapes.seq, shapes.length].into_iter().find(|dim| !site.is_positive(dim))
    {
        let dim = dim.display(site.graph.symbols());
        return Err(format!("a dimension of its operands, {dim}, may be zero"));
    }
    choose(site).map_err(internal)?.map(|_| ())
}

pub(crate) fn scaled_dot_product_attention(
    context: &mut Context<'_>,
    site: &Site<'_>,
) -> Result<TensorId, ConvertError> {
    let (form, reason) = choose(site)?.map_err(|what| site.internal(what))?;
    let output = match form {
        AttentionForm::Fused => fused::attention(context, site),
        AttentionForm::Auto | AttentionForm::Decomposed => decomposed::attention(context, site),
    };
    context.attention.push(AttentionChoice { node: site.name().to_owned(), form, reason });
    output
}

/// `scale · q`, fp32.
fn scaled_query(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let query = context.float(site, 0)?;
    let head_dim = shapes(site)?.head_dim.as_constant().unwrap_or(1);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "head dimensions are small"
    )]
    let default = (1.0 / (head_dim as f64).sqrt()) as f32;
    context.times("scale", query, attributes(site)?.scale.unwrap_or(default))
}
