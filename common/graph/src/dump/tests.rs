use std::fmt::Write as _;

use crate::{
    AttentionAttributes, DType, Dim, GeluApproximation, Graph, GraphError, Op, RotaryAttributes, WeightExpr,
    verify,
};

/// A graph with every op and every kind of value, recipe and dimension.
fn graph() -> Graph {
    let mut graph = Graph::new("every \"op\"");
    let batch = Dim::symbol(graph.add_symbol("batch", 1, 4));
    let seq = Dim::symbol(graph.add_symbol("seq", 1, 16));
    let start = Dim::symbol(graph.add_symbol("start", 0, 15));
    let constant = |value: i64| Dim::constant(value);
    let tokens = vec![batch.clone(), seq.clone()];
    let ids = graph.add_input("input_ids", DType::I64, tokens.clone());
    let positions = graph.add_input("position_ids", DType::I64, tokens);
    let cache_shape = vec![batch.clone(), constant(1), constant(16), constant(4)];
    let cache = graph.add_input("key_cache_0", DType::F16, cache_shape.clone());
    let values = graph.add_input("value_cache_0", DType::F16, cache_shape);
    let indices = graph.add_input("write_indices", DType::I64, vec![batch.clone()]);
    let lengths = graph.add_input("kv_lengths", DType::I64, vec![batch.clone()]);
    graph.add_index_input("start_idx", start.clone());
    graph.add_index_input("end_idx", start.clone() + seq.clone());

    let tensor = |name: &str| Box::new(WeightExpr::tensor(name));
    let table = graph.add_weight("table", DType::F16, &[9, 8], WeightExpr::tensor("embed"));
    let parts = vec![
        WeightExpr::Transpose { of: tensor("a") },
        WeightExpr::Rows { of: tensor("b"), start: 2, end: 6 },
        WeightExpr::Matrix { name: "c".to_owned() },
    ];
    let weight = graph.add_weight("w", DType::F16, &[8, 8], WeightExpr::Concat { parts });
    let bias = graph.add_weight("b", DType::F16, &[8], WeightExpr::Literal { values: vec![0.1; 8] });
    let scale = graph.add_weight("s", DType::F16, &[2], WeightExpr::Literal { values: vec![1.0, -0.5] });

    let mut add = |op: Op, inputs: &[_]| graph.add_node(op, inputs).unwrap();
    let x = add(Op::Embedding, &[ids, table]);
    let x = add(Op::Linear, &[x, weight, bias]);
    let x = add(Op::RmsNorm { epsilon: 1e-6, unit_offset: true }, &[x, bias]);
    let x = add(Op::LayerNorm { epsilon: 1e-5 }, &[x, bias]);
    let gate = add(Op::Silu, &[x]);
    let gate = add(Op::Gelu { approximation: GeluApproximation::Tanh }, &[gate]);
    let x = add(Op::SiluMul, &[gate, x]);
    let x = add(Op::Mul, &[x, bias]);
    let x = add(Op::Add, &[x, gate]);
    let x = add(Op::Scale { factor: 0.3 }, &[x]);
    let shape = vec![batch.clone(), seq.clone(), constant(2), constant(4)];
    let q = add(Op::Reshape { shape }, &[x]);
    let q = add(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[q]);
    let rotary = RotaryAttributes {
        inv_freq: vec![1.0, 1e-4 / 3.0],
        attention_factor: 1.1,
        interleaved: true,
        sections: Vec::new(),
    };
    let q = add(Op::RotaryEmbedding(rotary), &[q, positions]);
    let k = add(Op::Slice { axis: 1, start: constant(1), end: constant(2) }, &[q]);
    let past = add(Op::Slice { axis: 2, start: constant(0), end: start }, &[values]);
    let joined = add(Op::Cat { axis: 2 }, &[past, k]);
    let keys = add(Op::KvCacheUpdate, &[cache, k, indices]);
    let attributes = AttentionAttributes {
        window: Some(4),
        scale: Some(0.5),
        soft_cap: Some(50.0),
        has_kv_lengths: true,
        ..AttentionAttributes::causal()
    };
    let x = add(Op::ScaledDotProductAttention(attributes), &[q, keys, values, lengths]);
    let x = add(Op::MatMul { transpose_b: true }, &[x, x]);
    let x = add(Op::Softmax { axis: 3 }, &[x]);
    let x = add(Op::Gather { axis: 1 }, &[x, indices]);
    let x = add(Op::Cast { to: DType::F32 }, &[x]);
    let x = add(Op::SoftCap { cap: 30.0 }, &[x]);
    let last =
        add(Op::Reshape { shape: vec![batch.clone() + constant(0), seq.clone(), constant(8)] }, &[gate]);
    let last = add(Op::LastToken, &[last]);
    let last = add(Op::Mul, &[last, last]);
    let shape = vec![batch, constant(4), constant(2)];
    let last = add(Op::Reshape { shape }, &[last]);
    let last = add(Op::Mul, &[last, scale]);
    graph.add_output("logits", x);
    graph.add_output("last", last);
    graph.add_output("joined", joined);
    graph
}

