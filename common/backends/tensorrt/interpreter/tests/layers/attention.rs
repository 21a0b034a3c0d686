use roundhouse_tensorrt_interpreter::Tensor;
use roundhouse_tensorrt_network::{CausalMask, LayerKind};

use crate::{Operand, fails, floats, gives, gives_about, ints32, truths};

fn attention(causal: CausalMask, has_mask: bool, has_kv_lengths: bool) -> LayerKind {
    LayerKind::Attention { causal, decomposable: false, has_mask, has_kv_lengths }
}

fn plain() -> LayerKind {
    attention(CausalMask::None, false, false)
}

/// Keys of one dimension of zeros, so that every key that is seen has equal weight, and values of powers of two, so that
/// their mean says which were seen.
fn uniform(queries: usize) -> [Operand; 3] {
    let query = floats(&[1, 1, queries, 1], &vec![1.0; queries]);
    [query, floats(&[1, 1, 4, 1], &[0.0; 4]), floats(&[1, 1, 4, 1], &[1.0, 2.0, 4.0, 8.0])]
}

/// The mean of the values of [`uniform`] at these keys.
fn mean(keys: &[i32]) -> f32 {
    keys.iter().map(|&key| 2_f32.powi(key)).sum::<f32>() / keys.len() as f32
}

fn column(values: &[f32]) -> Tensor {
    Tensor::float(&[1, 1, values.len(), 1], values.to_vec())
}

#[test]
fn scores_are_products_without_scale_and_softmax_runs_over_the_keys() {
    let ln3 = 3_f32.ln();
    // Scores ln 3 and 0: weights ¾ and ¼. A scale of 1/√2 would give others.
    let query = floats(&[1, 1, 1, 2], &[ln3, 0.0]);
    let key = floats(&[1, 1, 2, 2], &[1.0, 7.0, 0.0, 7.0]);
    let value = floats(&[1, 1, 2, 2], &[4.0, 8.0, 0.0, 16.0]);
    gives_about(plain(), &[query, key, value], Tensor::float(&[1, 1, 1, 2], vec![3.0, 10.0]));
}

#[test]
fn heads_of_a_group_share_keys_and_values() {
    let query = floats(&[1, 4, 1, 1], &[1.0; 4]);
    let key = floats(&[1, 2, 1, 1], &[0.0; 2]);
    let value = floats(&[1, 2, 1, 1], &[5.0, 6.0]);
    gives(plain(), &[query, key, value], Tensor::float(&[1, 4, 1, 1], vec![5.0, 5.0, 6.0, 6.0]));
}

#[test]
fn sequences_do_not_see_each_other() {
    let query = floats(&[2, 1, 1, 1], &[1.0; 2]);
    let key = floats(&[2, 1, 2, 1], &[0.0; 4]);
    let value = floats(&[2, 1, 2, 1], &[1.0, 3.0, 10.0, 30.0]);
    gives(plain(), &[query, key, value], Tensor::float(&[2, 1, 1, 1], vec![2.0, 20.0]));
}

#[test]
fn without_a_causal_kind_every_key_is_seen() {
    gives(plain(), &uniform(2), column(&[mean(&[0, 1, 2, 3]), mean(&[0, 1, 2, 3])]));
}

#[test]
fn lower_right_is_anchored_at_the_last_key() {
    let causal = attention(CausalMask::LowerRight, false, false);
    gives(causal.clone(), &uniform(1), column(&[mean(&[0, 1, 2, 3])]));
    gives(causal.clone(), &uniform(2), column(&[mean(&[0, 1, 2]), mean(&[0, 1, 2, 3])]));
    let all = [mean(&[0]), mean(&[0, 1]), mean(&[0, 1, 2]), mean(&[0, 1, 2, 3])];
    gives_about(causal.clone(), &uniform(4), column(&all));
    // Five queries over four keys: the first sees none.
    let five = [f32::NAN, mean(&[0]), mean(&[0, 1]), 7.0 / 3.0, mean(&[0, 1, 2, 3])];
    gives(causal, &uniform(5), column(&five));
}

fn with_lengths(operands: [Operand; 3], lengths: Operand) -> [Operand; 4] {
    let [query, key, value] = operands;
    [query, key, value, lengths]
}

#[test]
fn lower_right_is_anchored_at_the_length_of_each_sequence() {
    let causal = attention(CausalMask::LowerRight, false, true);
    let lengths = |length| ints32(&[1], &[length]);
    gives_about(
        causal.clone(),
        &with_lengths(uniform(2), lengths(3)),
        column(&[mean(&[0, 1]), mean(&[0, 1, 2])]),
    );
    gives(causal.clone(), &with_lengths(uniform(1), lengths(1)), column(&[mean(&[0])]));
    gives(causal, &with_lengths(uniform(2), lengths(1)), column(&[f32::NAN, mean(&[0])]));

    let query = floats(&[2, 1, 1, 1], &[1.0; 2]);
    let key = floats(&[2, 1, 2, 1], &[0.0; 4]);
    let value = floats(&[2, 1, 2, 1], &[1.0, 3.0, 10.0, 30.0]);
    let causal = attention(CausalMask::LowerRight, false, true);
    let expected = Tensor::float(&[2, 1, 1, 1], vec![1.0, 20.0]);
    gives(causal, &[query, key, value, ints32(&[2], &[1, 2])], expected);
}

