//! Removes nodes that no output needs and weights that no node reads.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{Graph, PassReport, Rewriter};

use crate::LoweringError;

pub(crate) const NAME: &str = "dead_code";

pub(crate) fn run(graph: Graph, _: &EngineOptions) -> Result<(Graph, PassReport), LoweringError> {
    let mut rewriter = Rewriter::new(graph);
    let removed = rewriter.remove_dead();
    let counts = [("removed_nodes", removed.nodes), ("removed_weights", removed.weights)];
    Ok((rewriter.finish()?, PassReport::new(NAME, counts)))
}
