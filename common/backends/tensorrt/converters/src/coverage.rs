//! What of a graph has a converter.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{DType, Graph};

use crate::options::Options;
use crate::registry;
use crate::site::Site;

/// A node that cannot be converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncovered {
    /// The node's output.
    pub node: String,
    /// Its op.
    pub op: &'static str,
    /// Why not.
    pub reason: String,
}

/// Every node of a lowered graph that cannot be converted, in execution order; none if all can. The graph must verify.
#[must_use]
pub fn coverage(graph: &Graph, options: &EngineOptions) -> Vec<Uncovered> {
    uncovered(graph, &Options::new(options))
}

pub(crate) fn uncovered(graph: &Graph, options: &Options) -> Vec<Uncovered> {
    let nodes = graph.nodes().filter_map(|(_, node)| {
        let site = Site { graph, node, options };
        let bytes = node.inputs.iter().map(|&id| graph.value(id)).find(|value| value.dtype == DType::U8);
        let reason = match (registry::find(&node.op), bytes) {
            (_, Some(weight)) => format!("its weight {:?} is of less than 16 bits", weight.name),
            (Some(converter), None) => (converter.validate)(&site).err()?,
            (None, None) => "the op has no converter".to_owned(),
        };
        Some(Uncovered { node: site.name().to_owned(), op: node.op.name(), reason })
    });
    nodes.collect()
}
