//! What both static caches share: the signature, and cutting a cache around the new tokens.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{Dim, Graph, GraphError, NodeId, Op, PassReport, Rewriter, ValueId};

use crate::LoweringError;
use crate::attention_sites::{add_cache_inputs, attention_sites};
use crate::symbol_ranges::batch_and_seq_dims;

/// The axis of positions in keys, values and caches.
pub(crate) const POSITIONS: usize = 2;

/// The places of one step in a cache: the new tokens are positions `start..end` of `0..max_seq_len`.
#[derive(Debug, Clone)]
pub(crate) struct StaticCache {
    /// Tokens in the cache before this step.
    pub(crate) start: Dim,
    /// Tokens in it afterwards: `start + seq`.
    pub(crate) end: Dim,
    /// Its length.
    pub(crate) max_seq_len: Dim,
}

/// The keys (or values) that the step attends to, and the cache that it returns.
pub(crate) struct Updated {
    /// `[batch, kv_heads, end, head_dim]`.
    pub(crate) visible: ValueId,
    /// `[batch, kv_heads, max_seq_len, head_dim]`.
    pub(crate) cache: ValueId,
}

impl StaticCache {
    /// `cache[:, :, start..end]` of these bounds, before `at`.
    pub(crate) fn cut(
        rewriter: &mut Rewriter,
        at: NodeId,
        name: &str,
        cache: ValueId,
        [start, end]: [&Dim; 2],
    ) -> Result<ValueId, GraphError> {
        let slice = Op::Slice { axis: POSITIONS, start: start.clone(), end: end.clone() };
        rewriter.insert_before(at, name, slice, &[cache])
    }

    /// The positions before the new tokens.
    pub(crate) fn past(
        &self,
        rewriter: &mut Rewriter,
        at: NodeId,
        cache: ValueId,
    ) -> Result<ValueId, GraphError> {
        Self::cut(rewriter, at, "cache_past", cache, [&Dim::constant(0), &self.start])
    }

    /// The positions behind the new tokens.
    pub(crate) fn rest(
        &self,
        rewriter: &mut Rewriter,
        at: NodeId,
        cache: ValueId,
    ) -> Result<ValueId, GraphError> {
        Self::cut(rewriter, at, "cache_rest", cache, [&self.end, &self.max_seq_len])
    }
}

/// How one cache and the new tokens' keys (or values) make what is attended to and what is returned; nodes go before the
/// attention.
pub(crate) type Update =
    fn(&StaticCache, &mut Rewriter, NodeId, ValueId, ValueId) -> Result<Updated, GraphError>;

/// Gives a graph a static cache whose update is `update`.
pub(crate) fn add_static_cache(
    graph: Graph,
    options: &EngineOptions,
    pass: &'static str,
    update: Update,
) -> Result<(Graph, PassReport), LoweringError> {
    let [_, seq] = batch_and_seq_dims(&graph, pass)?;
    let mut rewriter = Rewriter::new(graph);
    let sites = attention_sites(&rewriter, pass)?;
    let caches = add_cache_inputs(&mut rewriter, &sites, options.max_seq_len);

    let max_seq_len = i64::from(options.max_seq_len);
    let start = Dim::symbol(rewriter.add_symbol("start", 0, max_seq_len - 1));
    let end = start.clone() + seq;
    rewriter.add_index_input("start_idx", start.clone());
    rewriter.add_index_input("end_idx", end.clone());
    let static_cache = StaticCache { start, end, max_seq_len: Dim::constant(max_seq_len) };

    for (index, (site, caches)) in sites.iter().zip(&caches).enumerate() {
        let mut inputs = vec![site.query];
        for ((new, &cache), what) in site.key_value.into_iter().zip(caches).zip(["key", "value"]) {
            let updated = update(&static_cache, &mut rewriter, site.node, cache, new)?;
            inputs.push(updated.visible);
            rewriter.add_output(&format!("{what}_cache_{index}_out"), updated.cache)?;
        }
        rewriter.set_inputs(site.node, &inputs)?;
    }
    let counts = [("attention_nodes", sites.len() as u64), ("caches", 2 * sites.len() as u64)];
    Ok((rewriter.finish()?, PassReport::new(pass, counts)))
}
