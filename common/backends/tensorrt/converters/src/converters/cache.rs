//! The cache that is written in place.

use roundhouse_graph::Origin;
use roundhouse_tensorrt_network::{LayerKind, TensorId};

use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

/// The layer's output has the cache's address, which only an input of the network has; and nothing else may read that
/// input, as TensorRT would be free to run that after the update.
pub(crate) fn validate(site: &Site<'_>) -> Result<(), String> {
    let cache = site.id(0).map_err(|error| error.to_string())?;
    let name = &site.graph.value(cache).name;
    if !matches!(site.graph.value(cache).origin, Origin::Input { .. }) {
        return Err(format!("its cache {name:?} is no input of the graph, so it has no address of its own"));
    }
    let mut readers = site.graph.nodes().filter(|(_, node)| node.inputs.contains(&cache));
    match readers.find(|(_, node)| node.output != site.node.output) {
        Some((_, reader)) => {
            let reader = &site.graph.value(reader.output).name;
            Err(format!("its cache {name:?} is also read by {reader:?}"))
        }
        None => Ok(()),
    }
}

pub(crate) fn kv_cache_update(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let cache = context.operand(site, 0)?;
    let update = context.operand(site, 1)?;
    let write_indices = context.int32(site, 2)?;
    context.layer("update", LayerKind::KvCacheUpdate, &[cache, update, write_indices])
}
