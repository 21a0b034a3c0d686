//! Where a model attends, as the cache passes need to know it.

use roundhouse_graph::{AttentionAttributes, DType, Dim, NodeId, Op, Rewriter, ValueId};

use crate::LoweringError;
use crate::symbol_ranges::batch_and_seq_dims;

/// An attention of a model's graph: causal, over the keys and values of the new tokens.
#[derive(Debug, Clone)]
pub(crate) struct AttentionSite {
    /// The node.
    pub(crate) node: NodeId,
    /// Its attributes.
    pub(crate) attributes: AttentionAttributes,
    /// `[batch, heads, seq, head_dim]`.
    pub(crate) query: ValueId,
    /// Key and value, `[batch, kv_heads, seq, head_dim]` each.
    pub(crate) key_value: [ValueId; 2],
}

/// All attentions in execution order.
///
/// # Errors
/// When one is not such that keys and values of earlier tokens can be kept: it is not causal, has a mask, or attends
/// to something else than the sequence itself; or when there is none.
pub(crate) fn attention_sites(
    rewriter: &Rewriter,
    pass: &'static str,
) -> Result<Vec<AttentionSite>, LoweringError> {
    let [batch, seq] = batch_and_seq_dims(rewriter.graph(), pass)?;
    let mut sites = Vec::new();
    for (id, node) in rewriter.nodes() {
        let Op::ScaledDotProductAttention(attributes) = &node.op else { continue };
        let refuse = |what: &str| {
            let name = &rewriter.value(node.output).name;
            Err(LoweringError::Unsupported { pass, what: format!("attention {name:?} {what}") })
        };
        if attributes.has_mask {
            return refuse("has a mask, whose keys would be those of the new tokens only");
        }
        if attributes.has_kv_lengths {
            return refuse("has a cache already");
        }
        if !attributes.causal {
            return refuse("is not causal: keys of earlier tokens would not stay as they are");
        }
        let [query, key, value] = node.inputs[..] else { return refuse("does not have three inputs") };
        let of_the_sequence = |id: ValueId| {
            let shape = &rewriter.value(id).shape;
            (shape.first(), shape.get(2)) == (Some(&batch), Some(&seq))
        };
        if ![query, key, value].into_iter().all(of_the_sequence) {
            return refuse("is not over [batch, heads, seq, head_dim] of the new tokens");
        }
        sites.push(AttentionSite {
            node: id,
            attributes: attributes.clone(),
            query,
            key_value: [key, value],
        });
    }
    if sites.is_empty() {
        return Err(LoweringError::Unsupported { pass, what: "the graph has no attention".to_owned() });
    }
    Ok(sites)
}

/// Adds the inputs `key_cache_0`, `value_cache_0`, …, `[batch, kv_heads, max_seq_len, head_dim]` each, a pair a site.
pub(crate) fn add_cache_inputs(
    rewriter: &mut Rewriter,
    sites: &[AttentionSite],
    max_seq_len: u32,
) -> Vec<[ValueId; 2]> {
    let mut add = |index: usize, what: &str, like: ValueId| {
        let value = rewriter.value(like);
        let (dtype, mut shape): (DType, _) = (value.dtype, value.shape.clone());
        shape[2] = Dim::constant(i64::from(max_seq_len));
        rewriter.add_input(&format!("{what}_cache_{index}"), dtype, shape)
    };
    let sites = sites.iter().enumerate();
    sites
        .map(|(index, site)| {
            let [key, value] = site.key_value;
            [add(index, "key", key), add(index, "value", value)]
        })
        .collect()
}
