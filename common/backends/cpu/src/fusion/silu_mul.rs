//! `silu(gate) · up` as one op (SwiGLU), whichever operand comes first.

use roundhouse_backend::BackendError;
use roundhouse_graph::{Graph, NodeId, Op, PassReport, Rewriter, ValueId};

pub(super) fn run(graph: Graph) -> Result<(Graph, PassReport), BackendError> {
    let mut rewriter = Rewriter::new(graph);
    let mut fused = 0;
    for id in rewriter.nodes_where(|node| matches!(node.op, Op::Mul)) {
        let [a, b] = rewriter.node(id).inputs[..] else { continue };
        // SiluMul does not broadcast.
        if rewriter.value(a).shape != rewriter.value(b).shape {
            continue;
        }
        let Some((silu, up)) = [(a, b), (b, a)]
            .into_iter()
            .find_map(|(gated, up)| Some((private_silu(&rewriter, gated).filter(|_| gated != up)?, up)))
        else {
            continue;
        };
        let gate = rewriter.node(silu).inputs[0];
        rewriter.set_node(id, Op::SiluMul, &[gate, up])?;
        rewriter.remove_node(silu)?;
        fused += 1;
    }
    Ok((rewriter.finish()?, PassReport::new("cpu_silu_mul", [("fused", fused)])))
}

/// The silu that makes a value which only one node reads.
fn private_silu(rewriter: &Rewriter, value: ValueId) -> Option<NodeId> {
    rewriter.only_user(value)?;
    rewriter.producer(value).filter(|&id| matches!(rewriter.node(id).op, Op::Silu))
}

#[cfg(test)]
mod tests {
    use roundhouse_graph::{DType, Dim};

    use super::*;

    /// `silu(gate) · up` in one order of operands, with silu's result read once more if asked.
    fn graph(silu_first: bool, read_twice: bool) -> Graph {
        let mut graph = Graph::new("test");
        let shape = vec![Dim::constant(1), Dim::constant(4)];
        let gate = graph.add_input("gate", DType::F32, shape.clone());
        let up = graph.add_input("up", DType::F32, shape);
        let silu = graph.add_node(Op::Silu, &[gate]).unwrap();
        let operands = if silu_first { [silu, up] } else { [up, silu] };
        let product = graph.add_node(Op::Mul, &operands).unwrap();
        graph.add_output("product", product);
        if read_twice {
            graph.add_output("silu", silu);
        }
        graph
    }

    #[test]
    fn silu_and_product_become_one_op_in_either_order() {
        for silu_first in [true, false] {
            let (graph, report) = run(graph(silu_first, false)).unwrap();
            let ops: Vec<_> = graph.nodes().map(|(_, node)| node.op.name()).collect();
            assert_eq!(ops, ["silu_mul"]);
            assert_eq!(report.counts["fused"], 1);
            let node = graph.node(NodeId(0));
            assert_eq!(graph.value(node.inputs[0]).name, "gate");
            assert_eq!(graph.value(node.inputs[1]).name, "up");
        }
    }

    #[test]
    fn a_silu_that_is_read_elsewhere_stays() {
        let (graph, report) = run(graph(true, true)).unwrap();
        assert_eq!(graph.nodes().count(), 2);
        assert_eq!(report.counts["fused"], 0);
    }
}
