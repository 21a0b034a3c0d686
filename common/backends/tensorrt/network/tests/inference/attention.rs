use roundhouse_tensorrt_network::{CausalMask, DataType, LayerKind};

use DataType::{Bf16, Bool, Float, Half, Int32, Int64};

use crate::{Operand, makes, refuses};

fn rotary(dim: usize) -> LayerKind {
    LayerKind::RotaryEmbedding { interleaved: false, dim }
}

#[test]
fn a_rotary_embedding_keeps_its_input() {
    let x: Operand<'_> = (Half, &[-1, 8, -1, 64]);
    let positions: Operand<'_> = (Int64, &[-1, -1]);
    for (dim, table) in [(0, &[128, 32]), (64, &[128, 32]), (32, &[128, 16])] {
        makes(rotary(dim), &[x, (Half, table), (Half, table), positions], Half, x.1);
    }
    let table: Operand<'_> = (Half, &[128, 32]);
    refuses(rotary(128), &[x, table, table, positions], "128 rotated dimensions of 64");
    refuses(rotary(31), &[x, table, table, positions], "must be even");
    refuses(rotary(32), &[x, table, table, positions], "a table has 32 pairs: it must have 16");
    refuses(rotary(64), &[x, table, (Half, &[128, 16]), positions], "a table has 16 pairs: it must have 32");
    refuses(rotary(64), &[x, table, (Half, &[64, 32]), positions], "must be equal");
    refuses(rotary(64), &[x, (Float, &[128, 32]), table, positions], "dtypes must be equal");
    refuses(rotary(64), &[x, table, (Half, &[1, 128, 32]), positions], "a table has rank 3");
    refuses(rotary(64), &[(Half, &[-1, -1, 64]), table, table, positions], "rank 3: it must be 4");
    refuses(rotary(64), &[(Int64, x.1), table, table, positions], "must be kFLOAT");
    refuses(rotary(64), &[(Half, &[1, 8, 4, -1]), table, table, (Int64, &[1, 4])], "must not be dynamic");
    refuses(rotary(64), &[x, table, table], "3 operands, 4 are needed");
}

#[test]
fn positions_have_the_very_dimensions_of_what_is_rotated() {
    let x: Operand<'_> = (Half, &[2, 8, -1, 64]);
    let table: Operand<'_> = (Half, &[128, 32]);
    makes(rotary(64), &[x, table, table, (Int32, &[2, -1])], Half, x.1);
    for dims in [&[1, -1][..], &[-1, -1], &[2, 4], &[2], &[2, -1, 1]] {
        refuses(rotary(64), &[x, table, table, (Int64, dims)], "they must be [2, -1]");
    }
    refuses(rotary(64), &[x, table, table, (Float, &[2, -1])], "must be kINT32 or kINT64");
}

#[test]
fn a_cache_keeps_its_dimensions() {
    let kind = LayerKind::KvCacheUpdate;
    let cache: Operand<'_> = (Bf16, &[-1, 2, 128, 64]);
    let update: Operand<'_> = (Bf16, &[-1, 2, -1, 64]);
    makes(kind.clone(), &[cache, update, (Int32, &[-1])], Bf16, cache.1);
    makes(kind.clone(), &[cache, (Bf16, &[3, 2, 128, 64]), (Int32, &[3])], Bf16, cache.1);
    refuses(kind.clone(), &[cache, (Half, update.1), (Int32, &[-1])], "dtypes must be equal");
    refuses(kind.clone(), &[(Int64, cache.1), (Int64, update.1), (Int32, &[-1])], "must be kFLOAT");
    refuses(kind.clone(), &[(Bf16, &[2, 128, 64]), update, (Int32, &[-1])], "the cache has rank 3");
    refuses(kind.clone(), &[cache, (Bf16, &[2, 1, 64]), (Int32, &[-1])], "the update has rank 3");
    refuses(kind.clone(), &[(Bf16, &[2, 2, 128, 64]), (Bf16, &[3, 2, 1, 64]), (Int32, &[-1])], "batch is 2");
    refuses(kind.clone(), &[cache, (Bf16, &[-1, 4, 1, 64]), (Int32, &[-1])], "number of heads is 2");
    refuses(kind.clone(), &[cache, (Bf16, &[-1, 2, 1, 32]), (Int32, &[-1])], "head dimension is 64");
    refuses(
        kind.clone(),
        &[cache, (Bf16, &[-1, 2, 129, 64]), (Int32, &[-1])],
        "129 positions and the cache 128",
    );
    refuses(kind.clone(), &[cache, update, (Int64, &[-1])], "write_indices is kINT64: it must be kINT32");
    refuses(kind.clone(), &[cache, update, (Int32, &[-1, 1])], "write_indices has rank 2");
    refuses(kind.clone(), &[(Bf16, &[2, 2, 128, 64]), update, (Int32, &[3])], "length of write_indices is 3");
    refuses(kind, &[cache, update], "2 operands, 3 are needed");
}

