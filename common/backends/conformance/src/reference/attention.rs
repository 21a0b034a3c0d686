//! Attention, its position embedding and its cache, and the choice of the last token.

use roundhouse_graph::{AttentionAttributes, RotaryAttributes};

use super::Scope;
use super::elementwise::probabilities;
use super::linear::dot;
use crate::tensor::{Data, Tensor};

/// Angles are fp32 products of position and frequency, as in the programs that trained the models.
pub(super) fn rotary_embedding(scope: &Scope<'_>, attributes: &RotaryAttributes) -> Tensor {
    let (x, positions) = (scope.inputs[0], scope.inputs[1]);
    let [batch, heads, seq, head_dim] = four(x);
    let half = attributes.inv_freq.len();
    let mut out = x.floats().to_vec();
    for (row, vector) in out.chunks_exact_mut(head_dim).enumerate() {
        let (b, s) = (row / (heads * seq), row % seq);
        debug_assert!(b < batch);
        for ((pair, frequency), axis) in attributes.inv_freq.iter().enumerate().zip(attributes.pair_axes()) {
            let position = positions.ints()[(b * attributes.axes() + axis) * seq + s] as f32;
            let (first, second) =
                if attributes.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
            let (sin, cos) = f64::from(position * frequency).sin_cos();
            let factor = f64::from(attributes.attention_factor);
            let (sin, cos) = (sin * factor, cos * factor);
            let (a, b) = (f64::from(vector[first]), f64::from(vector[second]));
            vector[first] = (a * cos - b * sin) as f32;
            vector[second] = (b * cos + a * sin) as f32;
        }
    }
    Tensor::float(&x.shape, out)
}

pub(super) fn scaled_dot_product(
    scope: &Scope<'_>,
    attributes: &AttentionAttributes,
) -> Result<Tensor, String> {
    let (q, k, v) = (scope.inputs[0], scope.inputs[1], scope.inputs[2]);
    let mask = attributes.has_mask.then(|| scope.inputs[3]);
    let kv_lengths = attributes.has_kv_lengths.then(|| scope.inputs[scope.inputs.len() - 1]);
    let segment_ids = attributes.has_segment_ids.then(|| scope.inputs[3].ints());
    let [batch, query_heads, seq, head_dim] = four(q);
    let [_, key_heads, rows, value_dim] = four(v);
    let scale = attributes.scale.map_or_else(|| 1.0 / (head_dim as f64).sqrt(), f64::from);
    let mut out = Vec::with_capacity(batch * query_heads * seq * value_dim);
    for b in 0..batch {
        let length = kv_lengths.map_or(rows as i64, |lengths| lengths.ints()[b]);
        if length < 0 {
            return Err(format!("kv_lengths[{b}] is {length}"));
        }
        for h in 0..query_heads {
            let group = b * key_heads + h / (query_heads / key_heads);
            for i in 0..seq {
                // The query's own place among the keys.
                let place = i as i64 + length - seq as i64;
                let query = row(q, (b * query_heads + h) * seq + i);
                let score = |j: usize| {
                    let score = scale * dot(query, row(k, group * rows + j));
                    let score = attributes.soft_cap.map_or(score, |cap| {
                        let cap = f64::from(cap);
                        cap * (score / cap).tanh()
                    });
                    let visible = (!attributes.causal || j as i64 <= place)
                        && attributes.window.is_none_or(|window| place - (j as i64) < i64::from(window))
                        && segment_ids.is_none_or(|ids| ids[b * seq + i] == ids[b * seq + j]);
                    let hidden = f64::NEG_INFINITY;
                    if visible { score + mask.map_or(0.0, |mask| bias(mask, [b, h, i, j])) } else { hidden }
                };
                let scores: Vec<f64> = (0..rows.min(length as usize)).map(score).collect();
                let weights = probabilities(&scores);
                for d in 0..value_dim {
                    let values = weights.iter().enumerate();
                    let sum: f64 =
                        values.map(|(j, weight)| weight * f64::from(row(v, group * rows + j)[d])).sum();
                    out.push(sum as f32);
                }
            }
        }
    }
    Ok(Tensor::float(&[batch, query_heads, seq, value_dim], out))
}

/// What a mask `[B|1, Nq|1, S, L]` adds to a score.
fn bias(mask: &Tensor, [b, h, i, j]: [usize; 4]) -> f64 {
    let [batch, heads, seq, length] = four(mask);
    let (b, h) = (if batch == 1 { 0 } else { b }, if heads == 1 { 0 } else { h });
    let at = ((b * heads + h) * seq + i) * length + j;
    match &mask.data {
        Data::Float(values) => f64::from(values[at]),
        Data::Int(values) if values[at] != 0 => 0.0,
        Data::Int(_) => f64::NEG_INFINITY,
    }
}

pub(super) fn kv_cache_update(scope: &Scope<'_>) -> Result<Tensor, String> {
    let (cache, update, write_indices) = (scope.inputs[0], scope.inputs[1], scope.inputs[2]);
    let [batch, heads, length, head_dim] = four(cache);
    let seq = update.shape[2];
    let mut out = cache.floats().to_vec();
    for b in 0..batch {
        let index = write_indices.ints()[b];
        let first = usize::try_from(index).map_err(|_| format!("write_indices[{b}] is {index}"))?;
        for h in 0..heads {
            for s in 0..seq.min(length.saturating_sub(first)) {
                let to = ((b * heads + h) * length + first + s) * head_dim;
                out[to..to + head_dim].copy_from_slice(row(update, (b * heads + h) * seq + s));
            }
        }
    }
    Ok(Tensor::float(&cache.shape, out))
}

pub(super) fn last_token(scope: &Scope<'_>) -> Result<Tensor, String> {
    let (x, query_lengths) = (scope.inputs[0], scope.inputs.get(1));
    let (batch, seq, width) = (x.shape[0], x.shape[1], x.shape[2]);
    let mut out = Vec::with_capacity(batch * width);
    for b in 0..batch {
        let length = query_lengths.map_or(seq as i64, |lengths| lengths.ints()[b]);
        let last = usize::try_from(length - 1).ok().filter(|&last| last < seq);
        let last = last.ok_or_else(|| format!("query_lengths[{b}] is {length}, of {seq} tokens"))?;
        out.extend_from_slice(row(x, b * seq + last));
    }
    Ok(Tensor::float(&[batch, 1, width], out))
}

/// Row `index` of a tensor seen as a matrix with its last dimension as columns.
fn row(tensor: &Tensor, index: usize) -> &[f32] {
    let width = tensor.shape.last().copied().unwrap_or(1);
    &tensor.floats()[index * width..(index + 1) * width]
}

fn four(tensor: &Tensor) -> [usize; 4] {
    std::array::from_fn(|axis| tensor.shape.get(axis).copied().unwrap_or(1))
}
