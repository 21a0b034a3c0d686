//! What every backend promises, as functions that fail when it does not.
//!
//! A backend's tests make a [`Backend`] of its builder and runtime and the compiler's lowering, and call each function
//! (or [`all`]) as a test of its own:
//!
//! ```no_run
//! # use roundhouse_backend_conformance::{ReferenceBackend, suite};
//! # use roundhouse_engine::EngineOptions;
//! # use roundhouse_graph::{Graph, PassReport};
//! # fn lower(graph: Graph, _: &EngineOptions) -> (Graph, Vec<PassReport>) { (graph, Vec::new()) }
//! let backend = suite::Backend::new(&ReferenceBackend, &ReferenceBackend, &lower);
//! suite::ragged_batches_equal_one_by_one(&backend).unwrap();
//! ```

mod artifact;
mod blocks;
mod compare;
mod components;
mod engine;
mod errors;
mod failure;
mod greedy;
mod op_graphs;
mod ops;
mod quantized;
mod quantized_models;
mod sequences;
mod windows;

use roundhouse_backend::{Builder, Runtime};
use roundhouse_engine::{CacheKind, EngineOptions, Precision};
use roundhouse_graph::{Graph, PassReport};

pub use artifact::{
    broken_files_are_errors, builds_report_progress_and_stop_when_asked, foreign_engines_are_refused,
};
pub use blocks::{blocks_that_do_not_follow_are_refused, imported_blocks_go_on_as_computed_tokens};
pub use components::components;
pub use engine::{MAX_SEQ_LEN, Source};
pub use errors::{failed_steps_change_nothing, requests_beyond_the_engine_are_refused};
pub use failure::Failure;
pub use greedy::tokens_found_are_those_of_the_largest_logits;
pub use op_graphs::{OpCase, op_cases};
pub use ops::ops;
pub use quantized::quantized_products_equal_the_reference;
pub use quantized_models::quantized_models_equal_the_reference;
pub use sequences::{
    chunked_prefill_equals_one_prefill, every_cache_kind_equals_none, logits_equal_the_reference,
    ragged_batches_equal_one_by_one, requests_choose_the_logits, sequences_are_isolated,
    truncated_caches_go_on_as_fresh_ones,
};
pub use windows::{
    long_ragged_batches_equal_one_by_one, long_sequences_are_cut_or_emptied, long_sequences_are_isolated,
    long_sequences_see_their_windows,
};

/// The compiler's lowering: from a model's graph to one of the options' precision and cache kind.
pub type Lower = dyn Fn(Graph, &EngineOptions) -> (Graph, Vec<PassReport>);

/// A backend and how graphs reach it.
pub struct Backend<'a> {
    /// The builder's side.
    pub builder: &'a dyn Builder,
    /// The runtime's side.
    pub runtime: &'a dyn Runtime,
    /// The compiler's lowering.
    pub lower: &'a Lower,
    /// The precisions to test: all that the backend has.
    pub precisions: Vec<Precision>,
    /// The cache kinds to test: all that the backend has.
    pub caches: Vec<CacheKind>,
}

impl<'a> Backend<'a> {
    /// A backend that has every precision and cache kind.
    #[must_use]
    pub fn new(builder: &'a dyn Builder, runtime: &'a dyn Runtime, lower: &'a Lower) -> Self {
        let (precisions, caches) = (Precision::ALL.to_vec(), CacheKind::ALL.to_vec());
        Self { builder, runtime, lower, precisions, caches }
    }

    /// Every precision with every cache kind.
    fn kinds(&self) -> impl Iterator<Item = (Precision, CacheKind)> {
        self.precisions.iter().flat_map(|&precision| self.caches.iter().map(move |&cache| (precision, cache)))
    }
}

/// A function of the suite.
pub type Promise = fn(&Backend<'_>) -> Result<(), Failure>;

/// Every promise by its function's name, but for [`ops()`], in an order that begins with the simplest.
pub const PROMISES: &[(&str, Promise)] = &[
    ("quantized_products_equal_the_reference", quantized_products_equal_the_reference),
    ("quantized_models_equal_the_reference", quantized_models_equal_the_reference),
    ("logits_equal_the_reference", logits_equal_the_reference),
    ("every_cache_kind_equals_none", every_cache_kind_equals_none),
    ("ragged_batches_equal_one_by_one", ragged_batches_equal_one_by_one),
    ("chunked_prefill_equals_one_prefill", chunked_prefill_equals_one_prefill),
    ("truncated_caches_go_on_as_fresh_ones", truncated_caches_go_on_as_fresh_ones),
    ("sequences_are_isolated", sequences_are_isolated),
    ("long_sequences_see_their_windows", long_sequences_see_their_windows),
    ("long_ragged_batches_equal_one_by_one", long_ragged_batches_equal_one_by_one),
    ("long_sequences_are_cut_or_emptied", long_sequences_are_cut_or_emptied),
    ("long_sequences_are_isolated", long_sequences_are_isolated),
    ("imported_blocks_go_on_as_computed_tokens", imported_blocks_go_on_as_computed_tokens),
    ("blocks_that_do_not_follow_are_refused", blocks_that_do_not_follow_are_refused),
    ("requests_choose_the_logits", requests_choose_the_logits),
    ("tokens_found_are_those_of_the_largest_logits", tokens_found_are_those_of_the_largest_logits),
    ("failed_steps_change_nothing", failed_steps_change_nothing),
    ("requests_beyond_the_engine_are_refused", requests_beyond_the_engine_are_refused),
    ("builds_report_progress_and_stop_when_asked", builds_report_progress_and_stop_when_asked),
    ("foreign_engines_are_refused", foreign_engines_are_refused),
    ("broken_files_are_errors", broken_files_are_errors),
];

/// The whole suite. `unsupported_ops` are the cases of [`ops()`] that the backend refuses.
///
/// # Errors
/// The first departure from what the seam promises.
pub fn all(backend: &Backend<'_>, unsupported_ops: &[&str]) -> Result<(), Failure> {
    ops(backend, unsupported_ops)?;
    PROMISES.iter().try_for_each(|(_, promise)| promise(backend))
}
