use super::{Removed, Rewriter};
use crate::{DType, Dim, Graph, GraphError, Op, ValueId, WeightExpr};

/// `silu(x · gateᵀ) · (x · upᵀ)`.
fn graph() -> Graph {
    let mut graph = Graph::new("mlp");
    let batch = Dim::symbol(graph.add_symbol("batch", 1, 4));
    let x = graph.add_input("x", DType::F32, vec![batch, 8_i64.into()]);
    let gate = graph.add_weight("gate.weight", DType::F32, &[16, 8], WeightExpr::tensor("g"));
    let up = graph.add_weight("up.weight", DType::F32, &[16, 8], WeightExpr::tensor("u"));
    let gate = graph.add_node(Op::Linear, &[x, gate]).unwrap();
    let gate = graph.add_node(Op::Silu, &[gate]).unwrap();
    let up = graph.add_node(Op::Linear, &[x, up]).unwrap();
    let out = graph.add_node(Op::Mul, &[gate, up]).unwrap();
    graph.add_output("out", out);
    graph
}

fn ops(graph: &Graph) -> Vec<&'static str> {
    graph.nodes().map(|(_, node)| node.op.name()).collect()
}

fn find(rewriter: &Rewriter, op: &str) -> crate::NodeId {
    rewriter.nodes_where(|node| node.op.name() == op)[0]
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, GraphError>, part: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(part), "{part:?} is not in {error:?}");
}

#[test]
fn an_edit_of_nothing_changes_nothing_but_the_order_of_values() {
    let once = Rewriter::new(graph()).finish().unwrap();
    let twice = Rewriter::new(once.clone()).finish().unwrap();
    assert_eq!(once, twice);
    assert_eq!(ops(&once), ops(&graph()));
    let names: Vec<&str> = once.values().map(|(_, value)| value.name.as_str()).collect();
    assert_eq!(names, ["x", "gate.weight", "up.weight", "linear_0", "silu_1", "linear_2", "out"]);
}

/// As a fusion pass does it.
#[test]
fn nodes_are_fused() {
    let mut rewriter = Rewriter::new(graph());
    for mul in rewriter.nodes_where(|node| node.op == Op::Mul) {
        let [gate, up] = rewriter.node(mul).inputs[..] else { panic!("mul has two inputs") };
        let silu = rewriter.producer(gate).unwrap();
        assert_eq!(rewriter.node(silu).op, Op::Silu);
        assert_eq!(rewriter.only_user(gate), Some(mul));
        let inputs = [rewriter.node(silu).inputs[0], up];
        rewriter.set_node(mul, Op::SiluMul, &inputs).unwrap();
        rewriter.remove_node(silu).unwrap();
    }
    let fused = rewriter.finish().unwrap();
    assert_eq!(ops(&fused), ["linear", "linear", "silu_mul"]);
    assert_eq!(fused.value(fused.outputs()[0]).name, "out");
    assert_eq!(fused.values().count(), 6, "the removed value is gone");
}

#[test]
fn nodes_are_inserted_where_asked_and_named_apart() {
    let mut rewriter = Rewriter::new(graph());
    let silu = find(&rewriter, "silu");
    let gate = rewriter.node(silu).inputs[0];
    let before = rewriter.insert_before(silu, "scaled", Op::Scale { factor: 2.0 }, &[gate]).unwrap();
    rewriter.set_inputs(silu, &[before]).unwrap();
    let output = rewriter.node(silu).output;
    let after = rewriter.insert_after(silu, "scaled", Op::Scale { factor: 3.0 }, &[output]).unwrap();
    let made = rewriter.producer(after).unwrap();
    rewriter.replace_uses_after(made, output, after).unwrap();
    let last = rewriter.append("scaled", Op::Scale { factor: 4.0 }, &[after]).unwrap();
    rewriter.add_output("second", last).unwrap();
    let names = |rewriter: &Rewriter, ids: &[ValueId]| -> Vec<String> {
        ids.iter().map(|&id| rewriter.value(id).name.clone()).collect()
    };
    assert_eq!(names(&rewriter, &[before, after, last]), ["scaled", "scaled_1", "second"]);
    assert_eq!(rewriter.find("scaled_1"), Some(after));
    let graph = rewriter.finish().unwrap();
    assert_eq!(ops(&graph), ["linear", "scale", "silu", "scale", "linear", "mul", "scale"]);
    let outputs: Vec<&str> = graph.outputs().iter().map(|&id| graph.value(id).name.as_str()).collect();
    assert_eq!(outputs, ["out", "second"]);
}