#[test]
fn keys_from_the_length_on_do_not_exist() {
    let bounded = attention(CausalMask::None, false, true);
    gives(bounded.clone(), &with_lengths(uniform(1), ints32(&[1], &[2])), column(&[mean(&[0, 1])]));
    // What is beyond may be anything, NaN too.
    let [query, _, _] = uniform(1);
    let key = floats(&[1, 1, 2, 1], &[0.0, f32::NAN]);
    let value = floats(&[1, 1, 2, 1], &[5.0, f32::NAN]);
    gives(bounded.clone(), &[query, key, value, ints32(&[1], &[1])], column(&[5.0]));
    gives(bounded.clone(), &with_lengths(uniform(1), ints32(&[1], &[0])), column(&[f32::NAN]));
    for length in [-1, 5] {
        let words = format!("a length of {length} in a cache of 4");
        fails(bounded.clone(), &with_lengths(uniform(1), ints32(&[1], &[length])), &words);
    }
}

#[test]
fn a_mask_of_truth_values_says_where_to_attend() {
    let masked = attention(CausalMask::None, true, false);
    let mask = truths(&[1, 1, 2, 4], &[1, 0, 0, 1, 0, 1, 1, 0]);
    let expected = column(&[mean(&[0, 3]), mean(&[1, 2])]);
    gives(masked.clone(), &with_lengths(uniform(2), mask), expected);
    let nothing = truths(&[1, 1, 1, 4], &[0; 4]);
    gives(masked, &with_lengths(uniform(1), nothing), column(&[f32::NAN]));
}

#[test]
fn a_mask_of_floats_is_added() {
    let masked = attention(CausalMask::None, true, false);
    let mask = floats(&[1, 1, 1, 4], &[3_f32.ln(), 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
    gives_about(masked, &with_lengths(uniform(1), mask), column(&[1.25]));
}

#[test]
fn a_mask_is_repeated_over_sequences_and_heads() {
    let masked = attention(CausalMask::None, true, false);
    let operands = |mask: Operand| {
        let query = floats(&[2, 2, 1, 1], &[1.0; 4]);
        let key = floats(&[2, 1, 2, 1], &[0.0; 4]);
        [query, key, floats(&[2, 1, 2, 1], &[1.0, 2.0, 3.0, 4.0]), mask]
    };
    let expected = |values: &[f32]| Tensor::float(&[2, 2, 1, 1], values.to_vec());
    gives(masked.clone(), &operands(truths(&[1, 1, 1, 2], &[0, 1])), expected(&[2.0, 2.0, 4.0, 4.0]));
    gives(masked.clone(), &operands(truths(&[2, 1, 1, 2], &[0, 1, 1, 0])), expected(&[2.0, 2.0, 3.0, 3.0]));
    gives(masked.clone(), &operands(truths(&[1, 2, 1, 2], &[0, 1, 1, 0])), expected(&[2.0, 1.0, 4.0, 3.0]));
    gives(
        masked,
        &operands(truths(&[2, 2, 1, 2], &[0, 1, 1, 0, 1, 0, 0, 1])),
        expected(&[2.0, 1.0, 3.0, 4.0]),
    );
}

#[test]
fn a_mask_and_lengths_hold_together() {
    let both = attention(CausalMask::None, true, true);
    let [query, key, value] = uniform(1);
    let mask = truths(&[1, 1, 1, 4], &[0, 1, 1, 1]);
    gives(both, &[query, key, value, mask, ints32(&[1], &[3])], column(&[mean(&[1, 2])]));
}

#[test]
fn shapes_fit() {
    let zeros = |shape: &[usize]| floats(shape, &vec![0.0; shape.iter().product()]).dynamic();
    let kv = || zeros(&[1, 2, 3, 4]);
    fails(plain(), &[zeros(&[1, 3, 1, 4]), kv(), kv()], "query [1, 3, 1, 4]");
    fails(plain(), &[zeros(&[2, 2, 1, 4]), kv(), kv()], "query [2, 2, 1, 4]");
    fails(plain(), &[zeros(&[1, 2, 1, 5]), kv(), kv()], "query [1, 2, 1, 5]");
    fails(plain(), &[zeros(&[1, 2, 1, 4]), kv(), zeros(&[1, 2, 2, 4])], "value [1, 2, 2, 4]");
    let query = || zeros(&[1, 2, 1, 4]);
    let masked = attention(CausalMask::None, true, false);
    for mask in [[2, 1, 1, 3], [1, 3, 1, 3], [1, 1, 2, 3], [1, 1, 1, 2]] {
        let mask = truths(&mask, &vec![1; mask.iter().product()]).dynamic();
        fails(masked.clone(), &[query(), kv(), kv(), mask], "a mask of");
    }
    let bounded = attention(CausalMask::None, false, true);
    fails(
        bounded,
        &[query(), kv(), kv(), ints32(&[2], &[1, 1]).dynamic()],
        "kv_lengths of [2] for 1 sequences",
    );
}
