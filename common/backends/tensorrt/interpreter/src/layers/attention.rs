//! Layers of attention: `IRotaryEmbeddingLayer`, `IKVCacheUpdateLayer`, `IAttention`.

use roundhouse_backend_conformance::{Data, Tensor};
use roundhouse_tensorrt_network::CausalMask;

use super::normalization::probabilities;
use crate::elements::{floats, integers};

pub(super) fn rotary_embedding(
    interleaved: bool,
    dim: usize,
    x: &Tensor,
    [cos, sin]: [&Tensor; 2],
    position_ids: &Tensor,
) -> Result<Tensor, String> {
    let [batch, heads, tokens, head_dim] = four(x)?;
    let pairs = if dim == 0 { head_dim } else { dim } / 2;
    let positions = match cos.shape[..] {
        [positions, columns] if cos.shape == sin.shape && columns == pairs => positions,
        _ => return Err(format!("tables of {:?} and {:?} for {pairs} pairs", cos.shape, sin.shape)),
    };
    if position_ids.shape != [batch, tokens] {
        return Err(format!("position_ids of {:?} for {:?}", position_ids.shape, x.shape));
    }
    let (cos, sin, ids) = (floats(cos)?, floats(sin)?, integers(position_ids)?);
    let mut out = floats(x)?.to_vec();
    for (index, vector) in out.chunks_exact_mut(head_dim.max(1)).enumerate() {
        let (sequence, token) = (index / (heads * tokens), index % tokens);
        let id = ids[sequence * tokens + token];
        let row = usize::try_from(id).ok().filter(|&row| row < positions);
        let row = row.ok_or_else(|| format!("position {id} in tables of {positions}"))?;
        for pair in 0..pairs {
            let [first, second] = if interleaved { [2 * pair, 2 * pair + 1] } else { [pair, pair + pairs] };
            let [cos, sin] = [cos, sin].map(|table| f64::from(table[row * pairs + pair]));
            let [a, b] = [first, second].map(|place| f64::from(vector[place]));
            vector[first] = (a * cos - b * sin) as f32;
            vector[second] = (a * sin + b * cos) as f32;
        }
    }
    Ok(Tensor::float(&x.shape, out))
}

/// `KVCacheMode::kLINEAR`: `output[b, :, write_indices[b] + s, :] = update[b, :, s, :]`, out of bounds silently not.
pub(super) fn kv_cache_update(
    cache: &Tensor,
    update: &Tensor,
    write_indices: &Tensor,
) -> Result<Tensor, String> {
    let [batch, heads, length, head_dim] = four(cache)?;
    let tokens = four(update)?[2];
    if update.shape != [batch, heads, tokens, head_dim] || write_indices.shape != [batch] || tokens > length {
        return Err(format!("an update of {:?} to a cache of {:?}", update.shape, cache.shape));
    }
    let (new, indices) = (floats(update)?, integers(write_indices)?);
    let mut out = floats(cache)?.to_vec();
    for (index, row) in new.chunks_exact(head_dim.max(1)).enumerate() {
        let (head, token) = (index / tokens, index % tokens);
        let place =
            indices[head / heads].checked_add(token as i64).and_then(|place| usize::try_from(place).ok());
        if let Some(place) = place.filter(|&place| place < length) {
            let start = (head * length + place) * head_dim;
            out[start..start + head_dim].copy_from_slice(row);
        }
    }
    Ok(Tensor::float(&cache.shape, out))
}

