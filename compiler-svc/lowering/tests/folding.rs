//! Constant folding, dead code and the choice of the last token: what goes, what stays, and that it computes the same.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod support;

use roundhouse_backend_conformance::{Rng, Tensor};
use roundhouse_graph::{DType, Dim, Graph, Op, ValueId, WeightExpr};
use support::{assert_close, ops, run, run_pass};

/// A graph over `x [3, 4, 5]`, whose nodes are `ops` one after the other.
fn chain(ops: &[Op]) -> Graph {
    chain_of(DType::F32, ops)
}

fn chain_of(dtype: DType, ops: &[Op]) -> Graph {
    let mut graph = Graph::new("chain");
    let mut value = graph.add_input("x", dtype, [3, 4, 5].map(Dim::constant).to_vec());
    for op in ops {
        value = graph.add_node(op.clone(), &[value]).unwrap();
    }
    graph.add_output("y", value);
    graph
}

/// Folds, checks that it computes the same, and returns the ops that are left and how many were merged and bypassed.
fn fold(graph: &Graph) -> (Vec<&'static str>, [u64; 2]) {
    let (folded, counts) = run_pass("constant_fold", graph.clone());
    let x = [("x", Tensor::float(&[3, 4, 5], Rng::new(12).uniform_vec(60, 0.0, 3.0)))];
    let [before, after] = [graph, &folded].map(|graph| run(graph, &x).remove("y").unwrap());
    assert_eq!(before.shape, after.shape);
    assert_close(after.floats(), before.floats(), "y");
    let (clean, _) = run_pass("dead_code", folded);
    (ops(&clean), [counts["merged_nodes"], counts["bypassed_nodes"]])
}

fn slice(axis: usize, start: i64, end: i64) -> Op {
    Op::Slice { axis, start: Dim::constant(start), end: Dim::constant(end) }
}

fn reshape(shape: &[i64]) -> Op {
    Op::Reshape { shape: shape.iter().map(|&dim| Dim::constant(dim)).collect() }
}

fn transpose(permutation: &[usize]) -> Op {
    Op::Transpose { permutation: permutation.to_vec() }
}

#[test]
fn identities_are_bypassed() {
    let identities = [
        Op::Scale { factor: 1.0 },
        Op::Cast { to: DType::F32 },
        reshape(&[3, 4, 5]),
        transpose(&[0, 1, 2]),
        slice(1, 0, 4),
        Op::Cat { axis: 2 },
    ];
    for identity in identities {
        let graph = chain(&[Op::Silu, identity.clone(), Op::Silu]);
        assert_eq!(fold(&graph), (vec!["silu", "silu"], [0, 1]), "{identity:?}");
    }
}

#[test]
fn chains_become_one_node() {
    let cases = [
        (
            vec![Op::Scale { factor: 3.0 }, Op::Scale { factor: 0.5 }, Op::Scale { factor: 4.0 }],
            vec!["scale"],
            [2, 0],
        ),
        (vec![reshape(&[12, 5]), reshape(&[60]), reshape(&[5, 12])], vec!["reshape"], [2, 0]),
        (vec![transpose(&[1, 2, 0]), transpose(&[0, 2, 1])], vec!["transpose"], [1, 0]),
        (vec![slice(1, 1, 4), slice(1, 1, 2)], vec!["slice"], [1, 0]),
    ];
    for (nodes, expected, counts) in cases {
        assert_eq!(fold(&chain(&nodes)), (expected, counts), "{nodes:?}");
    }
}

#[test]
fn chains_that_undo_themselves_vanish() {
    let cases = [
        vec![Op::Scale { factor: 4.0 }, Op::Scale { factor: 0.25 }],
        vec![reshape(&[60]), reshape(&[3, 4, 5])],
        vec![transpose(&[1, 2, 0]), transpose(&[2, 0, 1])],
    ];
    for nodes in cases {
        let around = [vec![Op::Silu], nodes.clone(), vec![Op::Silu]].concat();
        assert_eq!(fold(&chain(&around)), (vec!["silu", "silu"], [1, 1]), "{nodes:?}");
    }
}

#[test]
fn casts_are_merged_only_where_nothing_is_lost() {
    let cast = |to| Op::Cast { to };
    let kept = chain(&[cast(DType::F16), cast(DType::F32)]);
    assert_eq!(fold(&kept), (vec!["cast", "cast"], [0, 0]), "the first one rounds");
    let widened = chain_of(DType::Bf16, &[cast(DType::F32), cast(DType::F16)]);
    let (folded, counts) = run_pass("constant_fold", widened);
    assert_eq!((ops(&folded).len(), counts["merged_nodes"]), (2, 1), "the first is dead");
    let (clean, _) = run_pass("dead_code", folded);
    let (_, node) = clean.nodes().next().unwrap();
    assert_eq!((ops(&clean), &node.op), (vec!["cast"], &cast(DType::F16)));
}

#[test]
fn what_changes_something_stays() {
    let cases = [
        vec![slice(1, 0, 3)],
        vec![slice(1, 0, 3), slice(2, 0, 3)],
        vec![transpose(&[2, 1, 0])],
        vec![reshape(&[4, 3, 5])],
        vec![Op::Scale { factor: 1e-30 }, Op::Scale { factor: 1e-30 }],
    ];
    for nodes in cases {
        assert_eq!(fold(&chain(&nodes)), (nodes.iter().map(Op::name).collect(), [0, 0]), "{nodes:?}");
    }
}

#[test]
fn an_identity_between_an_input_and_an_output_stays() {
    assert_eq!(fold(&chain(&[Op::Scale { factor: 1.0 }])), (vec!["scale"], [0, 0]));
}

