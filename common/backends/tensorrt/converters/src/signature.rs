//! The inputs and outputs of a network: those of the graph.

use roundhouse_graph::Op;
use roundhouse_tensorrt_network::{DYNAMIC, DataType, Dims};

use crate::ConvertError;
use crate::context::Context;

/// Adds the graph's inputs under their own names.
pub(crate) fn inputs(context: &mut Context<'_>) -> Result<(), ConvertError> {
    let graph = context.graph;
    for &id in graph.inputs() {
        let value = graph.value(id);
        let dims: Dims = value.shape.iter().map(|dim| dim.as_constant().unwrap_or(DYNAMIC)).collect();
        let tensor = context
            .network
            .add_input(value.name.clone(), DataType::from(value.dtype), &dims)
            .map_err(|source| ConvertError::Network { node: value.name.clone(), source })?;
        context.bind(id, tensor);
    }
    Ok(())
}

/// Marks the graph's outputs, then every input that is changed in place, as `{input}_out`: the cache that
/// `IKVCacheUpdateLayer` writes is an output of the network at the input's address.
pub(crate) fn outputs(context: &mut Context<'_>) -> Result<(), ConvertError> {
    let graph = context.graph;
    let mut outputs = Vec::new();
    for &id in graph.outputs() {
        outputs.push((id, graph.value(id).name.clone(), None));
    }
    for &input in graph.inputs() {
        let updates = graph.nodes().filter(|(_, node)| node.op == Op::KvCacheUpdate);
        for (_, update) in updates.filter(|(_, node)| node.inputs.first() == Some(&input)) {
            let cache = &graph.value(input).name;
            outputs.push((update.output, format!("{cache}_out"), Some(cache.clone())));
        }
    }
    for (id, name, aliases) in outputs {
        let node = graph.value(id).name.clone();
        let tensor = context.bound(id).ok_or_else(|| ConvertError::Internal {
            node: node.clone(),
            what: "an output was not converted".to_owned(),
        })?;
        let marked = context.network.mark_output(tensor, name, aliases);
        marked.map_err(|source| ConvertError::Network { node, source })?;
    }
    Ok(())
}
