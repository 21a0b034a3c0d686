//! Attention, its position embedding and its cache, and the choice of the last token.

use super::check::{Inputs, show};
use crate::{AttentionAttributes, DType, Dim, GraphError, Op, RotaryAttributes, Shape, Value};

pub(super) fn rotary_embedding(
    op: &Op,
    values: &[&Value],
    attributes: &RotaryAttributes,
) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x", "position_ids"], 2)?;
    let dtype = inputs.float(&[0])?;
    inputs.has_dtype(1, DType::I64)?;
    let [batch, _, seq, head_dim] = inputs.rank(0)?;
    if attributes.sections.is_empty() {
        inputs.rank::<2>(1)?;
        inputs.dim(1, 1, seq, "the positions of x")?;
    } else {
        sections(&inputs, attributes)?;
        inputs.dim(1, 2, seq, "the positions of x")?;
    }
    inputs.dim(1, 0, batch, "the batch of x")?;
    let rotary_dim = attributes.rotary_dim();
    match head_dim.as_constant().and_then(|dim| usize::try_from(dim).ok()) {
        Some(dim) if rotary_dim <= dim && rotary_dim > 0 => {}
        _ => {
            let expected = format!("a static head dimension of at least {rotary_dim} (twice the angles)");
            return Err(inputs.wrong(0, expected, head_dim));
        }
    }
    inputs.finite("attention_factor", attributes.attention_factor)?;
    for angle in &attributes.inv_freq {
        inputs.finite("inv_freq", *angle)?;
    }
    Ok((dtype, inputs.shape(0).to_vec()))
}

/// Sections are as many pairs in all as there are, and positions have an axis for each.
fn sections(inputs: &Inputs<'_>, attributes: &RotaryAttributes) -> Result<(), GraphError> {
    let (pairs, found) = (attributes.inv_freq.len() as u64, &attributes.sections);
    if found.iter().map(|&section| u64::from(section)).sum::<u64>() != pairs {
        return Err(
            inputs.error(format!("attribute sections: expected {pairs} pairs in all, found {found:?}"))
        );
    }
    inputs.rank::<3>(1)?;
    inputs.dim(1, 1, &Dim::from(found.len()), "an axis a section")
}

pub(super) fn scaled_dot_product(
    op: &Op,
    values: &[&Value],
    attributes: &AttentionAttributes,
) -> Result<(DType, Shape), GraphError> {
    let names: &'static [&'static str] = match (attributes.has_mask, attributes.has_kv_lengths) {
        _ if attributes.has_segment_ids => &["q", "k", "v", "segment_ids"],
        (false, false) => &["q", "k", "v"],
        (true, false) => &["q", "k", "v", "mask"],
        (false, true) => &["q", "k", "v", "kv_lengths"],
        (true, true) => &["q", "k", "v", "mask", "kv_lengths"],
    };
    let inputs = Inputs::new(op, values, names, names.len())?;
    if let Some(scale) = attributes.scale {
        inputs.finite("scale", scale)?;
    }
    if let Some(cap) = attributes.soft_cap {
        inputs.positive("soft_cap", cap)?;
    }
    if attributes.window == Some(0) {
        return Err(inputs.error("attribute window: expected at least 1, found 0".to_owned()));
    }
    let dtype = inputs.float(&[0, 1, 2])?;
    let [batch, query_heads, seq, head_dim] = inputs.rank(0)?;
    let [_, key_heads, length, _] = inputs.rank(1)?;
    let [_, _, _, value_dim] = inputs.rank(2)?;
    inputs.dim(1, 0, batch, "the batch of q")?;
    inputs.dim(1, 3, head_dim, "the head dimension of q")?;
    inputs.dim(2, 0, batch, "the batch of q")?;
    inputs.dim(2, 1, key_heads, "the heads of k")?;
    inputs.dim(2, 2, length, "the positions of k")?;
    match (query_heads.as_constant(), key_heads.as_constant()) {
        (Some(queries), Some(keys)) if keys > 0 && queries > 0 && queries % keys == 0 => {}
        _ => {
            let expected = format!("static heads that divide the {query_heads} of q");
            return Err(inputs.wrong(1, expected, key_heads));
        }
    }
    if attributes.has_segment_ids {
        segments(&inputs, attributes, [batch, seq, length])?;
    }
    if attributes.has_mask {
        mask(&inputs, [batch, query_heads, seq, length])?;
    }
    if attributes.has_kv_lengths {
        per_sequence(&inputs, names.len() - 1, batch)?;
    }
    Ok((dtype, vec![batch.clone(), query_heads.clone(), seq.clone(), value_dim.clone()]))
}