#[test]
fn an_output_keeps_its_name_when_its_node_is_bypassed() {
    let (folded, _) = run_pass("constant_fold", chain(&[Op::Silu, Op::Scale { factor: 1.0 }]));
    assert_eq!(ops(&folded), ["silu"]);
    assert_eq!(folded.value(folded.outputs()[0]).name, "y");
}

#[test]
fn neutral_operands_are_bypassed() {
    for (op, neutral) in [(Op::Add, 0.0), (Op::Mul, 1.0)] {
        for (number, swapped, expected) in [(neutral, false, 2), (neutral, true, 2), (0.5, false, 3)] {
            let mut graph = chain(&[Op::Silu]);
            let operand = WeightExpr::Literal { values: vec![number; 5] };
            let operand = graph.add_weight("operand", DType::F32, &[5], operand);
            let mut pair: [ValueId; 2] = [graph.outputs()[0], operand];
            if swapped {
                pair.reverse();
            }
            let result = graph.add_node(op.clone(), &pair).unwrap();
            let result = graph.add_node(Op::Silu, &[result]).unwrap();
            graph.add_output("z", result);
            let (folded, _) = run_pass("constant_fold", graph);
            assert_eq!(ops(&folded).len(), expected, "{op:?} {number}");
        }
    }
}

#[test]
fn dead_nodes_and_weights_are_counted() {
    let mut graph = chain(&[Op::Silu]);
    let x = graph.inputs()[0];
    let weight = graph.add_weight("unused", DType::F32, &[5], WeightExpr::Literal { values: vec![1.0; 5] });
    let dead = graph.add_node(Op::Mul, &[x, weight]).unwrap();
    graph.add_node(Op::Silu, &[dead]).unwrap();
    let (clean, counts) = run_pass("dead_code", graph);
    assert_eq!((counts["removed_nodes"], counts["removed_weights"]), (2, 1));
    assert_eq!(ops(&clean), ["silu"]);
    assert!(clean.find("unused").is_none());
}

/// `input_ids [batch, seq]` through an embedding of width 3, and `tail`.
fn embedded(tail: impl FnOnce(&mut Graph, ValueId) -> ValueId) -> Graph {
    let mut graph = Graph::new("embedded");
    let [batch, seq] = [graph.add_symbol("batch", 1, 4), graph.add_symbol("seq", 1, 24)].map(Dim::symbol);
    let ids = graph.add_input("input_ids", DType::I64, vec![batch, seq]);
    let values = Rng::new(13).uniform_vec(30, 0.0, 1.0);
    let table = graph.add_weight("table", DType::F32, &[10, 3], WeightExpr::Literal { values });
    let hidden = graph.add_node(Op::Embedding, &[ids, table]).unwrap();
    let logits = tail(&mut graph, hidden);
    graph.add_output("logits", logits);
    graph
}

/// Checks that the pass keeps the last position of each sequence; its count of nodes on one position, and all ops.
fn last_token(graph: &Graph) -> (u64, Vec<&'static str>) {
    let (lowered, counts) = run_pass("last_token", graph.clone());
    let ids = [("input_ids", Tensor::int(&[2, 4], vec![1, 5, 2, 9, 0, 3, 3, 7]))];
    let [all, last] = [graph, &lowered].map(|graph| run(graph, &ids).remove("logits").unwrap());
    let width = all.shape[2];
    assert_eq!(last.shape, [2, 1, width]);
    let expected: Vec<f32> =
        [3, 7].iter().flat_map(|row| all.floats()[row * width..][..width].to_vec()).collect();
    assert_close(last.floats(), &expected, "logits");
    (counts["nodes_on_one_position"], ops(&lowered))
}

#[test]
fn only_nodes_that_work_on_each_position_move_behind_the_last_token() {
    let whole = embedded(|graph, hidden| {
        let sum = graph.add_node(Op::Add, &[hidden, hidden]).unwrap();
        let weight = graph.add_weight("norm", DType::F32, &[3], WeightExpr::Literal { values: vec![1.0; 3] });
        let normed =
            graph.add_node(Op::RmsNorm { epsilon: 1e-5, unit_offset: false }, &[sum, weight]).unwrap();
        let table = graph.find("table").unwrap();
        let logits = graph.add_node(Op::Linear, &[normed, table]).unwrap();
        graph.add_node(Op::SoftCap { cap: 2.0 }, &[logits]).unwrap()
    });
    assert_eq!(
        last_token(&whole),
        (3, vec!["embedding", "add", "last_token", "rms_norm", "linear", "soft_cap"])
    );
}

#[test]
fn a_value_with_another_reader_stays_whole() {
    let shared = embedded(|graph, hidden| {
        let scaled = graph.add_node(Op::Scale { factor: 2.0 }, &[hidden]).unwrap();
        let logits = graph.add_node(Op::Silu, &[scaled]).unwrap();
        graph.add_output("hidden", scaled);
        logits
    });
    // Only the first output is the logits: put it first.
    let mut rewriter = roundhouse_graph::Rewriter::new(shared);
    let hidden = rewriter.graph().outputs()[0];
    rewriter.remove_output(hidden);
    rewriter.add_output("hidden", hidden).unwrap();
    let shared = rewriter.finish().unwrap();
    assert_eq!(last_token(&shared), (1, vec!["embedding", "scale", "last_token", "silu"]));
}

#[test]
fn logits_that_no_such_node_makes_are_selected_themselves() {
    let sum = embedded(|graph, hidden| graph.add_node(Op::Add, &[hidden, hidden]).unwrap());
    assert_eq!(last_token(&sum), (0, vec!["embedding", "add", "last_token"]));
}
