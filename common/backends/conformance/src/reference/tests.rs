use roundhouse_graph::{AttentionAttributes, DType, Dim, Graph, Op, Shape, WeightExpr};

use super::{Interpreter, ReferenceError, Rounding};
use crate::{MemoryWeights, Rng, Tensor};

/// A graph whose inputs are given with their shapes; `batch` and `seq` are its symbols 0 and 1.
fn graph(op: Op, inputs: &[(&str, DType, Shape)]) -> Graph {
    let mut graph = Graph::new("test");
    graph.add_symbol("batch", 1, 4);
    graph.add_symbol("seq", 1, 16);
    let ids: Vec<_> =
        inputs.iter().map(|(name, dtype, shape)| graph.add_input(*name, *dtype, shape.clone())).collect();
    let output = graph.add_node(op, &ids).unwrap();
    graph.add_output("out", output);
    graph
}

fn batch() -> Dim {
    Dim::symbol(roundhouse_graph::SymbolId(0))
}

fn seq() -> Dim {
    Dim::symbol(roundhouse_graph::SymbolId(1))
}

fn run(graph: &Graph, inputs: &[(&str, Tensor)]) -> Result<Tensor, ReferenceError> {
    let interpreter = Interpreter::new(graph, &MemoryWeights::new())?;
    Ok(interpreter.run(inputs.iter().cloned())?.remove("out").unwrap())
}

#[track_caller]
fn fails(graph: &Graph, inputs: &[(&str, Tensor)], part: &str) {
    let error = run(graph, inputs).unwrap_err().to_string();
    assert!(error.contains(part), "{part:?} is not in {error:?}");
}

#[test]
fn inputs_have_to_be_the_graphs_and_agree() {
    let shape = || vec![batch(), seq()];
    let add = graph(Op::Add, &[("a", DType::F32, shape()), ("b", DType::F32, shape())]);
    let zeros = Tensor::zeros;
    assert_eq!(run(&add, &[("a", zeros(&[2, 3])), ("b", zeros(&[2, 3]))]).unwrap(), zeros(&[2, 3]));
    fails(&add, &[("a", zeros(&[2, 3]))], "\"b\": it was not given");
    fails(&add, &[("a", zeros(&[2, 3])), ("b", zeros(&[2, 4]))], "\"b\": its shape is [2, 4]");
    fails(&add, &[("a", zeros(&[2, 3])), ("b", zeros(&[2, 3, 1]))], "its shape is");
    fails(&add, &[("a", zeros(&[2, 3])), ("b", Tensor::int(&[2, 3], vec![0; 6]))], "cannot be a f32");
    fails(&add, &[("a", zeros(&[2, 3])), ("b", Tensor::float(&[2, 3], vec![0.0]))], "1 elements cannot");
    fails(&add, &[("a", zeros(&[5, 3])), ("b", zeros(&[5, 3]))], "\"batch\": 5 is outside of 1..=4");
    fails(&add, &[("c", zeros(&[2, 3]))], "no such input");
    fails(&add, &[("a", zeros(&[2, 3])), ("a", zeros(&[2, 3]))], "given twice");
}

#[test]
fn index_inputs_give_symbols_their_values() {
    let mut graph = Graph::new("cut");
    let start = Dim::symbol(graph.add_symbol("start", 0, 8));
    let seq = Dim::symbol(graph.add_symbol("seq", 1, 8));
    let x = graph.add_input("x", DType::I64, vec![10_i64.into()]);
    graph.add_index_input("start_idx", start.clone());
    graph.add_index_input("end_idx", start.clone() + seq.clone());
    let cut = graph.add_node(Op::Slice { axis: 0, start: start.clone(), end: start + seq }, &[x]).unwrap();
    graph.add_output("out", cut);
    let scalar = |value| Tensor::int(&[], vec![value]);
    let inputs = |start, end| {
        [("x", Tensor::int(&[10], (0..10).collect())), ("start_idx", scalar(start)), ("end_idx", scalar(end))]
    };
    assert_eq!(run(&graph, &inputs(3, 5)).unwrap(), Tensor::int(&[2], vec![3, 4]));
    fails(&graph, &inputs(8, 11), "outside of a length of 10");
    fails(&graph, &inputs(3, 3), "\"seq\": 0 is outside of 1..=8");
    fails(&graph, &inputs(9, 10), "\"start\": 9 is outside");
}

