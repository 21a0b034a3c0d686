//! The suite every backend passes, on the emulated device with the compiler's lowering: the kernels that a GPU runs.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

use std::path::Path;
use std::sync::Arc;

use roundhouse_backend_conformance::suite::{self, Backend, Failure};
use roundhouse_cuda_builder::{CudaBuilder, UNSUPPORTED_OPS};
use roundhouse_cuda_emulation::{EmulatedDevice, EmulationCompiler};
use roundhouse_cuda_runtime::CudaRuntime;
use roundhouse_engine::Precision;

/// Calls a function of the suite with the backend.
fn conforms(promise: impl Fn(&Backend<'_>) -> Result<(), Failure>) {
    conforms_in(Precision::ALL, promise);
}

/// The same in these precisions.
fn conforms_in(precisions: &[Precision], promise: impl Fn(&Backend<'_>) -> Result<(), Failure>) {
    let builder = CudaBuilder::new(Arc::new(EmulationCompiler), None);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("cuda-emulation");
    let runtime = CudaRuntime::on(Arc::new(EmulatedDevice::new(folder)));
    let lower = |graph, options: &_| roundhouse_lowering::lower(graph, options).unwrap();
    let backend = Backend::new(&builder, &runtime, &lower);
    if let Err(failure) = promise(&Backend { precisions: precisions.to_vec(), ..backend }) {
        panic!("{failure}");
    }
}

#[test]
fn every_op_of_one_token_is_run_and_those_that_mix_tokens_are_refused() {
    conforms(|backend| suite::ops(backend, UNSUPPORTED_OPS));
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn quantized_products_equal_the_reference() {
    conforms(suite::quantized_products_equal_the_reference);
}

#[test]
fn quantized_models_equal_the_reference_in_fp16() {
    conforms_in(&[Precision::Fp16], suite::quantized_models_equal_the_reference);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn quantized_models_equal_the_reference() {
    conforms(suite::quantized_models_equal_the_reference);
}

#[test]
fn logits_equal_the_reference() {
    conforms(suite::logits_equal_the_reference);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn every_cache_kind_equals_none() {
    conforms(suite::every_cache_kind_equals_none);
}

#[test]
fn ragged_batches_equal_one_by_one() {
    conforms(suite::ragged_batches_equal_one_by_one);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn chunked_prefill_equals_one_prefill() {
    conforms(suite::chunked_prefill_equals_one_prefill);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn truncated_caches_go_on_as_fresh_ones() {
    conforms(suite::truncated_caches_go_on_as_fresh_ones);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn sequences_are_isolated() {
    conforms(suite::sequences_are_isolated);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn long_sequences_see_their_windows() {
    conforms(suite::long_sequences_see_their_windows);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn long_ragged_batches_equal_one_by_one() {
    conforms(suite::long_ragged_batches_equal_one_by_one);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn long_sequences_are_cut_or_emptied() {
    conforms(suite::long_sequences_are_cut_or_emptied);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn long_sequences_are_isolated() {
    conforms(suite::long_sequences_are_isolated);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn requests_choose_the_logits() {
    conforms(suite::requests_choose_the_logits);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
fn tokens_found_are_those_of_the_largest_logits() {
    conforms(suite::tokens_found_are_those_of_the_largest_logits);
}

#[test]
#[ignore = "minutes on the emulation: `make test-cuda`"]
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
