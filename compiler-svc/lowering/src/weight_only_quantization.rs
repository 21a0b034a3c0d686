//! Quantises the weights of products; activations stay as they are.
//!
//! Runs after the precision is set: the bytes are made of the checkpoint's numbers, not of rounded ones.

use std::collections::{HashMap, HashSet};

use roundhouse_graph::{
    DType, Graph, NodeId, Op, PassReport, Quantization, QuantizedLinearAttributes, QuantizedPart, Rewriter,
    ValueId, WeightExpr, WeightFormat,
};

use crate::LoweringError;
use crate::quantized_linear::{Parts, quantize, sizes, tensors_used_otherwise, weight};

/// The pass's name in reports.
pub const WEIGHT_ONLY_QUANTIZATION: &str = "weight_only_quantization";

/// The columns that share a scale in weights of eight bits among others of four.
const EIGHT_BITS_GROUP_SIZE: u32 = 128;

/// Turns products into ones with weights of few bits, which the builder makes of the checkpoint's. Left as they are:
/// weights whose tensors are used for something else too (an output layer tied to the embedding), weights whose columns
/// the group size does not divide, and, but for `int8`, the output layer, whose rounding goes into the logits
/// undamped.
///
/// # Errors
/// When a group is of no whole bytes ([`LoweringError::Options`]).
pub fn weight_only_quantization(
    graph: Graph,
    attributes: QuantizedLinearAttributes,
) -> Result<(Graph, PassReport), LoweringError> {
    run(graph, attributes, &HashSet::new())
}

/// As [`weight_only_quantization`], for weights that are calibrated. Two kinds of products, whose rounding loses
/// most, are in eight bits: those that make keys and values, which every later token sees, and those of what an activation
/// function gave.
///
/// # Errors
/// As [`weight_only_quantization`].
pub fn calibrated_quantization(
    graph: Graph,
    attributes: QuantizedLinearAttributes,
) -> Result<(Graph, PassReport), LoweringError> {
    let rewriter = Rewriter::new(graph.clone());
    let mut finer = keys_and_values(&rewriter);
    finer.extend(after_activations(&rewriter));
    run(graph, attributes, &finer)
}

/// `finer` are the products in eight bits.
fn run(
    graph: Graph,
    attributes: QuantizedLinearAttributes,
    finer: &HashSet<NodeId>,
) -> Result<(Graph, PassReport), LoweringError> {
    let Quantization { format, group_size } = attributes.quantization;
    let group_bits = u64::from(group_size) * u64::from(format.bits());
    if group_bits == 0 || !group_bits.is_multiple_of(8) {
        return Err(LoweringError::Options {
            option: "group_size",
            found: group_size.to_string(),
            expected: format!("whole bytes of {}", format.name()),
        });
    }
    let mut rewriter = Rewriter::new(graph);
    let used_otherwise = tensors_used_otherwise(rewriter.graph());
    let output_layers = output_layers(&rewriter);
    let (mut quantized, mut shared, mut indivisible, mut heads) = (0, 0, 0, 0);
    for id in rewriter.nodes_where(|_| true) {
        let graph = rewriter.graph();
        let Some((value, expr)) = weight(graph, rewriter.node(id)) else { continue };
        let columns = sizes(graph, value).map(|[_, columns]| columns);
        if expr.tensors().iter().any(|&tensor| used_otherwise.contains(tensor)) {
            shared += 1;
        } else if columns.is_none_or(|columns| columns % i64::from(group_size) != 0) {
            indivisible += 1;
        } else if format != WeightFormat::Int8 && output_layers.contains(&id) {
            heads += 1;
        } else {
            let attributes = match columns {
                Some(columns) if finer.contains(&id) => eight_bits(attributes, columns),
                _ => attributes,
            };
            let part = |part| WeightExpr::Quantized { of: Box::new(expr.clone()), attributes, part };
            let parts = Parts {
                attributes,
                dtype: DType::F16,
                values: part(QuantizedPart::Values),
                scales: part(QuantizedPart::Scales),
                offsets: attributes.has_offsets.then(|| part(QuantizedPart::Offsets)),
            };
            quantize(&mut rewriter, id, parts)?;
            quantized += 1;
        }
    }
    let removed = rewriter.remove_dead();
    let counts = [
        ("quantized_linears", quantized),
        ("left_shared", shared),
        ("left_indivisible", indivisible),
        ("left_output_layers", heads),
        ("removed_weights", removed.weights),
    ];
    Ok((rewriter.finish()?, PassReport::new(WEIGHT_ONLY_QUANTIZATION, counts)))
}

