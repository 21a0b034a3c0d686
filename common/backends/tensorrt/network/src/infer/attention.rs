//! Layers of attention: `IRotaryEmbeddingLayer`, `IKVCacheUpdateLayer`, `IAttention`.

use super::{Inferred, equal, float, integer, of_dtype, of_rank, same_dtype};
use crate::{CausalMask, DYNAMIC, DataType, Tensor};

pub(super) fn rotary_embedding(
    dim: usize,
    x: &Tensor,
    tables: [&Tensor; 2],
    position_ids: &Tensor,
) -> Inferred {
    float("what is rotated", x)?;
    of_rank("what is rotated", x, 4)?;
    let (batch, tokens, head_dim) = (x.dims[0], x.dims[2], x.dims[3]);
    if head_dim == DYNAMIC {
        return Err("the head dimension must not be dynamic".to_owned());
    }
    let rotated = match i64::try_from(dim) {
        Ok(0) => head_dim,
        Ok(dim) if dim <= head_dim => dim,
        _ => return Err(format!("{dim} rotated dimensions of {head_dim}")),
    };
    if rotated % 2 != 0 {
        return Err(format!("{rotated} rotated dimensions: they must be even"));
    }
    for table in tables {
        same_dtype("what is rotated and a table", x, table)?;
        of_rank("a table", table, 2)?;
        if table.dims[1] != rotated / 2 {
            return Err(format!("a table has {} pairs: it must have {}", table.dims[1], rotated / 2));
        }
    }
    equal("the cosine table's length", tables[0].dims[0], "the sine table's", tables[1].dims[0])?;
    integer("position_ids", position_ids)?;
    // TensorRT compares these as they stand: a number and a dynamic dimension are not equal.
    if position_ids.dims != [batch, tokens] {
        return Err(format!("position_ids are {:?}: they must be {:?}", position_ids.dims, [batch, tokens]));
    }
    Ok((x.dtype, x.dims.clone()))
}

pub(super) fn kv_cache_update(cache: &Tensor, update: &Tensor, write_indices: &Tensor) -> Inferred {
    float("the cache", cache)?;
    same_dtype("cache and update", cache, update)?;
    of_rank("the cache", cache, 4)?;
    of_rank("the update", update, 4)?;
    equal("the cache's batch", cache.dims[0], "the update's", update.dims[0])?;
    equal("the cache's number of heads", cache.dims[1], "the update's", update.dims[1])?;
    equal("the cache's head dimension", cache.dims[3], "the update's", update.dims[3])?;
    if cache.dims[2] != DYNAMIC && update.dims[2] > cache.dims[2] {
        return Err(format!("the update has {} positions and the cache {}", update.dims[2], cache.dims[2]));
    }
    // The documentation allows kINT64; TensorRT's compiler says "Write indices must be of type int32".
    of_dtype("write_indices", write_indices, DataType::Int32)?;
    of_rank("write_indices", write_indices, 1)?;
    equal("the length of write_indices", write_indices.dims[0], "the cache's batch", cache.dims[0])?;
    Ok((cache.dtype, cache.dims.clone()))
}

pub(super) fn attention(
    causal: CausalMask,
    has_mask: bool,
    has_kv_lengths: bool,
    inputs: &[&Tensor],
) -> Inferred {
    let needed = 3 + usize::from(has_mask) + usize::from(has_kv_lengths);
    let (&[query, key, value], rest) = inputs
        .split_first_chunk::<3>()
        .filter(|_| inputs.len() == needed)
        .ok_or_else(|| format!("{} operands, {needed} are needed", inputs.len()))?;
    if has_mask && causal != CausalMask::None {
        return Err("a mask and a causal kind: they exclude each other".to_owned());
    }
    float("the query", query)?;
    same_dtype("query and key", query, key)?;
    same_dtype("query and value", query, value)?;
    of_rank("the query", query, 4)?;
    of_rank("the key", key, 4)?;
    // Compared as they stand.
    if key.dims != value.dims {
        return Err(format!("the key is {:?} and the value {:?}: they must be equal", key.dims, value.dims));
    }
    equal("the key's batch", key.dims[0], "the query's", query.dims[0])?;
    equal("the key's head dimension", key.dims[3], "the query's", query.dims[3])?;
    let (heads, kv_heads) = (query.dims[1], key.dims[1]);
    if heads != DYNAMIC && kv_heads != DYNAMIC && (kv_heads == 0 || heads % kv_heads != 0) {
        return Err(format!("{heads} query heads: they must be a multiple of the {kv_heads} of the key"));
    }
    if has_mask {
        mask(rest[0], query, key)?;
    }
    if has_kv_lengths {
        let lengths = rest[usize::from(has_mask)];
        of_dtype("kv_lengths", lengths, DataType::Int32)?;
        of_rank("kv_lengths", lengths, 1)?;
        equal("the length of kv_lengths", lengths.dims[0], "the query's batch", query.dims[0])?;
    }
    Ok((query.dtype, query.dims.clone()))
}

fn mask(mask: &Tensor, query: &Tensor, key: &Tensor) -> Result<(), String> {
    if mask.dtype != DataType::Bool && mask.dtype != query.dtype {
        return Err(format!("the mask is {}: it must be kBOOL, or {} as the query", mask.dtype, query.dtype));
    }
    of_rank("the mask", mask, 4)?;
    if mask.dims[0] != 1 {
        equal("the mask's batch, if not 1,", mask.dims[0], "the query's", query.dims[0])?;
    }
    if mask.dims[1] != 1 {
        equal("the mask's number of heads, if not 1,", mask.dims[1], "the query's", query.dims[1])?;
    }
    equal("the mask's number of queries", mask.dims[2], "the query's", query.dims[2])?;
    equal("the mask's number of keys", mask.dims[3], "the key's", key.dims[2])
}