fn attention(causal: CausalMask, has_mask: bool, has_kv_lengths: bool) -> LayerKind {
    LayerKind::Attention { causal, decomposable: true, has_mask, has_kv_lengths }
}

const Q: Operand<'_> = (Half, &[-1, 8, -1, 64]);
const KV: Operand<'_> = (Half, &[-1, 2, 128, 64]);

#[test]
fn attention_gives_what_the_query_is() {
    makes(attention(CausalMask::LowerRight, false, false), &[Q, KV, KV], Half, Q.1);
    makes(attention(CausalMask::LowerRight, false, true), &[Q, KV, KV, (Int32, &[-1])], Half, Q.1);
    makes(attention(CausalMask::None, true, false), &[Q, KV, KV, (Bool, &[1, 1, -1, 128])], Half, Q.1);
    makes(attention(CausalMask::None, true, false), &[Q, KV, KV, (Half, &[-1, 8, -1, 128])], Half, Q.1);
    makes(
        attention(CausalMask::None, true, true),
        &[Q, KV, KV, (Bool, &[1, 1, -1, -1]), (Int32, &[4])],
        Half,
        Q.1,
    );
    refuses(attention(CausalMask::None, true, true), &[Q, KV, KV, (Int32, &[4])], "4 operands, 5 are needed");
    refuses(attention(CausalMask::None, false, false), &[Q, KV], "2 operands, 3 are needed");
}

#[test]
fn query_key_and_value_fit() {
    let plain = attention(CausalMask::None, false, false);
    refuses(plain.clone(), &[(Int64, Q.1), KV, KV], "must be kFLOAT");
    refuses(plain.clone(), &[Q, (Float, KV.1), KV], "query and key are kHALF and kFLOAT");
    refuses(plain.clone(), &[Q, KV, (Float, KV.1)], "query and value are kHALF and kFLOAT");
    refuses(plain.clone(), &[(Half, &[8, -1, 64]), KV, KV], "the query has rank 3");
    refuses(plain.clone(), &[Q, (Half, &[2, 128, 64]), KV], "the key has rank 3");
    for value in [&[-1, 2, 128, 32][..], &[-1, 2, 64, 64], &[-1, 4, 128, 64], &[1, 2, 128, 64], &[2, 128, 64]]
    {
        refuses(plain.clone(), &[Q, KV, (Half, value)], "the value [");
    }
    let of = |dims: [i64; 4]| dims;
    let (three, narrow, two) = (of([-1, 3, 128, 64]), of([-1, 2, 128, 32]), of([2, 2, 128, 64]));
    refuses(
        plain.clone(),
        &[Q, (Half, &three), (Half, &three)],
        "8 query heads: they must be a multiple of the 3",
    );
    refuses(plain.clone(), &[Q, (Half, &narrow), (Half, &narrow)], "head dimension is 32");
    refuses(plain, &[(Half, &[1, 8, -1, 64]), (Half, &two), (Half, &two)], "batch is 2");
}

#[test]
fn a_mask_excludes_a_causal_kind() {
    let both = attention(CausalMask::LowerRight, true, false);
    refuses(both, &[Q, KV, KV, (Bool, &[1, 1, -1, 128])], "exclude each other");
}

#[test]
fn a_mask_fits() {
    let masked = attention(CausalMask::None, true, false);
    refuses(masked.clone(), &[Q, KV, KV, (Float, &[1, 1, -1, 128])], "must be kBOOL, or kHALF");
    refuses(masked.clone(), &[Q, KV, KV, (Bool, &[1, -1, 128])], "the mask has rank 3");
    refuses(masked.clone(), &[Q, KV, KV, (Bool, &[1, 2, -1, 128])], "number of heads, if not 1, is 2");
    refuses(masked.clone(), &[Q, KV, KV, (Bool, &[1, 1, -1, 64])], "number of keys is 64");
    let short: Operand<'_> = (Half, &[2, 8, 4, 64]);
    refuses(masked.clone(), &[short, KV, KV, (Bool, &[1, 1, 3, 128])], "number of queries is 3");
    refuses(masked, &[short, KV, KV, (Bool, &[3, 1, 4, 128])], "batch, if not 1, is 3");
}

#[test]
fn lengths_are_int32_of_each_sequence() {
    let bounded = attention(CausalMask::LowerRight, false, true);
    refuses(bounded.clone(), &[Q, KV, KV, (Int64, &[-1])], "kv_lengths is kINT64: it must be kINT32");
    refuses(bounded.clone(), &[Q, KV, KV, (Int32, &[-1, 1])], "kv_lengths has rank 2");
    refuses(bounded, &[(Half, &[2, 8, -1, 64]), KV, KV, (Int32, &[3])], "length of kv_lengths is 3");
}
