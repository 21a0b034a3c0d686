//! The static cache, second form: `visible = cat(cache[..start], new tokens)`, attention over `visible`, and
//! `cat(visible, cache[end..])` is the new cache.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{Graph, GraphError, NodeId, Op, PassReport, Rewriter, ValueId};

use crate::LoweringError;
use crate::static_cache::{POSITIONS, StaticCache, Updated, add_static_cache};

pub(crate) const NAME: &str = "static_cache_v2";

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
    let visible = rewriter.insert_before(at, "cache_visible", Op::Cat { axis: POSITIONS }, &[past, new])?;
    let rest = places.rest(rewriter, at, cache)?;
    let whole = rewriter.insert_before(at, "cache_new", Op::Cat { axis: POSITIONS }, &[visible, rest])?;
    Ok(Updated { visible, cache: whole })
}
