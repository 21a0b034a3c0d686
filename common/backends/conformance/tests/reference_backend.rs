//! The reference backend passes the suite, over the compiler's lowering.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

use roundhouse_backend_conformance::ReferenceBackend;
use roundhouse_backend_conformance::suite::{self, Backend, Failure};
use roundhouse_engine::EngineOptions;
use roundhouse_graph::{Graph, PassReport};

fn lower(graph: Graph, options: &EngineOptions) -> (Graph, Vec<PassReport>) {
    roundhouse_lowering::lower(graph, options).unwrap()
}

#[track_caller]
fn passes(test: impl Fn(&Backend<'_>) -> Result<(), Failure>) {
    if let Err(failure) = test(&Backend::new(&ReferenceBackend, &ReferenceBackend, &lower)) {
        panic!("{failure}");
    }
}

#[test]
fn ops() {
    passes(|backend| suite::ops(backend, &[]));
}

#[test]
fn quantized_products_equal_the_reference() {
    passes(suite::quantized_products_equal_the_reference);
}

#[test]
fn quantized_models_equal_the_reference() {
    passes(suite::quantized_models_equal_the_reference);
}

#[test]
fn logits_equal_the_reference() {
    passes(suite::logits_equal_the_reference);
}

#[test]
fn every_cache_kind_equals_none() {
    passes(suite::every_cache_kind_equals_none);
}

#[test]
fn ragged_batches_equal_one_by_one() {
    passes(suite::ragged_batches_equal_one_by_one);
}

#[test]
fn chunked_prefill_equals_one_prefill() {
    passes(suite::chunked_prefill_equals_one_prefill);
}

#[test]
fn truncated_caches_go_on_as_fresh_ones() {
    passes(suite::truncated_caches_go_on_as_fresh_ones);
}

#[test]
fn sequences_are_isolated() {
    passes(suite::sequences_are_isolated);
}

#[test]
fn long_sequences_see_their_windows() {
    passes(suite::long_sequences_see_their_windows);
}

#[test]
fn long_ragged_batches_equal_one_by_one() {
    passes(suite::long_ragged_batches_equal_one_by_one);
}

#[test]
fn long_sequences_are_cut_or_emptied() {
    passes(suite::long_sequences_are_cut_or_emptied);
}

#[test]
fn long_sequences_are_isolated() {
    passes(suite::long_sequences_are_isolated);
}

#[test]
fn requests_choose_the_logits() {
    passes(suite::requests_choose_the_logits);
}

#[test]
fn imported_blocks_go_on_as_computed_tokens() {
    passes(suite::imported_blocks_go_on_as_computed_tokens);
}

#[test]
fn blocks_that_do_not_follow_are_refused() {
    passes(suite::blocks_that_do_not_follow_are_refused);
}

#[test]
fn failed_steps_change_nothing() {
    passes(suite::failed_steps_change_nothing);
}

#[test]
fn requests_beyond_the_engine_are_refused() {
    passes(suite::requests_beyond_the_engine_are_refused);
}

#[test]
fn builds_report_progress_and_stop_when_asked() {
    passes(suite::builds_report_progress_and_stop_when_asked);
}

#[test]
fn foreign_engines_are_refused() {
    passes(suite::foreign_engines_are_refused);
}

#[test]
fn broken_files_are_errors() {
    passes(suite::broken_files_are_errors);
}
