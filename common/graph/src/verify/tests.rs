use super::verify;
use crate::{DType, Dim, Graph, Node, Op, Origin, SymbolId, Value, ValueId, WeightExpr};

/// `x [batch, seq, 8] · weightᵀ + x`, and a cache that `update [batch, 1, seq, 8]` is written into.
fn graph() -> Graph {
    let mut graph = Graph::new("test");
    let batch = Dim::symbol(graph.add_symbol("batch", 1, 4));
    let seq = Dim::symbol(graph.add_symbol("seq", 1, 16));
    let x = graph.add_input("x", DType::F32, vec![batch.clone(), seq.clone(), 8_i64.into()]);
    let cache =
        graph.add_input("cache", DType::F32, vec![batch.clone(), 1_i64.into(), 32_i64.into(), 8_i64.into()]);
    let indices = graph.add_input("write_indices", DType::I64, vec![batch.clone()]);
    let weight = graph.add_weight("weight", DType::F32, &[8, 8], WeightExpr::tensor("w"));
    let y = graph.add_node(Op::Linear, &[x, weight]).unwrap();
    let sum = graph.add_node(Op::Add, &[x, y]).unwrap();
    let shape = vec![batch, 1_i64.into(), seq, 8_i64.into()];
    let update = graph.add_node(Op::Reshape { shape }, &[sum]).unwrap();
    let cache_out = graph.add_node(Op::KvCacheUpdate, &[cache, update, indices]).unwrap();
    graph.add_output("logits", sum);
    graph.add_output("cache_out", cache_out);
    graph
}

/// The graph is refused, after this change, with a message that holds all of `parts`.
#[track_caller]
fn broken(change: impl FnOnce(&mut Graph), parts: &[&str]) {
    let mut graph = graph();
    change(&mut graph);
    let error = verify(&graph).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

fn value<'a>(graph: &'a mut Graph, name: &str) -> &'a mut Value {
    let id = graph.find(name).unwrap();
    &mut graph.values[id.0 as usize]
}

fn node<'a>(graph: &'a mut Graph, op: &str) -> &'a mut Node {
    graph.nodes.iter_mut().find(|node| node.op.name() == op).unwrap()
}

#[test]
fn a_good_graph_verifies() {
    assert_eq!(verify(&graph()), Ok(()));
}

#[test]
fn names_are_unique_and_not_empty() {
    broken(|graph| value(graph, "x").name = "weight".to_owned(), &["graph test", "two values", "weight"]);
    broken(|graph| value(graph, "x").name = String::new(), &["empty"]);
}

#[test]
fn ids_are_in_range() {
    let far = ValueId(1000);
    broken(|graph| node(graph, "add").inputs[1] = far, &["an input of \"logits\"", "1000"]);
    broken(|graph| node(graph, "add").output = far, &["a node's output", "1000"]);
    broken(|graph| graph.inputs[0] = far, &["an input is value 1000"]);
    broken(|graph| graph.outputs[0] = far, &["an output is value 1000"]);
}

#[test]
fn definitions_come_before_uses_and_once() {
    broken(|graph| graph.nodes.swap(0, 1), &["\"logits\" reads \"linear_0\" before it is made"]);
    broken(|graph| graph.nodes.push(graph.nodes[1].clone()), &["two nodes make \"logits\""]);
    broken(|graph| drop(graph.nodes.remove(0)), &["reads \"linear_0\" before"]);
    broken(|graph| drop(graph.nodes.pop()), &["nothing makes \"cache_out\""]);
    broken(
        |graph| {
            let weight = graph.find("weight").unwrap();
            node(graph, "add").output = weight;
        },
        &["a node makes \"weight\""],
    );
}

#[test]
fn inputs_are_listed_once_and_are_inputs() {
    broken(|graph| graph.inputs.push(graph.inputs[0]), &["\"x\" is listed twice"]);
    broken(|graph| graph.inputs = graph.inputs.split_off(1), &["reads \"x\" before it is made"]);
    broken(
        |graph| {
            let weight = graph.find("weight").unwrap();
            graph.inputs.push(weight);
        },
        &["\"weight\" is listed as an input"],
    );
}

#[test]
fn outputs_are_made_by_nodes_and_listed_once() {
    broken(|graph| graph.outputs.clear(), &["no outputs"]);
    broken(|graph| graph.outputs.push(graph.outputs[0]), &["\"logits\" is listed twice"]);
    broken(|graph| graph.outputs[0] = graph.inputs[0], &["output \"x\" is made by no node"]);
}

