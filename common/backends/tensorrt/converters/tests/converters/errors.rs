//! What cannot be converted, and how it is said.

use roundhouse_backend::BackendError;
use roundhouse_engine::{CacheKind, ComputeCapability, EngineOptions, Precision};
use roundhouse_graph::{
    AttentionAttributes, DType, Dim, Graph, GraphError, Op, Quantization, QuantizedLinearAttributes,
    WeightExpr, WeightFormat,
};
use roundhouse_tensorrt_converters::{ConvertError, convert, coverage};

use crate::support::{lowered_llama, options};

#[test]
fn bf16_needs_targets_that_have_it() {
    let graph_options = options(Precision::Bf16, CacheKind::InPlace);
    let graph = lowered_llama(&graph_options);
    let with = |targets: &[(u8, u8)]| EngineOptions {
        targets: targets.iter().map(|&(major, minor)| ComputeCapability::new(major, minor)).collect(),
        ..graph_options
    };
    let error = convert(&graph, &with(&[(7, 5), (8, 9)])).unwrap_err();
    assert!(matches!(error, ConvertError::Option { option: "targets", .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("sm_75") && message.contains("bf16") && message.contains("sm_80"), "{message}");
    assert!(matches!(BackendError::from(error), BackendError::InvalidArgument(what) if what == message));
    convert(&graph, &with(&[(8, 0), (12, 0)])).unwrap();
    convert(&graph, &with(&[])).unwrap();
    let fp16 = EngineOptions { precision: Precision::Fp16, ..with(&[(7, 5)]) };
    convert(&lowered_llama(&fp16), &fp16).unwrap();
}

/// `x [batch, seq, 16]`, and a symbol `past` of 0 to 8 that an index input binds.
fn graph() -> (Graph, roundhouse_graph::ValueId, [Dim; 3]) {
    let mut graph = Graph::new("test");
    let [batch, seq] = ["batch", "seq"].map(|name| Dim::symbol(graph.add_symbol(name, 1, 8)));
    let past = Dim::symbol(graph.add_symbol("past", 0, 8));
    let x = graph.add_input("x", DType::F32, vec![batch.clone(), seq.clone(), 16_i64.into()]);
    graph.add_index_input("start_idx", past.clone());
    (graph, x, [batch, seq, past])
}

#[test]
fn all_nodes_that_cannot_be_converted_are_listed() {
    let (mut graph, x, [batch, seq, past]) = graph();
    // A cache that a node makes has no address of its own.
    let silu = graph.add_node(Op::Silu, &[x]).unwrap();
    let shape = vec![batch.clone(), 1_i64.into(), seq.clone(), 16_i64.into()];
    let cache = graph.add_node(Op::Reshape { shape }, &[silu]).unwrap();
    let indices = graph.add_input("indices", DType::I64, vec![batch.clone()]);
    let update =
        graph.add_input("update", DType::F32, vec![batch.clone(), 1_i64.into(), 2_i64.into(), 16_i64.into()]);
    let updated = graph.add_node(Op::KvCacheUpdate, &[cache, update, indices]).unwrap();
    // A dimension that may be zero cannot move.
    let cut = Op::Slice { axis: 2, start: 0_i64.into(), end: past.clone() };
    let cut = graph.add_node(cut, &[updated]).unwrap();
    let moved = Op::Reshape { shape: vec![batch, past.clone(), 1_i64.into(), 16_i64.into()] };
    let moved = graph.add_node(moved, &[cut]).unwrap();
    graph.add_output("out", moved);
    // Nor can it get dimensions in front.
    let whole = graph.add_input("row", DType::F32, vec![20_i64.into(), 1_i64.into()]);
    let row = Op::Slice { axis: 0, start: 0_i64.into(), end: past.clone() };
    let row = graph.add_node(row, &[whole]).unwrap();
    let sum = graph.add_node(Op::Add, &[cut, row]).unwrap();
    graph.add_output("sum", sum);

    let options = options(Precision::Fp32, CacheKind::None);
    let uncovered = coverage(&graph, &options);
    let ops: Vec<&str> = uncovered.iter().map(|node| node.op).collect();
    assert_eq!(ops, ["kv_cache_update", "reshape", "add"]);
    assert!(uncovered[0].reason.contains("no address of its own"), "{}", uncovered[0].reason);
    assert!(uncovered[1].reason.contains("past, which may be zero"), "{}", uncovered[1].reason);
    let error = convert(&graph, &options).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(&uncovered[0].node) && message.contains("\"out\""), "{message}");
    let BackendError::UnsupportedNodes { backend: "tensorrt", nodes } = BackendError::from(error) else {
        panic!("another error")
    };
    assert_eq!(nodes.len(), 3);
    assert_eq!((nodes[1].node.as_str(), nodes[1].op.as_str()), ("out", "reshape"));
    assert_eq!(nodes[1].reason, uncovered[1].reason);
}

#[test]
fn attention_over_what_may_be_nothing_is_not_covered() {
    let (mut graph, x, [batch, seq, past]) = graph();
    let shape = vec![batch, 1_i64.into(), seq, 16_i64.into()];
    let heads = graph.add_node(Op::Reshape { shape }, &[x]).unwrap();
    let keys = Op::Slice { axis: 2, start: 0_i64.into(), end: past };
    let keys = graph.add_node(keys, &[heads]).unwrap();
    let attributes = AttentionAttributes { causal: false, ..AttentionAttributes::causal() };
    let attention = Op::ScaledDotProductAttention(attributes);
    let attention = graph.add_node(attention, &[heads, keys, keys]).unwrap();
    graph.add_output("out", attention);
    let uncovered = coverage(&graph, &options(Precision::Fp32, CacheKind::None));
    assert_eq!(uncovered.len(), 1);
    assert_eq!(uncovered[0].reason, "a dimension of its operands, past, may be zero");
}

#[test]
fn weights_of_few_bits_are_not_covered() {
    let (mut graph, x, _) = graph();
    let expr = || WeightExpr::Literal { values: vec![0.0; 64] };
    let bytes = graph.add_weight("bytes", DType::U8, &[4, 16], expr());
    let scales =
        graph.add_weight("scales", DType::F16, &[4, 1], WeightExpr::Literal { values: vec![1.0; 4] });
    let attributes = QuantizedLinearAttributes {
        quantization: Quantization { format: WeightFormat::Int8, group_size: 16 },
        has_offsets: false,
    };
    let y = graph.add_node(Op::QuantizedLinear(attributes), &[x, bytes, scales]).unwrap();
    graph.add_output("out", y);
    let uncovered = coverage(&graph, &options(Precision::Fp32, CacheKind::None));
    assert_eq!(uncovered.len(), 1);
    assert_eq!((uncovered[0].node.as_str(), uncovered[0].op), ("out", "quantized_linear"));
    assert_eq!(uncovered[0].reason, "its weight \"bytes\" is of less than 16 bits");
}

#[test]
fn a_graph_that_does_not_verify_is_refused() {
    let (mut graph, x, _) = graph();
    graph.add_output("out", x);
    let error = convert(&graph, &options(Precision::Fp32, CacheKind::None)).unwrap_err();
    assert!(matches!(error, ConvertError::Graph(GraphError::Structure { .. })), "{error:?}");
    assert!(matches!(BackendError::from(error), BackendError::Graph(_)));
}