#[test]
fn indices_out_of_range_are_errors() {
    let ids = Tensor::int(&[1, 2], vec![0, 5]);
    let table = Tensor::zeros(&[5, 2]);
    let shapes =
        [("ids", DType::I64, vec![batch(), seq()]), ("table", DType::F32, vec![5_i64.into(), 2_i64.into()])];
    fails(&graph(Op::Embedding, &shapes), &[("ids", ids.clone()), ("table", table.clone())], "token 5");
    let reversed = [shapes[1].clone(), shapes[0].clone()];
    let gather = graph(Op::Gather { axis: 0 }, &reversed);
    fails(&gather, &[("ids", ids), ("table", table)], "index 5 is outside of a length of 5");
    let last = graph(
        Op::LastToken,
        &[
            ("x", DType::F32, vec![batch(), seq(), 1_i64.into()]),
            ("query_lengths", DType::I64, vec![batch()]),
        ],
    );
    for length in [0, 4] {
        let lengths = Tensor::int(&[1], vec![length]);
        fails(&last, &[("x", Tensor::zeros(&[1, 3, 1])), ("query_lengths", lengths)], "of 3 tokens");
    }
}

#[test]
fn each_sequence_has_its_own_last_token() {
    let last = graph(
        Op::LastToken,
        &[
            ("x", DType::F32, vec![batch(), seq(), 1_i64.into()]),
            ("query_lengths", DType::I64, vec![batch()]),
        ],
    );
    let x = Tensor::float(&[2, 3, 1], vec![0.0, 1.0, 2.0, 10.0, 11.0, 12.0]);
    let lengths = Tensor::int(&[2], vec![3, 1]);
    let out = run(&last, &[("x", x), ("query_lengths", lengths)]).unwrap();
    assert_eq!(out, Tensor::float(&[2, 1, 1], vec![2.0, 10.0]));
}

/// `[batch, 1, length, 1]`.
fn cache_shape(length: Dim) -> Shape {
    vec![batch(), 1_i64.into(), length, 1_i64.into()]
}

#[test]
fn a_cache_is_written_at_each_sequences_place_and_padding_beyond_it_is_dropped() {
    let update = graph(
        Op::KvCacheUpdate,
        &[
            ("cache", DType::F32, cache_shape(5_i64.into())),
            ("update", DType::F32, cache_shape(seq())),
            ("write_indices", DType::I64, vec![batch()]),
        ],
    );
    let inputs = [
        ("cache", Tensor::zeros(&[2, 1, 5, 1])),
        ("update", Tensor::float(&[2, 1, 2, 1], vec![1.0, 2.0, 3.0, 4.0])),
        ("write_indices", Tensor::int(&[2], vec![1, 4])),
    ];
    let expected = Tensor::float(&[2, 1, 5, 1], vec![0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0]);
    let outputs = Interpreter::new(&update, &MemoryWeights::new()).unwrap().run(inputs).unwrap();
    assert_eq!(outputs["out"], expected);
    assert_eq!(outputs["cache"], expected, "what changed in place is returned under its own name");
}

#[test]
fn padding_in_a_batch_changes_nothing_before_it() {
    let attributes =
        AttentionAttributes { has_kv_lengths: true, window: Some(3), ..AttentionAttributes::causal() };
    let attention = graph(
        Op::ScaledDotProductAttention(attributes),
        &[
            ("q", DType::F32, cache_shape(seq())),
            ("k", DType::F32, cache_shape(8_i64.into())),
            ("v", DType::F32, cache_shape(8_i64.into())),
            ("kv_lengths", DType::I64, vec![batch()]),
        ],
    );
    let mut rng = Rng::new(1);
    let mut random = |length: usize| Tensor::float(&[1, 1, length, 1], rng.uniform_vec(length, 0.0, 2.0));
    let (q, k, v) = (random(2), random(8), random(8));
    let run = |q: Tensor, length: i64| {
        let lengths = Tensor::int(&[1], vec![length]);
        run(&attention, &[("q", q), ("k", k.clone()), ("v", v.clone()), ("kv_lengths", lengths)]).unwrap()
    };
    let alone = run(q.clone(), 6);
    let padded = Tensor::float(&[1, 1, 6, 1], [q.floats(), &[9.0; 4]].concat());
    // Ten: two positions beyond the cache.
    assert_eq!(run(padded, 10).floats()[..2], alone.floats()[..2]);
}