#[test]
fn uses_are_replaced_everywhere_or_after_a_node() {
    let mut rewriter = Rewriter::new(graph());
    let x = rewriter.find("x").unwrap();
    let silu = find(&rewriter, "silu");
    assert_eq!(rewriter.users(x).len(), 2);
    let scaled = rewriter.insert_after(silu, "scaled", Op::Scale { factor: 2.0 }, &[x]).unwrap();
    let made = rewriter.producer(scaled).unwrap();
    rewriter.replace_uses_after(made, x, scaled).unwrap();
    assert_eq!(rewriter.users(x).len(), 2, "the first linear and the new node");
    assert_eq!(rewriter.users(scaled).len(), 1, "the second linear");
    let graph = rewriter.finish().unwrap();
    assert_eq!(ops(&graph), ["linear", "silu", "scale", "linear", "mul"]);

    // Everywhere is also before it is made: finish refuses.
    let mut rewriter = Rewriter::new(graph);
    let (x, scaled) = (rewriter.find("x").unwrap(), rewriter.find("scaled").unwrap());
    rewriter.replace_uses(x, scaled).unwrap();
    refused(rewriter.finish(), "before it is made");
}

#[test]
fn a_replaced_output_keeps_its_name() {
    let mut rewriter = Rewriter::new(graph());
    let out = rewriter.graph().outputs()[0];
    let scaled = rewriter.append("scaled", Op::Scale { factor: 2.0 }, &[out]).unwrap();
    let x = rewriter.find("x").unwrap();
    refused(rewriter.set_output(0, x), "cannot become \"x\"");
    rewriter.set_output(0, scaled).unwrap();
    refused(rewriter.set_output(1, scaled), "no output 1");
    let graph = rewriter.finish().unwrap();
    let out = graph.outputs()[0];
    assert_eq!(graph.value(out).name, "out");
    assert_eq!(ops(&graph).last(), Some(&"scale"));
    assert!(graph.find("scaled").is_some(), "the old output has the other name");
}

/// As the precision pass does it.
#[test]
fn dtypes_of_inputs_and_weights_carry_through() {
    let mut rewriter = Rewriter::new(graph());
    let floats: Vec<ValueId> = rewriter
        .graph()
        .inputs()
        .iter()
        .copied()
        .chain(rewriter.graph().weights().map(|(id, ..)| id))
        .collect();
    for id in floats {
        rewriter.set_dtype(id, DType::F16).unwrap();
    }
    let out = rewriter.graph().outputs()[0];
    refused(rewriter.set_dtype(out, DType::F16), "follows from its node");
    assert_eq!(rewriter.value(out).dtype, DType::F32);
    rewriter.reinfer().unwrap();
    assert_eq!(rewriter.value(out).dtype, DType::F16);
    let graph = rewriter.finish().unwrap();
    assert!(graph.values().all(|(_, value)| value.dtype == DType::F16));
}

#[test]
fn an_edit_that_fits_no_longer_is_refused_at_the_end() {
    let mut rewriter = Rewriter::new(graph());
    let weight = rewriter.find("up.weight").unwrap();
    rewriter.set_dtype(weight, DType::F16).unwrap();
    refused(rewriter.finish(), "linear: node \"linear_2\": input 1 (weight");
}

#[test]
fn an_op_that_does_not_fit_is_refused_at_once_and_changes_nothing() {
    let mut rewriter = Rewriter::new(graph());
    let mul = find(&rewriter, "mul");
    refused(rewriter.set_op(mul, Op::Silu), "silu takes 1 inputs and was given 2");
    let x = rewriter.find("x").unwrap();
    refused(rewriter.insert_before(mul, "bad", Op::Mul, &[x]), "mul takes 2");
    assert_eq!(rewriter.finish().unwrap(), Rewriter::new(graph()).finish().unwrap());
}

#[test]
fn dead_nodes_and_weights_are_removed() {
    let mut rewriter = Rewriter::new(graph());
    assert_eq!(rewriter.remove_dead(), Removed::default());
    let (mul, silu) = (find(&rewriter, "mul"), find(&rewriter, "silu"));
    let gate = rewriter.node(silu).output;
    rewriter.set_inputs(mul, &[gate, gate]).unwrap();
    assert_eq!(rewriter.remove_dead(), Removed { nodes: 1, weights: 1 });
    assert_eq!(rewriter.remove_dead(), Removed::default());
    let graph = rewriter.finish().unwrap();
    assert_eq!(ops(&graph), ["linear", "silu", "mul"]);
    assert_eq!(graph.find("up.weight"), None);
}