#[test]
fn the_graph_has_every_op_and_verifies() {
    let graph = graph();
    verify(&graph).unwrap();
    let mut names: Vec<&str> = graph.nodes().map(|(_, node)| node.op.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 23, "{names:?}");
}

#[test]
fn text_snapshot() {
    assert_eq!(graph().to_text(), include_str!("snapshot.txt"));
}

#[test]
fn dot_snapshot() {
    let mut graph = Graph::new("a \"b\"\\");
    let n = Dim::symbol(graph.add_symbol("n", 1, 4));
    let x = graph.add_input("x", DType::F32, vec![n, 2_i64.into()]);
    let w = graph.add_weight("w", DType::F32, &[3, 2], WeightExpr::tensor("w"));
    let y = graph.add_node(Op::Linear, &[x, w]).unwrap();
    let y = graph.add_node(Op::Softmax { axis: 1 }, &[y]).unwrap();
    graph.add_output("y", y);
    let expected = r#"digraph "a \"b\"\\" {
  node [fontname="monospace"];
  v0 [shape=ellipse, label="input\nx\nf32[n, 2]"];
  v1 [shape=plaintext, label="weight\nw\nf32[3, 2]"];
  v2 [shape=box, label="linear\nlinear_0\nf32[n, 3]"];
  v3 [shape=box, label="softmax axis=1\ny\nf32[n, 3]", style=bold];
  v0 -> v2;
  v1 -> v2;
  v2 -> v3;
}
"#;
    assert_eq!(graph.to_dot(), expected);
}

#[test]
fn json_comes_back_the_same() {
    let graph = graph();
    let json = graph.to_json().unwrap();
    let back = Graph::from_json(&json).unwrap();
    assert_eq!(back, graph);
    assert_eq!(back.to_json().unwrap(), json);
}

#[test]
fn floats_come_back_the_same() {
    let values: Vec<f32> = (0..4096_u32)
        .map(|n| f32::from_bits(n.wrapping_mul(0x9E37_79B9)))
        .map(|value| if value.is_finite() { value } else { f32::MIN_POSITIVE })
        .chain([f32::MAX, f32::MIN, f32::EPSILON, -0.0, 1e-45])
        .collect();
    let mut graph = graph();
    let weight = graph.find("s").unwrap();
    let value = &mut graph.values[weight.0 as usize];
    value.origin = crate::Origin::Weight { expr: WeightExpr::Literal { values: values.clone() } };
    let json = graph.to_json().unwrap();
    // As a value alone: of another length than the weight, which the verifier refuses.
    let back: Graph = serde_json::from_str(&json).unwrap();
    let crate::Origin::Weight { expr: WeightExpr::Literal { values: back } } = &back.value(weight).origin
    else {
        panic!("the weight is a literal");
    };
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(back), bits(&values));
}