/// Scores `q · kᵀ`, not scaled; softmax over the keys that exist; then the mean of the values that it weighs. A query that
/// may attend to no key gives NaN.
pub(super) fn attention(
    causal: CausalMask,
    [query, key, value]: [&Tensor; 3],
    mask: Option<&Tensor>,
    kv_lengths: Option<&Tensor>,
) -> Result<Tensor, String> {
    let [batch, heads, tokens, head_dim] = four(query)?;
    let [_, kv_heads, length, _] = four(key)?;
    let fits = key.shape == [batch, kv_heads, length, head_dim] && key.shape == value.shape;
    if !fits || kv_heads == 0 || heads % kv_heads != 0 {
        return Err(format!("query {:?}, key {:?}, value {:?}", query.shape, key.shape, value.shape));
    }
    let lengths = lengths(kv_lengths, batch, length)?;
    let mask = mask.map(|mask| Mask::new(mask, [batch, heads, tokens, length])).transpose()?;
    let (queries, keys, values) = (floats(query)?, floats(key)?, floats(value)?);
    let vector = |all: &'_ [f32], index: usize| -> Vec<f64> {
        all[index * head_dim..(index + 1) * head_dim].iter().map(|&element| f64::from(element)).collect()
    };
    let mut out = Vec::with_capacity(queries.len());
    for (sequence, &existing) in lengths.iter().enumerate() {
        for head in 0..heads {
            let rows = (sequence * kv_heads + head / (heads / kv_heads)) * length;
            let keys: Vec<Vec<f64>> = (0..existing).map(|j| vector(keys, rows + j)).collect();
            let values: Vec<Vec<f64>> = (0..existing).map(|j| vector(values, rows + j)).collect();
            for i in 0..tokens {
                let query = vector(queries, (sequence * heads + head) * tokens + i);
                let score = |(j, key): (usize, &Vec<f64>)| {
                    let score: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                    // j ≤ i + (existing − tokens), without going below zero.
                    let hidden = causal == CausalMask::LowerRight && j + tokens > i + existing;
                    if hidden {
                        f64::NEG_INFINITY
                    } else {
                        mask.as_ref().map_or(score, |mask| mask.apply(score, [sequence, head, i, j]))
                    }
                };
                let scores: Vec<f64> = keys.iter().enumerate().map(score).collect();
                let seen = !scores.is_empty();
                let weights = probabilities(&scores);
                out.extend((0..head_dim).map(|d| {
                    let sum: f64 = weights.iter().zip(&values).map(|(weight, value)| weight * value[d]).sum();
                    if seen { sum as f32 } else { f32::NAN }
                }));
            }
        }
    }
    Ok(Tensor::float(&query.shape, out))
}

/// How many keys of each sequence exist.
fn lengths(kv_lengths: Option<&Tensor>, batch: usize, length: usize) -> Result<Vec<usize>, String> {
    let Some(kv_lengths) = kv_lengths else { return Ok(vec![length; batch]) };
    if kv_lengths.shape != [batch] {
        return Err(format!("kv_lengths of {:?} for {batch} sequences", kv_lengths.shape));
    }
    let existing = |&found: &i64| {
        let existing = usize::try_from(found).ok().filter(|&existing| existing <= length);
        existing.ok_or_else(|| format!("a length of {found} in a cache of {length}"))
    };
    integers(kv_lengths)?.iter().map(existing).collect()
}

/// `[batch or 1, heads or 1, queries, keys]`: truth values say where to attend; floats are added to the scores.
struct Mask<'a> {
    data: &'a Data,
    strides: [usize; 4],
}

impl<'a> Mask<'a> {
    fn new(mask: &'a Tensor, [batch, heads, tokens, length]: [usize; 4]) -> Result<Self, String> {
        let [own_batch, own_heads, own_tokens, own_length] = four(mask)?;
        let repeated = |own: usize, all: usize| own == 1 || own == all;
        if !repeated(own_batch, batch)
            || !repeated(own_heads, heads)
            || [own_tokens, own_length] != [tokens, length]
        {
            return Err(format!("a mask of {:?} for {:?}", mask.shape, [batch, heads, tokens, length]));
        }
        let matrix = tokens * length;
        let strides = [
            if own_batch == 1 { 0 } else { own_heads * matrix },
            if own_heads == 1 { 0 } else { matrix },
            length,
            1,
        ];
        Ok(Self { data: &mask.data, strides })
    }

    fn apply(&self, score: f64, place: [usize; 4]) -> f64 {
        let place: usize = place.iter().zip(self.strides).map(|(index, stride)| index * stride).sum();
        match self.data {
            Data::Float(values) => score + f64::from(values[place]),
            Data::Int(values) if values[place] == 0 => f64::NEG_INFINITY,
            Data::Int(_) => score,
        }
    }
}

fn four(tensor: &Tensor) -> Result<[usize; 4], String> {
    tensor.shape[..].try_into().map_err(|_| format!("shape {:?}: four dimensions are needed", tensor.shape))
}