#[test]
fn stored_types_are_the_inferred_ones() {
    broken(
        |graph| value(graph, "linear_0").dtype = DType::F16,
        &["\"linear_0\"", "f16[batch, seq, 8]", "linear makes f32"],
    );
    broken(|graph| drop(value(graph, "logits").shape.pop()), &["\"logits\"", "f32[batch, seq]", "add makes"]);
    broken(|graph| value(graph, "weight").dtype = DType::F16, &["linear: node \"linear_0\"", "found f16"]);
    broken(|graph| node(graph, "add").inputs.truncate(1), &["add: node \"logits\": takes 2 inputs"]);
}

#[test]
fn symbols_are_sane() {
    let symbol = |change: fn(&mut crate::Symbol)| move |graph: &mut Graph| change(&mut graph.symbols[0]);
    broken(symbol(|symbol| symbol.name = "seq".to_owned()), &["two symbols are named \"seq\""]);
    broken(symbol(|symbol| symbol.min = -1), &["\"batch\"", "-1..=4"]);
    broken(symbol(|symbol| symbol.max = 0), &["\"batch\"", "1..=0"]);
    broken(symbol(|symbol| symbol.max = i64::MAX), &["\"batch\""]);
    broken(
        |graph| {
            graph.symbols.extend((0..100).map(|n| crate::Symbol { name: format!("s{n}"), min: 0, max: 1 }))
        },
        &["102 symbols"],
    );
}

#[test]
fn dimensions_are_sane() {
    broken(
        |graph| value(graph, "x").shape[0] = Dim::symbol(SymbolId(9)),
        &["the shape of \"x\"", "symbol 9"],
    );
    broken(|graph| value(graph, "x").shape[2] = Dim::constant(i64::MAX), &["the shape of \"x\"", "at most"]);
    broken(|graph| value(graph, "x").shape[2] = Dim::constant(-8), &["negative", "-8"]);
    broken(|graph| value(graph, "x").shape = vec![Dim::constant(1); 9], &["9 dimensions"]);
}

#[test]
fn every_symbol_gets_a_value_from_an_input() {
    broken(
        |graph| {
            let start = Dim::symbol(graph.add_symbol("start", 0, 4));
            let x = graph.find("logits").unwrap();
            let op = Op::Slice { axis: 1, start: start.clone(), end: start + 1_i64.into() };
            let cut = graph.add_node(op, &[x]).unwrap();
            graph.add_output("cut", cut);
        },
        &["\"cut\" depends on symbol \"start\""],
    );
    broken(
        |graph| {
            let (a, b) = (graph.add_symbol("a", 0, 4), graph.add_symbol("b", 0, 4));
            graph.add_index_input("both", Dim::symbol(a) + Dim::symbol(b));
        },
        &["\"both\" depends on symbol \"a\""],
    );
    broken(
        |graph| {
            let a = graph.add_symbol("a", 0, 4);
            graph.add_index_input("twice", Dim::symbol(a).times(2));
        },
        &["\"twice\" depends on symbol \"a\""],
    );
}

#[test]
fn index_inputs_bind_symbols_in_order() {
    let mut graph = graph();
    let seq = graph.value(graph.inputs[0]).shape[1].clone();
    let start = Dim::symbol(graph.add_symbol("start", 0, 16));
    graph.add_index_input("end_idx", start.clone() + seq.clone());
    graph.add_index_input("start_idx", start);
    assert_eq!(verify(&graph), Ok(()));
}

#[test]
fn index_inputs_are_i64_scalars() {
    let with_index = |change: fn(&mut Value)| {
        move |graph: &mut Graph| {
            let start = Dim::symbol(graph.add_symbol("start", 0, 4));
            graph.add_index_input("start_idx", start);
            change(value(graph, "start_idx"));
        }
    };
    broken(with_index(|value| value.dtype = DType::F32), &["\"start_idx\" must be i64[]", "f32[]"]);
    broken(with_index(|value| value.shape.push(Dim::constant(1))), &["i64[1]"]);
    broken(
        with_index(|value| value.origin = Origin::Input { equals: Some(Dim::symbol(SymbolId(7))) }),
        &["what \"start_idx\" equals", "symbol 7"],
    );
}