#[test]
fn a_query_that_sees_no_key_gives_zeros() {
    let attributes = AttentionAttributes { has_mask: true, ..AttentionAttributes::causal() };
    let attention = graph(
        Op::ScaledDotProductAttention(attributes),
        &[
            ("q", DType::F32, cache_shape(seq())),
            ("k", DType::F32, cache_shape(seq())),
            ("v", DType::F32, cache_shape(seq())),
            ("mask", DType::Bool, vec![1_i64.into(), 1_i64.into(), seq(), seq()]),
        ],
    );
    let ones = || Tensor::float(&[1, 1, 2, 1], vec![1.0; 2]);
    let mask = Tensor::int(&[1, 1, 2, 2], vec![0, 1, 1, 0]);
    let out = run(&attention, &[("q", ones()), ("k", ones()), ("v", ones()), ("mask", mask)]).unwrap();
    assert_eq!(out.floats(), [0.0, 1.0]);
}

#[test]
fn rounding_is_of_weights_or_of_every_value() {
    let mut graph = Graph::new("rounding");
    let x = graph.add_input("x", DType::F16, vec![1_i64.into()]);
    let weight = graph.add_weight("w", DType::F16, &[1], WeightExpr::tensor("w"));
    let sum = graph.add_node(Op::Add, &[x, weight]).unwrap();
    graph.add_output("out", sum);
    let mut weights = MemoryWeights::new();
    // Near 1, fp16 holds multiples of 2⁻¹⁰.
    let tiny = 1.0 / 4096.0;
    weights.insert("w", &[1], vec![1.0 + tiny]);
    let run = |rounding| {
        let interpreter = Interpreter::new(&graph, &weights).unwrap().with_rounding(rounding);
        interpreter.run([("x", Tensor::float(&[1], vec![tiny]))]).unwrap().remove("out").unwrap()
    };
    assert_eq!(run(Rounding::Weights).floats(), [1.0 + tiny]);
    assert_eq!(run(Rounding::Stored).floats(), [1.0]);
}

#[test]
fn casts_convert() {
    let cast = |to, tensor: Tensor, dtype| {
        run(&graph(Op::Cast { to }, &[("x", dtype, vec![seq()])]), &[("x", tensor)]).unwrap()
    };
    let floats = || Tensor::float(&[3], vec![-1.75, 0.0, 2.000_1]);
    assert_eq!(cast(DType::I64, floats(), DType::F32).ints(), [-1, 0, 2]);
    assert_eq!(cast(DType::Bool, floats(), DType::F32).ints(), [1, 0, 1]);
    assert_eq!(cast(DType::F16, floats(), DType::F32).floats(), [-1.75, 0.0, 2.0]);
    assert_eq!(cast(DType::F32, Tensor::int(&[2], vec![3, -4]), DType::I64).floats(), [3.0, -4.0]);
}

#[test]
fn weights_are_made_by_their_recipes() {
    let mut graph = Graph::new("recipes");
    let x = graph.add_input("x", DType::F32, vec![3_i64.into(), 2_i64.into()]);
    let part = || Box::new(WeightExpr::Rows { of: Box::new(WeightExpr::tensor("a")), start: 1, end: 3 });
    let parts = vec![WeightExpr::Transpose { of: part() }, WeightExpr::tensor("b")];
    let joined = graph.add_weight("w", DType::F32, &[3, 2], WeightExpr::Concat { parts });
    let literal =
        graph.add_weight("l", DType::F32, &[1, 2], WeightExpr::Literal { values: vec![100.0, 200.0] });
    let sum = graph.add_node(Op::Add, &[x, joined]).unwrap();
    let sum = graph.add_node(Op::Add, &[sum, literal]).unwrap();
    graph.add_output("out", sum);
    let mut weights = MemoryWeights::new();
    weights.insert("a", &[3, 2], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    weights.insert("b", &[1, 2], vec![6.0, 7.0]);
    let interpreter = Interpreter::new(&graph, &weights).unwrap();
    let out = interpreter.run([("x", Tensor::zeros(&[3, 2]))]).unwrap();
    assert_eq!(out["out"].floats(), [102.0, 204.0, 103.0, 205.0, 106.0, 207.0]);
    let missing = Interpreter::new(&graph, &MemoryWeights::new()).unwrap_err();
    assert!(matches!(missing, ReferenceError::Weight(_)), "{missing}");
}