/// The products that make keys and values.
fn keys_and_values(rewriter: &Rewriter) -> HashSet<NodeId> {
    let mut found = HashSet::new();
    let mut values: Vec<ValueId> = rewriter
        .nodes()
        .filter(|(_, node)| matches!(node.op, Op::ScaledDotProductAttention(_)))
        .flat_map(|(_, node)| node.inputs.get(1..3).unwrap_or_default().to_vec())
        .collect();
    let producers: HashMap<ValueId, NodeId> = rewriter.nodes().map(|(id, node)| (node.output, id)).collect();
    while let Some(value) = values.pop() {
        let Some(&id) = producers.get(&value) else { continue };
        let node = rewriter.node(id);
        if node.op == Op::Linear {
            found.insert(id);
        } else {
            values.extend(&node.inputs);
        }
    }
    found
}

/// The products of what an activation function gave, a gate on it included.
fn after_activations(rewriter: &Rewriter) -> HashSet<NodeId> {
    let producers: HashMap<ValueId, NodeId> = rewriter.nodes().map(|(id, node)| (node.output, id)).collect();
    let is_activated = |value: ValueId| {
        let mut values = vec![value];
        while let Some(value) = values.pop() {
            let Some(node) = producers.get(&value).map(|&id| rewriter.node(id)) else { continue };
            match node.op {
                Op::Silu | Op::SiluMul | Op::Gelu { .. } => return true,
                Op::Mul | Op::Cast { .. } | Op::Reshape { .. } => values.extend(&node.inputs),
                _ => {}
            }
        }
        false
    };
    let products = rewriter.nodes().filter(|(_, node)| node.op == Op::Linear);
    let of_activations =
        products.filter(|(_, node)| node.inputs.first().is_some_and(|&input| is_activated(input)));
    of_activations.map(|(id, _)| id).collect()
}

/// In groups of their own size where it divides the columns, else in those of the others.
fn eight_bits(attributes: QuantizedLinearAttributes, columns: i64) -> QuantizedLinearAttributes {
    let divides = columns % i64::from(EIGHT_BITS_GROUP_SIZE) == 0;
    let group_size = if divides { EIGHT_BITS_GROUP_SIZE } else { attributes.quantization.group_size };
    let quantization = Quantization { format: WeightFormat::Int8, group_size };
    QuantizedLinearAttributes { quantization, has_offsets: false }
}

/// The products that make the outputs, but for what is done to each number or picks some of them.
fn output_layers(rewriter: &Rewriter) -> HashSet<NodeId> {
    let mut found = HashSet::new();
    for &output in rewriter.graph().outputs() {
        let mut value = output;
        while let Some(id) = rewriter.producer(value) {
            let node = rewriter.node(id);
            match (&node.op, node.inputs.first()) {
                (
                    Op::Cast { .. }
                    | Op::Scale { .. }
                    | Op::SoftCap { .. }
                    | Op::LastToken
                    | Op::Slice { .. }
                    | Op::Reshape { .. },
                    Some(&input),
                ) => value = input,
                (Op::Linear, _) => {
                    found.insert(id);
                    break;
                }
                _ => break,
            }
        }
    }
    found
}
