//! What the passes that make quantised products share.

use std::collections::HashSet;

use roundhouse_graph::{
    DType, Graph, GraphError, Node, NodeId, Op, Origin, QuantizedLinearAttributes, Rewriter, ValueId,
    WeightExpr,
};

/// A weight of a product, to be made in parts.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) attributes: QuantizedLinearAttributes,
    /// Of the scales and offsets.
    pub(crate) dtype: DType,
    pub(crate) values: WeightExpr,
    pub(crate) scales: WeightExpr,
    /// If the attributes have them.
    pub(crate) offsets: Option<WeightExpr>,
}

/// The weight that a product multiplies with.
pub(crate) fn weight<'a>(graph: &'a Graph, node: &Node) -> Option<(ValueId, &'a WeightExpr)> {
    let id = *node.inputs.get(1).filter(|_| node.op == Op::Linear)?;
    match &graph.value(id).origin {
        Origin::Weight { expr } => Some((id, expr)),
        _ => None,
    }
}

/// The rows and columns of a weight.
pub(crate) fn sizes(graph: &Graph, weight: ValueId) -> Option<[i64; 2]> {
    match &graph.value(weight).shape[..] {
        [rows, columns] => Some([rows.as_constant()?, columns.as_constant()?]),
        _ => None,
    }
}

/// The checkpoint's tensors that something else than the weight of a product is made of, such as an embedding.
pub(crate) fn tensors_used_otherwise(graph: &Graph) -> HashSet<String> {
    let mut names = HashSet::new();
    for (_, node) in graph.nodes() {
        let of_product = weight(graph, node).map(|(id, _)| id);
        for &input in node.inputs.iter().filter(|&&input| Some(input) != of_product) {
            if let Origin::Weight { expr } = &graph.value(input).origin {
                names.extend(expr.tensors().into_iter().map(str::to_owned));
            }
        }
    }
    names
}

/// Makes a product one with a quantised weight, whose parts are named after the weight.
pub(crate) fn quantize(rewriter: &mut Rewriter, id: NodeId, parts: Parts) -> Result<(), GraphError> {
    let node = rewriter.node(id).clone();
    let Some(&[x, weight]) = node.inputs.first_chunk() else { return Ok(()) };
    let Some([rows, columns]) = sizes(rewriter.graph(), weight) else { return Ok(()) };
    let name = rewriter.value(weight).name.clone();
    let quantization = parts.attributes.quantization;
    let groups = columns / i64::from(quantization.group_size.max(1));
    let bytes = columns * i64::from(quantization.format.bits()) / 8;
    let values = rewriter.add_weight(&format!("{name}.values"), DType::U8, &[rows, bytes], parts.values);
    let scales = rewriter.add_weight(&format!("{name}.scales"), parts.dtype, &[rows, groups], parts.scales);
    let mut inputs = vec![x, values, scales];
    if let Some(offsets) = parts.offsets {
        inputs.push(rewriter.add_weight(&format!("{name}.offsets"), parts.dtype, &[rows, groups], offsets));
    }
    inputs.extend(&node.inputs[2..]);
    rewriter.set_node(id, Op::QuantizedLinear(parts.attributes), &inputs)
}
