//! Nodes that multiply with weights, plain or quantised.

use roundhouse_graph::{Graph, Node, Op, QuantizedLinearAttributes, ValueId};

/// The inputs of a product by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Product {
    pub(super) x: ValueId,
    /// The matrix, or its bytes.
    pub(super) weight: ValueId,
    pub(super) quantized: Option<QuantizedInputs>,
    pub(super) bias: Option<ValueId>,
    pub(super) output: ValueId,
}

/// What a quantised matrix has beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QuantizedInputs {
    pub(super) attributes: QuantizedLinearAttributes,
    pub(super) scales: ValueId,
    pub(super) offsets: Option<ValueId>,
}

impl Product {
    /// A node as a product, if it is one.
    pub(super) fn of(node: &Node) -> Option<Self> {
        let attributes = match node.op {
            Op::Linear => None,
            Op::QuantizedLinear(attributes) => Some(attributes),
            _ => return None,
        };
        let mut inputs = node.inputs.iter().copied();
        let (x, weight) = (inputs.next()?, inputs.next()?);
        let quantized = match attributes {
            None => None,
            Some(attributes) => {
                let scales = inputs.next()?;
                let offsets = if attributes.has_offsets { Some(inputs.next()?) } else { None };
                Some(QuantizedInputs { attributes, scales, offsets })
            }
        };
        Some(Self { x, weight, quantized, bias: inputs.next(), output: node.output })
    }

    /// Whether the matrices of both, one below the other, are one matrix.
    pub(super) fn is_stored_like(&self, other: &Self, graph: &Graph) -> bool {
        let form = |product: &Self| {
            let dtype = |id: ValueId| graph.value(id).dtype;
            let quantized = product.quantized.map(|parts| (parts.attributes, dtype(parts.scales)));
            (dtype(product.weight), quantized)
        };
        form(self) == form(other)
    }
}