#[test]
fn a_removed_weight_comes_back_when_it_is_added_again() {
    let mut rewriter = Rewriter::new(graph());
    let (mul, silu) = (find(&rewriter, "mul"), find(&rewriter, "silu"));
    let inputs = rewriter.node(mul).inputs.clone();
    let gate = rewriter.node(silu).output;
    rewriter.set_inputs(mul, &[gate, gate]).unwrap();
    rewriter.remove_dead();
    let up = rewriter.add_weight("up.weight", DType::F32, &[16, 8], WeightExpr::tensor("u"));
    let x = rewriter.find("x").unwrap();
    let linear = rewriter.insert_before(mul, "up", Op::Linear, &[x, up]).unwrap();
    rewriter.set_inputs(mul, &[inputs[0], linear]).unwrap();
    let graph = rewriter.finish().unwrap();
    assert_eq!(ops(&graph), ["linear", "silu", "linear", "mul"]);
}

#[test]
fn what_is_in_use_cannot_be_removed() {
    let mut rewriter = Rewriter::new(graph());
    let (mul, silu) = (find(&rewriter, "mul"), find(&rewriter, "silu"));
    refused(rewriter.remove_node(silu), "\"silu_1\" cannot go: \"out\" reads it");
    refused(rewriter.remove_node(mul), "it is an output");
    let x = rewriter.find("x").unwrap();
    refused(rewriter.remove_input(x), "input \"x\" cannot go: \"linear_0\" reads it");
    let weight = rewriter.find("up.weight").unwrap();
    refused(rewriter.remove_input(weight), "is no input");
}

/// As the static cache passes do it.
#[test]
fn inputs_outputs_and_symbols_are_added() {
    let mut rewriter = Rewriter::new(graph());
    let start = Dim::symbol(rewriter.add_symbol("start", 0, 8));
    let cache = rewriter.add_input("cache", DType::F32, vec![32_i64.into()]);
    rewriter.add_index_input("start_idx", start.clone());
    let unused = rewriter.add_input("unused", DType::I64, vec![]);
    let past =
        rewriter.append("past", Op::Slice { axis: 0, start: 0_i64.into(), end: start }, &[cache]).unwrap();
    rewriter.add_output("past_out", past).unwrap();
    refused(rewriter.add_output("again", past), "cannot become output");
    refused(rewriter.add_output("cache_out", cache), "cannot become output");
    refused(rewriter.rename(past, "x"), "the name is taken");
    rewriter.remove_input(unused).unwrap();
    let symbol = rewriter.graph().symbols().len() - 1;
    rewriter.set_symbol_range(crate::SymbolId(symbol as u32), 0, 30);
    let graph = rewriter.finish().unwrap();
    let names =
        |ids: &[ValueId]| -> Vec<String> { ids.iter().map(|&id| graph.value(id).name.clone()).collect() };
    assert_eq!(names(graph.inputs()), ["x", "cache", "start_idx"]);
    assert_eq!(names(graph.outputs()), ["out", "past_out"]);
    assert_eq!(graph.symbols()[1].max, 30);
}

#[test]
fn outputs_and_inputs_change() {
    let mut rewriter = Rewriter::new(graph());
    let silu = find(&rewriter, "silu");
    let (gate, out) = (rewriter.node(silu).output, rewriter.graph().outputs()[0]);
    rewriter.add_output("gate", gate).unwrap();
    rewriter.remove_output(out);
    let x = rewriter.find("x").unwrap();
    rewriter.set_input_shape(x, vec![3_i64.into(), 8_i64.into()]).unwrap();
    refused(rewriter.set_input_shape(gate, vec![]), "\"gate\" is no input");
    rewriter.remove_dead();
    let weight = rewriter.find("gate.weight").unwrap();
    rewriter.set_weight_expr(weight, WeightExpr::tensor("other")).unwrap();
    refused(rewriter.set_weight_expr(x, WeightExpr::tensor("other")), "is no weight");
    let graph = rewriter.finish().unwrap();
    assert_eq!(ops(&graph), ["linear", "silu"]);
    assert_eq!(graph.value(graph.outputs()[0]).shape, [Dim::constant(3), Dim::constant(16)]);
    assert_eq!(graph.weights().next().map(|(.., expr)| expr.clone()), Some(WeightExpr::tensor("other")));
}