#[test]
fn slices_that_cannot_lie_inside_are_refused() {
    let cut = |start: Dim, end: Dim| {
        move |graph: &mut Graph| {
            let x = graph.find("logits").unwrap();
            let value = graph.add_node(Op::Slice { axis: 1, start, end }, &[x]).unwrap();
            graph.add_output("cut", value);
        }
    };
    let seq = || Dim::symbol(SymbolId(1));
    // A sequence of 20 is longer than any; seq − 17 is below zero for all of 1..=16.
    broken(cut(0_i64.into(), 20_i64.into()), &["\"cut\" cuts 0..20 out of a length of seq"]);
    broken(cut(seq() - 17_i64.into(), seq()), &["seq - 17..seq"]);
    broken(cut(0_i64.into(), Dim::symbol(SymbolId(5))), &["symbol 5"]);
    let mut graph = graph();
    cut(seq() - 1_i64.into(), seq())(&mut graph);
    assert_eq!(verify(&graph), Ok(()));
}

#[test]
fn a_cache_is_not_used_after_it_was_changed_in_place() {
    broken(
        |graph| {
            let (cache, out) = (graph.find("cache").unwrap(), graph.find("cache_out").unwrap());
            let sum = graph.add_node(Op::Add, &[cache, out]).unwrap();
            graph.add_output("sum", sum);
        },
        &["\"sum\" reads \"cache\" after \"cache_out\" changed it"],
    );
    broken(
        |graph| {
            let (cache, indices) = (graph.find("cache_out").unwrap(), graph.find("write_indices").unwrap());
            let twice = graph.add_node(Op::KvCacheUpdate, &[cache, cache, indices]).unwrap();
            graph.add_output("twice", twice);
        },
        &["\"twice\" reads \"cache_out\" and changes it"],
    );
    broken(
        |graph| {
            let (cache, indices) = (graph.find("cache_out").unwrap(), graph.find("write_indices").unwrap());
            let update = graph.nodes[2].output;
            let twice = graph.add_node(Op::KvCacheUpdate, &[cache, update, indices]).unwrap();
            graph.add_output("twice", twice);
        },
        &["\"cache_out\" is an output and \"twice\" changes it"],
    );
    broken(
        |graph| {
            let weight = graph.add_weight("w4", DType::F32, &[4, 1, 32, 8], WeightExpr::tensor("w4"));
            let batch = graph.find("write_indices").unwrap();
            graph.values[batch.0 as usize].shape = vec![4_i64.into()];
            for name in ["x", "cache"] {
                value(graph, name).shape[0] = 4_i64.into();
            }
            for name in ["linear_0", "logits", "reshape_2", "cache_out"] {
                value(graph, name).shape[0] = 4_i64.into();
            }
            if let Op::Reshape { shape } = &mut node(graph, "reshape").op {
                shape[0] = 4_i64.into();
            }
            node(graph, "kv_cache_update").inputs[0] = weight;
        },
        &["\"cache_out\" changes the weight \"w4\""],
    );
}

#[test]
fn weights_are_static_floats_with_whole_recipes() {
    let weight = |change: fn(&mut Value)| move |graph: &mut Graph| change(value(graph, "weight"));
    let recipe =
        |expr: WeightExpr| move |graph: &mut Graph| value(graph, "weight").origin = Origin::Weight { expr };
    broken(
        weight(|weight| weight.shape[0] = Dim::symbol(SymbolId(0))),
        &["\"weight\" has no static shape: [batch, 8]"],
    );
    broken(weight(|weight| weight.shape[0] = Dim::constant(0)), &["no static shape"]);
    broken(weight(|weight| weight.shape = vec![Dim::constant(1 << 40); 2]), &["too many elements"]);
    broken(weight(|weight| weight.dtype = DType::I64), &["\"weight\" is i64"]);
    broken(recipe(WeightExpr::tensor("")), &["without a name"]);
    broken(recipe(WeightExpr::Matrix { name: String::new() }), &["without a name"]);
    broken(recipe(WeightExpr::Concat { parts: vec![] }), &["joins nothing"]);
    let of = || Box::new(WeightExpr::tensor("w"));
    broken(recipe(WeightExpr::Rows { of: of(), start: 3, end: 3 }), &["rows 3..3"]);
    broken(recipe(WeightExpr::Literal { values: vec![0.0; 63] }), &["[8, 8]", "63 values"]);
    broken(recipe(WeightExpr::Literal { values: vec![f32::NAN; 64] }), &["holds NaN"]);
    let deep = (0..40).fold(WeightExpr::tensor("w"), |of, _| WeightExpr::Transpose { of: Box::new(of) });
    broken(recipe(deep), &["too deeply"]);
}
