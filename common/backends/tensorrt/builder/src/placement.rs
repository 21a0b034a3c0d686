//! Where the weights of an engine go when the request leaves it open.

use roundhouse_engine::{Precision, Profiles, WeightPlacement};
use roundhouse_graph::Graph;

/// Memory besides the weights that a build takes.
const BASE_BYTES: u64 = 1 << 30;

/// In the plan, if a build with weights of the graph in this precision fits the memory.
pub(crate) fn place(
    graph: &Graph,
    precision: Precision,
    profiles: Profiles,
    available: Option<u64>,
) -> WeightPlacement {
    let needed = embedded_bytes(weight_bytes(graph, precision), profiles);
    match available {
        Some(available) if needed > available => WeightPlacement::Separate,
        // Where the system does not say how much there is, what every user of TensorRT does.
        _ => WeightPlacement::Embedded,
    }
}

/// Memory at the peak of a build with embedded weights. TensorRT makes one copy of the weights, and packs them again for
/// the kernels that read them otherwise; of a second profile it keeps most of them again.
pub(crate) fn embedded_bytes(weight_bytes: u64, profiles: Profiles) -> u64 {
    let tenths = match profiles {
        Profiles::One => 17,
        Profiles::Two => 28,
    };
    (weight_bytes / 10).saturating_mul(tenths).saturating_add(BASE_BYTES)
}

/// Bytes of a graph's weights in a precision.
pub(crate) fn weight_bytes(graph: &Graph, precision: Precision) -> u64 {
    let elements = graph.weights().map(|(_, value, _)| {
        value.shape.iter().fold(1_u64, |product, dim| {
            product.saturating_mul(dim.as_constant().and_then(|dim| u64::try_from(dim).ok()).unwrap_or(0))
        })
    });
    elements.fold(0_u64, u64::saturating_add).saturating_mul(precision.dtype().size() as u64)
}

#[cfg(test)]
mod tests {
    use roundhouse_graph::{DType, WeightExpr};

    use super::*;

    #[test]
    fn weights_are_embedded_where_they_fit() {
        let mut graph = Graph::new("test");
        // 2 GB in fp32, 1 GB in fp16.
        graph.add_weight("w", DType::F32, &[500_000, 1000], WeightExpr::tensor("w"));
        let place = |precision, profiles, gib: u64| place(&graph, precision, profiles, Some(gib << 30));
        assert_eq!(place(Precision::Fp16, Profiles::One, 3), WeightPlacement::Embedded);
        assert_eq!(place(Precision::Fp16, Profiles::One, 2), WeightPlacement::Separate);
        assert_eq!(place(Precision::Fp16, Profiles::Two, 3), WeightPlacement::Separate);
        assert_eq!(place(Precision::Fp32, Profiles::One, 3), WeightPlacement::Separate);
        assert_eq!(place(Precision::Fp32, Profiles::Two, 8), WeightPlacement::Embedded);
        assert_eq!(super::place(&graph, Precision::Fp32, Profiles::One, None), WeightPlacement::Embedded);
    }
}
