//! Passes from a model's graph to the graph that a backend builds.
//!
//! [`lower`] runs the passes of [`PASSES`] that the options ask for, in that order. A pass is a file: it edits the graph
//! only through a `Rewriter`, which verifies it again, and reports what it changed as counts. What a lowered graph
//! computes is what the model's graph computes; what differs is its signature:
//!
//! | cache | inputs | outputs |
//! |---|---|---|
//! | `none` | `input_ids`, `position_ids` | `logits` |
//! | `static_v1`, `static_v2` | …, `key_cache_0`, `value_cache_0`, …, `start_idx`, `end_idx` | `logits`, `key_cache_0_out`, `value_cache_0_out`, … |
//! | `in_place` | …, `key_cache_0`, `value_cache_0`, …, `write_indices`, `kv_lengths`, `query_lengths` | `logits` |
//!
//! `logits` is f32 in every precision, `[batch, 1, vocab_size]` unless all logits are asked for. Caches have the
//! precision's dtype and the shape `[batch, kv_heads, max_seq_len, head_dim]`, one pair for each attention, numbered in
//! execution order.
//!
//! A vision-language model's language graph has `image_features` and `image_indices` beside `position_ids`; its other
//! components go through [`lower_component`].
//!
//! What [`lower`] returns has its weights in the precision's dtype. For backends that multiply with quantised weights,
//! [`packed_weights()`] then keeps those that the checkpoint has, and [`weight_only_quantization()`] makes them.

#![forbid(unsafe_code)]

mod attention_patterns;
mod attention_sites;
mod constant_fold;
mod dead_code;
mod error;
mod in_place_cache;
mod last_token;
mod literal;
mod packed_weights;
mod precision;
mod quantized_linear;
mod sdpa;
mod static_cache;
mod static_cache_v1;
mod static_cache_v2;
mod symbol_ranges;
mod weight_only_quantization;

use roundhouse_engine::{CacheKind, EngineOptions};
use roundhouse_graph::{Graph, PassReport};

pub use error::LoweringError;
pub use packed_weights::packed_weights;
pub use weight_only_quantization::{
    WEIGHT_ONLY_QUANTIZATION, calibrated_quantization, weight_only_quantization,
};

/// Rewrites a graph that verifies into another that does, and says what it changed.
pub type RunPass = fn(Graph, &EngineOptions) -> Result<(Graph, PassReport), LoweringError>;

/// A pass and when it runs.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// Its name in reports.
    pub name: &'static str,
    /// Whether the options ask for it.
    pub applies: fn(&EngineOptions) -> bool,
    /// Whether it is also one of the graphs beside the language model, which have no sequence.
    pub of_components: bool,
    /// The pass itself.
    pub run: RunPass,
}

/// All passes in their order. Attention is brought into one form before a cache pass looks for it; the cache passes come
/// after the precision, whose dtype their inputs take.
pub const PASSES: &[Pass] = &[
    Pass { name: symbol_ranges::NAME, applies: |_| true, of_components: false, run: symbol_ranges::run },
    Pass { name: constant_fold::NAME, applies: |_| true, of_components: true, run: constant_fold::run },
    Pass { name: sdpa::NAME, applies: |_| true, of_components: true, run: sdpa::run },
    Pass {
        name: last_token::NAME,
        applies: |options| !options.all_logits,
        of_components: false,
        run: last_token::run,
    },
    Pass { name: precision::NAME, applies: |_| true, of_components: true, run: precision::run },
    Pass {
        name: static_cache_v1::NAME,
        applies: |options| options.cache == CacheKind::StaticV1,
        of_components: false,
        run: static_cache_v1::run,
    },
    Pass {
        name: static_cache_v2::NAME,
        applies: |options| options.cache == CacheKind::StaticV2,
        of_components: false,
        run: static_cache_v2::run,
    },
    Pass {
        name: in_place_cache::NAME,
        applies: |options| options.cache == CacheKind::InPlace,
        of_components: false,
        run: in_place_cache::run,
    },
    Pass { name: dead_code::NAME, applies: |_| true, of_components: true, run: dead_code::run },
];

/// Runs the passes that the options ask for over a model's graph.
///
/// # Errors
/// When the options do not fit the model ([`LoweringError::Options`]), or the model has something for which a pass has
/// no equivalent ([`LoweringError::Unsupported`]).
pub fn lower(graph: Graph, options: &EngineOptions) -> Result<(Graph, Vec<PassReport>), LoweringError> {
    run(graph, options, PASSES.iter().filter(|pass| (pass.applies)(options)))
}

/// As [`lower`], over the graph of a component beside the language model.
///
/// # Errors
/// As [`lower`].
pub fn lower_component(
    graph: Graph,
    options: &EngineOptions,
) -> Result<(Graph, Vec<PassReport>), LoweringError> {
    let passes = PASSES.iter().filter(|pass| pass.of_components);
    run(graph, options, passes.filter(|pass| (pass.applies)(options)))
}

fn run<'a>(
    graph: Graph,
    options: &EngineOptions,
    passes: impl Iterator<Item = &'a Pass>,
) -> Result<(Graph, Vec<PassReport>), LoweringError> {
    let mut graph = graph;
    let mut reports = Vec::new();
    for pass in passes {
        let (rewritten, report) = (pass.run)(graph, options)?;
        graph = rewritten;
        reports.push(report);
    }
    Ok((graph, reports))
}
