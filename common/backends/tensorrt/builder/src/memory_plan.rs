//! The memory of a process that loads an engine, as far as the graph says it.

use std::collections::{HashMap, HashSet};

use roundhouse_engine::{AttentionForm, EngineOptions, MemoryPlan};
use roundhouse_graph::{DType, Dim, Graph, Op, Origin, ValueId};
use roundhouse_tensorrt_converters::Converted;

/// Plans the memory of an engine of this graph. The workspace is an estimate: what the graph's own values take at the
/// largest step when none is fused away. TensorRT decides what it is, and says so in the build's log.
pub(crate) fn plan(graph: &Graph, converted: &Converted, options: &EngineOptions) -> MemoryPlan {
    let weights = graph.weights().map(|(id, _, _)| bytes(graph, id, options));
    MemoryPlan {
        weight_bytes: weights.fold(0, u64::saturating_add),
        kv_bytes_per_token: kv_bytes_per_token(graph),
        // Every cache has a row of the longest sequence for each slot.
        kv_rings: Vec::new(),
        workspace_bytes: workspace_bytes(graph, converted, options),
    }
}

/// Keys and values of one token: caches are `[batch, kv_heads, max_seq_len, head_dim]`.
fn kv_bytes_per_token(graph: &Graph) -> u64 {
    let caches = graph
        .inputs()
        .iter()
        .map(|&id| graph.value(id))
        .filter(|value| value.name.starts_with("key_cache_") || value.name.starts_with("value_cache_"));
    let row = caches.map(|cache| match &cache.shape[..] {
        [_, heads, _, width] => count(heads) * count(width) * cache.dtype.size() as u64,
        _ => 0,
    });
    row.sum()
}

fn count(dim: &Dim) -> u64 {
    dim.as_constant().and_then(|dim| u64::try_from(dim).ok()).unwrap_or(0)
}

/// The most bytes of values that are alive at once, the scores of decomposed attention among them.
fn workspace_bytes(graph: &Graph, converted: &Converted, options: &EngineOptions) -> u64 {
    let nodes: Vec<_> = graph.nodes().map(|(_, node)| node).collect();
    let mut last_use = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for &input in &node.inputs {
            last_use.insert(input, index);
        }
    }
    for &output in graph.outputs() {
        last_use.insert(output, nodes.len());
    }
    // A cache that is changed in place is memory of its own.
    let in_place: HashSet<ValueId> =
        nodes.iter().filter(|node| node.op == Op::KvCacheUpdate).map(|node| node.output).collect();
    let is_ours = |id: &ValueId| matches!(graph.value(*id).origin, Origin::Node) && !in_place.contains(id);
    let decomposed: HashSet<&str> = converted
        .attention
        .iter()
        .filter(|choice| choice.form == AttentionForm::Decomposed)
        .map(|choice| choice.node.as_str())
        .collect();
    let (mut alive, mut peak) = (0_u64, 0_u64);
    for (index, node) in nodes.iter().enumerate() {
        if is_ours(&node.output) {
            alive = alive.saturating_add(bytes(graph, node.output, options));
        }
        let has_scores = decomposed.contains(graph.value(node.output).name.as_str());
        let scores = if has_scores { score_bytes(graph, &node.inputs, options) } else { 0 };
        peak = peak.max(alive.saturating_add(scores));
        let used: HashSet<ValueId> = node.inputs.iter().copied().chain([node.output]).collect();
        for id in used.iter().filter(|id| last_use.get(id).is_none_or(|&last| last == index)) {
            if is_ours(id) {
                alive = alive.saturating_sub(bytes(graph, *id, options));
            }
        }
    }
    peak
}

/// Scores and probabilities of one attention, `[batch, heads, seq, length]` in fp32.
fn score_bytes(graph: &Graph, inputs: &[ValueId], options: &EngineOptions) -> u64 {
    let shape = |index: usize| inputs.get(index).map(|&id| &graph.value(id).shape[..]);
    let (Some([batch, heads, seq, _]), Some([_, _, length, _])) = (shape(0), shape(1)) else { return 0 };
    let dims = [batch, heads, seq, length].map(|dim| largest(graph, dim, options));
    let elements = dims.into_iter().fold(1_u64, u64::saturating_mul);
    elements.saturating_mul(2 * DType::F32.size() as u64)
}

/// The bytes of a value at the largest step.
fn bytes(graph: &Graph, id: ValueId, options: &EngineOptions) -> u64 {
    let value = graph.value(id);
    let elements =
        value.shape.iter().fold(1_u64, |product, dim| product.saturating_mul(largest(graph, dim, options)));
    elements.saturating_mul(value.dtype.size() as u64)
}

/// The largest that a dimension can be. No dimension but a constant is longer than the longest batch or sequence.
fn largest(graph: &Graph, dim: &Dim, options: &EngineOptions) -> u64 {
    if let Some(constant) = dim.as_constant() {
        return u64::try_from(constant).unwrap_or(0);
    }
    let most = i64::from(options.max_seq_len.max(options.max_batch_size));
    let value = dim.evaluate(|id| graph.symbols().get(id.0 as usize).map(|symbol| symbol.max.min(most)));
    u64::try_from(value.unwrap_or(most).min(most)).unwrap_or(0)
}
