//! The cache that is never copied: keys and values are written at each sequence's own place.
//!
//! Adds the inputs `write_indices`, `kv_lengths` and `query_lengths`, `[batch] i64` each: how many tokens a sequence has
//! in the cache, how many afterwards (padding of this step's batch included), and how many of this step's positions
//! are its own.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{AttentionAttributes, DType, Graph, Op, PassReport, Rewriter};

use crate::LoweringError;
use crate::attention_sites::{add_cache_inputs, attention_sites};
use crate::symbol_ranges::batch_and_seq_dims;

pub(crate) const NAME: &str = "in_place_cache";

pub(crate) fn run(graph: Graph, options: &EngineOptions) -> Result<(Graph, PassReport), LoweringError> {
    let [batch, _] = batch_and_seq_dims(&graph, NAME)?;
    let mut rewriter = Rewriter::new(graph);
    let sites = attention_sites(&rewriter, NAME)?;
    let caches = add_cache_inputs(&mut rewriter, &sites, options.max_seq_len);
    let mut add_input = |name: &str| rewriter.add_input(name, DType::I64, vec![batch.clone()]);
    let write_indices = add_input("write_indices");
    let kv_lengths = add_input("kv_lengths");
    let query_lengths = add_input("query_lengths");

    for (site, caches) in sites.iter().zip(&caches) {
        let mut inputs = vec![site.query];
        for ((new, &cache), name) in
            site.key_value.into_iter().zip(caches).zip(["key_update", "value_update"])
        {
            let update = [cache, new, write_indices];
            inputs.push(rewriter.insert_before(site.node, name, Op::KvCacheUpdate, &update)?);
        }
        inputs.push(kv_lengths);
        let attributes = AttentionAttributes { has_kv_lengths: true, ..site.attributes.clone() };
        rewriter.set_node(site.node, Op::ScaledDotProductAttention(attributes), &inputs)?;
    }
    let last_tokens = rewriter.nodes_where(|node| matches!(node.op, Op::LastToken) && node.inputs.len() == 1);
    for &node in &last_tokens {
        let inputs = [rewriter.node(node).inputs[0], query_lengths];
        rewriter.set_inputs(node, &inputs)?;
    }
    let counts = [
        ("attention_nodes", sites.len() as u64),
        ("caches", 2 * sites.len() as u64),
        ("last_token_nodes", last_tokens.len() as u64),
    ];
    Ok((rewriter.finish()?, PassReport::new(NAME, counts)))
}