#[test]
fn a_dimension_is_a_number_or_a_sum() {
    let dim = |json: &str| serde_json::from_str::<Dim>(json);
    let seq = Dim::symbol(crate::SymbolId(1));
    assert_eq!(serde_json::to_string(&Dim::constant(5)).unwrap(), "5");
    let sum = seq.times(2) + Dim::constant(3);
    assert_eq!(serde_json::to_string(&sum).unwrap(), r#"{"constant":3,"terms":[[1,2]]}"#);
    assert_eq!(dim(r#"{"constant":3,"terms":[[1,1],[1,1],[2,0]]}"#).unwrap(), sum, "as if added up");
    assert_eq!((sum.clone() - seq.times(2)).as_constant(), Some(3));
    assert_eq!(seq.as_symbol(), Some(crate::SymbolId(1)));
    assert_eq!(sum.as_symbol(), None);
    assert_eq!(sum.evaluate(|_| Some(10)), Some(23));
    assert_eq!(sum.evaluate(|_| None), None);
    assert!(dim("1.5").is_err() && dim("\"seq\"").is_err() && dim("99999999999999999999").is_err());
}

#[test]
fn what_is_no_graph_is_an_error() {
    let json = graph().to_json().unwrap();
    for text in ["", "null", "[]", "{}", "{\"name\":1}", &json[1..], &json[..json.len() - 1]] {
        assert!(matches!(Graph::from_json(text), Err(GraphError::Json(_))), "{text:?}");
    }
    let long = " ".repeat(40 << 20);
    assert!(matches!(Graph::from_json(&long), Err(GraphError::Json(_))));
    let broken = json.replace("\"inputs\":[0,8]", "\"inputs\":[0,99]");
    assert_ne!(broken, json);
    assert!(matches!(Graph::from_json(&broken), Err(GraphError::Structure { .. })));
}

#[test]
fn deep_nesting_is_an_error() {
    let mut expr = String::from(r#"{"kind":"tensor","name":"a"}"#);
    for _ in 0..10_000 {
        expr = format!(r#"{{"kind":"transpose","of":{expr}}}"#);
    }
    let json = graph().to_json().unwrap().replace(r#"{"kind":"tensor","name":"embed"}"#, &expr);
    assert!(matches!(Graph::from_json(&json), Err(GraphError::Json(_))));
    // As deep as the parser goes: the verifier refuses it.
    let mut expr = String::from(r#"{"kind":"tensor","name":"a"}"#);
    for _ in 0..100 {
        expr = format!(r#"{{"kind":"transpose","of":{expr}}}"#);
    }
    let json = graph().to_json().unwrap().replace(r#"{"kind":"tensor","name":"embed"}"#, &expr);
    assert!(Graph::from_json(&json).is_err());
}

/// A stream of numbers that a seed determines (SplitMix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// Numbers are replaced one at a time and in pairs: whatever the graph then is, reading it ends in a graph that
/// verifies, dumps and reads again, or in an error.
#[test]
fn hostile_numbers_do_no_harm() {
    let json = graph().to_json().unwrap();
    let bytes = json.as_bytes();
    let mut numbers = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length > 0 && !bytes[at - 1].is_ascii_alphabetic() && bytes[at - 1] != b'_' {
            numbers.push(at..at + length);
        }
        at += length.max(1);
    }
    let hostile = [
        "0",
        "1",
        "2",
        "3",
        "-1",
        "7",
        "1000000",
        "4294967295",
        "1099511627776",
        "9223372036854775807",
        "-9223372036854775808",
    ];
    let mut rng = Rng(1);
    let mut accepted = 0;
    for round in 0..2500 {
        let mut picked = vec![numbers[round % numbers.len()].clone()];
        if round >= numbers.len() {
            picked.push(numbers[rng.below(numbers.len())].clone());
        }
        picked.sort_by_key(|range| std::cmp::Reverse(range.start));
        let mut changed = json.clone();
        for range in picked {
            if changed.get(range.clone()).is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_digit())) {
                changed.replace_range(range, hostile[rng.below(hostile.len())]);
            }
        }
        accepted += u32::from(survives(&changed));
    }
    assert!(accepted > 10, "some changes leave a graph that verifies: {accepted}");
}

/// Bytes are removed, doubled and moved.
#[test]
fn hostile_text_does_no_harm() {
    let json = graph().to_json().unwrap();
    let mut rng = Rng(2);
    for _ in 0..1000 {
        let mut changed = json.clone().into_bytes();
        let (from, length) = (rng.below(changed.len() - 60), 1 + rng.below(60));
        let piece: Vec<u8> = changed[from..from + length].to_vec();
        if rng.below(2) == 0 {
            changed.drain(from..from + length);
        }
        if rng.below(2) == 0 {
            let to = rng.below(changed.len());
            changed.splice(to..to, piece);
        }
        survives(&String::from_utf8_lossy(&changed));
    }
}

/// Whether text is read as a graph, all of whose dumps then work.
fn survives(json: &str) -> bool {
    let Ok(graph) = Graph::from_json(json) else { return false };
    let mut dumps = graph.to_text();
    let _ = write!(dumps, "{}", graph.to_dot());
    assert!(!dumps.is_empty());
    assert_eq!(Graph::from_json(&graph.to_json().unwrap()).as_ref(), Ok(&graph));
    true
}