/// Input 3 is `segment_ids [B, S]`, and they alone say what a query sees.
fn segments(
    inputs: &Inputs<'_>,
    attributes: &AttentionAttributes,
    [batch, seq, length]: [&Dim; 3],
) -> Result<(), GraphError> {
    let others = [
        ("causal", attributes.causal),
        ("window", attributes.window.is_some()),
        ("has_mask", attributes.has_mask),
        ("has_kv_lengths", attributes.has_kv_lengths),
    ];
    if let Some((name, _)) = others.iter().find(|(_, set)| *set) {
        return Err(inputs.error(format!("attribute {name}: not allowed beside segment_ids")));
    }
    inputs.has_dtype(3, DType::I64)?;
    inputs.rank::<2>(3)?;
    inputs.dim(3, 0, batch, "the batch of q")?;
    inputs.dim(3, 1, seq, "the positions of q")?;
    if length == seq { Ok(()) } else { Err(inputs.wrong(1, format!("{seq} keys, as of q"), length)) }
}

/// Input 3 is a mask `[B|1, Nq|1, S, L]`.
fn mask(inputs: &Inputs<'_>, [batch, heads, seq, length]: [&Dim; 4]) -> Result<(), GraphError> {
    if inputs.dtype(3) != DType::Bool {
        inputs.float(&[0, 3])?;
    }
    let [mask_batch, mask_heads, _, _] = inputs.rank(3)?;
    let one = Dim::constant(1);
    let broadcasts = |found: &Dim, full: &Dim| *found == one || found == full;
    if !broadcasts(mask_batch, batch) || !broadcasts(mask_heads, heads) {
        let expected = format!("[{batch} or 1, {heads} or 1, {seq}, {length}]");
        return Err(inputs.wrong(3, expected, show(inputs.shape(3))));
    }
    inputs.dim(3, 2, seq, "the positions of q")?;
    inputs.dim(3, 3, length, "the positions of k")
}

pub(super) fn kv_cache_update(op: &Op, values: &[&Value]) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["cache", "update", "write_indices"], 3)?;
    let dtype = inputs.float(&[0, 1])?;
    let [batch, heads, _, head_dim] = inputs.rank(0)?;
    inputs.rank::<4>(1)?;
    inputs.dim(1, 0, batch, "the batch of cache")?;
    inputs.dim(1, 1, heads, "the heads of cache")?;
    inputs.dim(1, 3, head_dim, "the head dimension of cache")?;
    per_sequence(&inputs, 2, batch)?;
    Ok((dtype, inputs.shape(0).to_vec()))
}

pub(super) fn last_token(op: &Op, values: &[&Value]) -> Result<(DType, Shape), GraphError> {
    let inputs = Inputs::new(op, values, &["x", "query_lengths"], 1)?;
    let dtype = inputs.float(&[0])?;
    let [batch, _, hidden] = inputs.rank(0)?;
    if inputs.has(1) {
        per_sequence(&inputs, 1, batch)?;
    }
    Ok((dtype, vec![batch.clone(), Dim::constant(1), hidden.clone()]))
}

/// Input `index` is `[B] i64`.
fn per_sequence(inputs: &Inputs<'_>, index: usize, batch: &Dim) -> Result<(), GraphError> {
    inputs.has_dtype(index, DType::I64)?;
    inputs.rank::<1>(index)?;
    inputs.dim(index, 0, batch, "the batch")
}
