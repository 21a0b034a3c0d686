//! The static cache, first form: `new = cat(cache[..start], new tokens, cache[end..])`, attention over `new[..end]`.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{Dim, Graph, GraphError, NodeId, Op, PassReport, Rewriter, ValueId};

use crate::LoweringError;
use crate::static_cache::{POSITIONS, StaticCache, Updated, add_static_cache};

pub(crate) const NAME: &str = "static_cache_v1";

pub(crate) fn run(graph: Graph, options: &EngineOptions) -> Result<(Graph, PassReport), LoweringError> {
    add_static_cache(graph, options, NAME, update)
}

fn update(
    places: &StaticCache,
    rewriter: &mut Rewriter,
    at: NodeId,
    cache: ValueId,
    new: ValueId,
) -> Result<Updated, GraphError> {
    let past = places.past(rewriter, at, cache)?;
    let rest = places.rest(rewriter, at, cache)?;
    let whole = rewriter.insert_before(at, "cache_new", Op::Cat { axis: POSITIONS }, &[past, new, rest])?;
    let visible = StaticCache::cut(rewriter, at, "cache_visible", whole, [&Dim::constant(0), &places.end])?;
    Ok(Updated { visible, cache: whole })
}
