//! Optimization profiles.

use roundhouse_engine::{CacheKind, EngineOptions, Precision, Profiles, TensorRtOptions};
use roundhouse_tensorrt_network::{InputRange, Profile};

use crate::support::{convert, lowered_llama, options};

fn dimensions(min: &[i64], opt: &[i64], max: &[i64]) -> InputRange {
    InputRange::Dimensions { min: min.to_vec(), opt: opt.to_vec(), max: max.to_vec() }
}

fn values(min: i64, opt: i64, max: i64) -> InputRange {
    InputRange::Values { min: vec![min], opt: vec![opt], max: vec![max] }
}

fn profiles(options: &EngineOptions) -> Vec<Profile> {
    convert(&lowered_llama(options), options).network.profiles
}

fn profile<const N: usize>(inputs: [(&str, InputRange); N]) -> Profile {
    Profile { inputs: inputs.into_iter().map(|(name, range)| (name.to_owned(), range)).collect() }
}

fn two(options: EngineOptions) -> EngineOptions {
    let tensorrt = TensorRtOptions { profiles: Profiles::Two, ..TensorRtOptions::default() };
    EngineOptions { tensorrt: Some(tensorrt), ..options }
}

#[test]
fn without_a_cache_whole_sequences_of_any_length_run() {
    let tokens = || dimensions(&[1, 1], &[1, 20], &[4, 40]);
    let expected = profile([("input_ids", tokens()), ("position_ids", tokens())]);
    assert_eq!(profiles(&options(Precision::Fp16, CacheKind::None)), [expected]);
}

#[test]
fn an_in_place_cache_is_tuned_for_one_token_of_one_sequence() {
    let tokens = || dimensions(&[1, 1], &[1, 1], &[4, 40]);
    let each = || dimensions(&[1], &[1], &[4]);
    let cache = || dimensions(&[1, 2, 40, 16], &[1, 2, 40, 16], &[4, 2, 40, 16]);
    let expected = profile([
        ("input_ids", tokens()),
        ("position_ids", tokens()),
        ("write_indices", each()),
        ("kv_lengths", each()),
        ("query_lengths", each()),
        ("key_cache_0", cache()),
        ("key_cache_1", cache()),
        ("value_cache_0", cache()),
        ("value_cache_1", cache()),
    ]);
    assert_eq!(profiles(&options(Precision::Fp16, CacheKind::InPlace)), [expected]);
}

#[test]
fn indices_of_a_static_cache_stay_inside_it() {
    for cache in [CacheKind::StaticV1, CacheKind::StaticV2] {
        let profiles = profiles(&options(Precision::Fp16, cache));
        let [profile] = &profiles[..] else { panic!("{profiles:?}") };
        assert_eq!(profile.inputs["start_idx"], values(0, 19, 39));
        assert_eq!(profile.inputs["end_idx"], values(1, 20, 40));
        assert_eq!(profile.inputs["input_ids"], dimensions(&[1, 1], &[1, 1], &[4, 40]));
        assert_eq!(
            profile.inputs["key_cache_0"],
            dimensions(&[1, 2, 40, 16], &[1, 2, 40, 16], &[4, 2, 40, 16])
        );
    }
}

#[test]
fn two_profiles_are_one_for_a_token_and_one_for_more() {
    let options = two(options(Precision::Fp16, CacheKind::StaticV2));
    let profiles = profiles(&options);
    let [decode, prefill] = &profiles[..] else { panic!("{profiles:?}") };
    assert_eq!(decode.inputs["input_ids"], dimensions(&[1, 1], &[1, 1], &[4, 1]));
    assert_eq!(decode.inputs["start_idx"], values(0, 19, 39));
    assert_eq!(decode.inputs["end_idx"], values(1, 20, 40));
    assert_eq!(prefill.inputs["input_ids"], dimensions(&[1, 2], &[1, 40], &[4, 40]));
    assert_eq!(prefill.inputs["start_idx"], values(0, 0, 38));
    assert_eq!(prefill.inputs["end_idx"], values(2, 40, 40));
}

#[test]
fn sequences_of_one_token_need_one_profile() {
    let options = EngineOptions { max_seq_len: 1, ..two(options(Precision::Fp16, CacheKind::InPlace)) };
    assert_eq!(profiles(&options).len(), 1);
}

#[test]
fn limits_of_the_options_hold_where_the_graph_allows_more() {
    let wide = options(Precision::Fp32, CacheKind::None);
    let graph = lowered_llama(&wide);
    let narrow = EngineOptions { max_batch_size: 2, max_seq_len: 10, ..wide };
    let profiles = convert(&graph, &narrow).network.profiles;
    assert_eq!(profiles[0].inputs["input_ids"], dimensions(&[1, 1], &[1, 5], &[2, 10]));
}

#[test]
fn every_dynamic_input_has_a_range_of_ordered_vectors() {
    for &cache in CacheKind::ALL {
        for options in [options(Precision::Fp16, cache), two(options(Precision::Fp16, cache))] {
            let network = convert(&lowered_llama(&options), &options).network;
            for profile in &network.profiles {
                for &input in network.inputs() {
                    let input = network.tensor(input);
                    let (min, opt, max) = match &profile.inputs[&input.name] {
                        InputRange::Dimensions { min, opt, max } => (min, opt, max),
                        InputRange::Values { min, opt, max } => {
                            assert!(input.dims.is_empty(), "{}: values of a shape tensor", input.name);
                            (min, opt, max)
                        }
                    };
                    assert!(min.iter().zip(opt).all(|(min, opt)| min <= opt), "{}", input.name);
                    assert!(opt.iter().zip(max).all(|(opt, max)| opt <= max), "{}", input.name);
                }
            }
        }
    }
}
