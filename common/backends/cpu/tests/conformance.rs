//! The suite every backend passes, on the CPU backend with the compiler's lowering.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

use roundhouse_backend_conformance::suite::{self, Backend, Failure};
use roundhouse_backend_cpu::{CpuBuilder, CpuOptions, CpuRuntime};

/// Calls a function of the suite with the backend.
fn conforms(promise: impl Fn(&Backend<'_>) -> Result<(), Failure>) {
    let builder = CpuBuilder::new();
    let runtime = CpuRuntime::new(CpuOptions { threads: Some(2) });
    let lower = |graph, options: &_| roundhouse_lowering::lower(graph, options).unwrap();
    if let Err(failure) = promise(&Backend::new(&builder, &runtime, &lower)) {
        panic!("{failure}");
    }
}

#[test]
fn every_op_is_run_and_none_is_refused() {
    conforms(|backend| suite::ops(backend, &[]));
}

#[test]
fn components_equal_the_reference() {
    let lower = |graph, options: &_| roundhouse_lowering::lower_component(graph, options).unwrap();
    conforms(|backend| suite::components(backend, &lower));
}

#[test]
fn quantized_products_equal_the_reference() {
    conforms(suite::quantized_products_equal_the_reference);
}

#[test]
fn quantized_models_equal_the_reference() {
    conforms(suite::quantized_models_equal_the_reference);
}

#[test]
fn logits_equal_the_reference() {
    conforms(suite::logits_equal_the_reference);
}

#[test]
fn every_cache_kind_equals_none() {
    conforms(suite::every_cache_kind_equals_none);
}

#[test]
fn ragged_batches_equal_one_by_one() {
    conforms(suite::ragged_batches_equal_one_by_one);
}

#[test]
fn chunked_prefill_equals_one_prefill() {
    conforms(suite::chunked_prefill_equals_one_prefill);
}

#[test]
fn truncated_caches_go_on_as_fresh_ones() {
    conforms(suite::truncated_caches_go_on_as_fresh_ones);
}

#[test]
fn sequences_are_isolated() {
    conforms(suite::sequences_are_isolated);
}

#[test]
fn long_sequences_see_their_windows() {
    conforms(suite::long_sequences_see_their_windows);
}

#[test]
fn long_ragged_batches_equal_one_by_one() {
    conforms(suite::long_ragged_batches_equal_one_by_one);
}

#[test]
fn long_sequences_are_cut_or_emptied() {
    conforms(suite::long_sequences_are_cut_or_emptied);
}

#[test]
fn long_sequences_are_isolated() {
    conforms(suite::long_sequences_are_isolated);
}

#[test]
fn requests_choose_the_logits() {
    conforms(suite::requests_choose_the_logits);
}

#[test]
fn tokens_found_are_those_of_the_largest_logits() {
    conforms(suite::tokens_found_are_those_of_the_largest_logits);
}

#[test]
fn imported_blocks_go_on_as_computed_tokens() {
    conforms(suite::imported_blocks_go_on_as_computed_tokens);
}

#[test]
fn blocks_that_do_not_follow_are_refused() {
    conforms(suite::blocks_that_do_not_follow_are_refused);
}

#[test]
fn failed_steps_change_nothing() {
    conforms(suite::failed_steps_change_nothing);
}

#[test]
fn requests_beyond_the_engine_are_refused() {
    conforms(suite::requests_beyond_the_engine_are_refused);
}

#[test]
fn builds_report_progress_and_stop_when_asked() {
    conforms(suite::builds_report_progress_and_stop_when_asked);
}

#[test]
fn foreign_engines_are_refused() {
    conforms(suite::foreign_engines_are_refused);
}

#[test]
fn broken_files_are_errors() {
    conforms(suite::broken_files_are_errors);
}
