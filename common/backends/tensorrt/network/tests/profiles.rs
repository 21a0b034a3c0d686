//! Which profiles fit a network.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

use roundhouse_tensorrt_network::{DataType, InputRange, Network, NetworkError, Profile};

fn network() -> Network {
    let mut network = Network::new("test");
    network.add_input("ids", DataType::Int64, &[-1, 4]).unwrap();
    network.add_input("end_idx", DataType::Int64, &[]).unwrap();
    network.add_input("mask", DataType::Float, &[2]).unwrap();
    network
}

fn dimensions(min: &[i64], opt: &[i64], max: &[i64]) -> InputRange {
    InputRange::Dimensions { min: min.to_vec(), opt: opt.to_vec(), max: max.to_vec() }
}

fn values(min: &[i64], opt: &[i64], max: &[i64]) -> InputRange {
    InputRange::Values { min: min.to_vec(), opt: opt.to_vec(), max: max.to_vec() }
}

fn profile(ranges: &[(&str, InputRange)]) -> Profile {
    Profile { inputs: ranges.iter().map(|(name, range)| ((*name).to_owned(), range.clone())).collect() }
}

fn ids() -> (&'static str, InputRange) {
    ("ids", dimensions(&[1, 4], &[2, 4], &[8, 4]))
}

fn end_idx() -> (&'static str, InputRange) {
    ("end_idx", values(&[0], &[16], &[32]))
}

#[track_caller]
fn refuses(profiles: Vec<Profile>, index: usize, name: &str, words: &str) {
    let mut network = network();
    network.profiles = profiles;
    match network.check_profiles() {
        Err(NetworkError::Profile { profile, input, what }) => {
            assert_eq!((profile, input.as_str()), (index, name), "{what}");
            assert!(what.contains(words), "{what:?} does not say {words:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn ranges_of_dynamic_inputs_and_shape_tensors_fit() {
    let mut network = network();
    assert!(!network.is_shape_tensor("end_idx"));
    network.profiles = vec![profile(&[ids(), end_idx()]); 2];
    network.check_profiles().unwrap();
    assert!(network.is_shape_tensor("end_idx"));
    assert!(!network.is_shape_tensor("ids"));
    assert!(!network.is_shape_tensor("none"));
}

#[test]
fn a_static_input_may_have_its_own_range() {
    let mut network = network();
    network.profiles = vec![profile(&[ids(), ("mask", dimensions(&[2], &[2], &[2]))])];
    network.check_profiles().unwrap();
}

#[test]
fn every_dynamic_input_has_a_range() {
    refuses(vec![profile(&[end_idx()])], 0, "ids", "have no range");
    refuses(vec![profile(&[ids()]), Profile::default()], 1, "ids", "have no range");
}

#[test]
fn a_shape_tensor_of_one_profile_is_one_of_all() {
    refuses(vec![profile(&[ids(), end_idx()]), profile(&[ids()])], 1, "end_idx", "values have no range");
}

#[test]
fn only_inputs_have_ranges() {
    refuses(vec![profile(&[ids(), ("other", dimensions(&[1], &[1], &[1]))])], 0, "other", "no such input");
}

#[test]
fn ranges_have_the_length_of_their_input() {
    refuses(vec![profile(&[("ids", dimensions(&[1], &[2], &[8]))])], 0, "ids", "do not fit");
    refuses(vec![profile(&[("ids", dimensions(&[1, 4], &[2], &[8, 4]))])], 0, "ids", "do not fit");
    refuses(vec![profile(&[ids(), ("end_idx", values(&[], &[], &[]))])], 0, "end_idx", "do not fit");
    refuses(vec![profile(&[("ids", values(&[1, 4], &[1, 4], &[1, 4]))])], 0, "ids", "do not fit");
}

#[test]
fn ranges_are_in_order() {
    refuses(vec![profile(&[("ids", dimensions(&[3, 4], &[2, 4], &[8, 4]))])], 0, "ids", "not in order");
    refuses(vec![profile(&[("ids", dimensions(&[1, 4], &[9, 4], &[8, 4]))])], 0, "ids", "not in order");
}

#[test]
fn ranges_fit_the_dimensions_that_are_known() {
    refuses(vec![profile(&[("ids", dimensions(&[1, 4], &[1, 4], &[1, 5]))])], 0, "ids", "do not fit");
    refuses(vec![profile(&[("ids", dimensions(&[-1, 4], &[1, 4], &[1, 4]))])], 0, "ids", "do not fit");
    refuses(vec![profile(&[ids(), ("mask", dimensions(&[1], &[2], &[2]))])], 0, "mask", "do not fit");
}

#[test]
fn shape_tensors_are_of_integers() {
    refuses(vec![profile(&[ids(), ("mask", values(&[0, 0], &[0, 0], &[1, 1]))])], 0, "mask", "kFLOAT");
}
