//! The interpreter computes what PyTorch computes (`golden/make_ops.py`).

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::collections::BTreeMap;

use roundhouse_backend_conformance::{Interpreter, MemoryWeights, Tensor};
use roundhouse_graph::{AttentionAttributes, DType, Dim, GeluApproximation, Graph, Op, RotaryAttributes};
use serde_json::Value;

fn tensor(json: &Value) -> Tensor {
    let shape: Vec<usize> = serde_json::from_value(json["shape"].clone()).unwrap();
    if let Some(values) = json.get("float") {
        return Tensor::float(&shape, serde_json::from_value(values.clone()).unwrap());
    }
    let number = |value: &Value| value.as_i64().unwrap_or_else(|| i64::from(value.as_bool().unwrap()));
    Tensor::int(&shape, json["int"].as_array().unwrap().iter().map(number).collect())
}

/// The op of each case, and the dtype of its integer inputs.
fn ops() -> BTreeMap<&'static str, Op> {
    let rotary = |inv_freq: &[f32], interleaved| {
        let inv_freq = inv_freq.to_vec();
        Op::RotaryEmbedding(RotaryAttributes {
            inv_freq,
            attention_factor: 1.0,
            interleaved,
            sections: Vec::new(),
        })
    };
    let attention = |change: fn(&mut AttentionAttributes)| {
        let mut attributes = AttentionAttributes::causal();
        change(&mut attributes);
        Op::ScaledDotProductAttention(attributes)
    };
    BTreeMap::from([
        ("silu", Op::Silu),
        ("gelu", Op::Gelu { approximation: GeluApproximation::None }),
        ("gelu_tanh", Op::Gelu { approximation: GeluApproximation::Tanh }),
        ("soft_cap", Op::SoftCap { cap: 3.0 }),
        ("softmax_axis_1", Op::Softmax { axis: 1 }),
        ("rms_norm", Op::RmsNorm { epsilon: 1e-3, unit_offset: false }),
        ("rms_norm_unit_offset", Op::RmsNorm { epsilon: 1e-3, unit_offset: true }),
        ("layer_norm", Op::LayerNorm { epsilon: 1e-3 }),
        ("linear", Op::Linear),
        ("matmul", Op::MatMul { transpose_b: false }),
        ("matmul_transposed", Op::MatMul { transpose_b: true }),
        ("embedding", Op::Embedding),
        ("add", Op::Add),
        ("mul", Op::Mul),
        ("cat_axis_1", Op::Cat { axis: 1 }),
        ("slice_axis_1", Op::Slice { axis: 1, start: 1_i64.into(), end: 3_i64.into() }),
        ("transpose_2_0_1", Op::Transpose { permutation: vec![2, 0, 1] }),
        ("gather_axis_1", Op::Gather { axis: 1 }),
        ("rotary_embedding", rotary(&[1.0, 0.3, 0.09], false)),
        ("rotary_embedding_partial", rotary(&[1.0, 0.3], false)),
        ("rotary_embedding_interleaved", rotary(&[1.0, 0.3, 0.09], true)),
        ("attention", attention(|_| {})),
        ("attention_not_causal", attention(|a| a.causal = false)),
        ("attention_window", attention(|a| a.window = Some(2))),
        ("attention_soft_cap", attention(|a| (a.scale, a.soft_cap) = (Some(2.0), Some(1.5)))),
        ("attention_float_mask", attention(|a| a.has_mask = true)),
        ("attention_bool_mask", attention(|a| a.has_mask = true)),
        ("attention_kv_lengths", attention(|a| a.has_kv_lengths = true)),
    ])
}

fn interpret(name: &str, op: Op, inputs: &[Tensor]) -> Tensor {
    let mut graph = Graph::new(name);
    let mut named = Vec::new();
    for (index, tensor) in inputs.iter().enumerate() {
        let dtype = match (tensor.floats().is_empty(), name) {
            (false, _) => DType::F32,
            (true, "attention_bool_mask") => DType::Bool,
            (true, _) => DType::I64,
        };
        let shape = tensor.shape.iter().map(|&dim| Dim::from(dim)).collect();
        let input = format!("input_{index}");
        named.push((graph.add_input(&input, dtype, shape), input, tensor.clone()));
    }
    let ids: Vec<_> = named.iter().map(|(id, ..)| *id).collect();
    let output = graph.add_node(op, &ids).unwrap();
    graph.add_output("output", output);
    let interpreter = Interpreter::new(&graph, &MemoryWeights::new()).unwrap();
    let inputs = named.iter().map(|(_, name, tensor)| (name.as_str(), tensor.clone()));
    interpreter.run(inputs).unwrap().remove("output").unwrap()
}

#[test]
fn every_op_is_what_pytorch_computes() {
    let golden: BTreeMap<String, Value> = serde_json::from_str(include_str!("golden/ops.json")).unwrap();
    let ops = ops();
    assert!(golden.keys().map(String::as_str).eq(ops.keys().copied()), "one op a case");
    for (name, op) in ops {
        let inputs: Vec<Tensor> = golden[name]["inputs"].as_array().unwrap().iter().map(tensor).collect();
        let expected = tensor(&golden[name]["output"]);
        let found = interpret(name, op, &inputs);
        assert_eq!(found.shape, expected.shape, "{name}");
        for (found, expected) in found.floats().iter().zip(expected.floats()) {
            // PyTorch computes in fp32: a few roundings of numbers up to 10.
            assert!((found - expected).abs() <= 4e-6, "{name}: {found} is not {expected}");
        }
    }
}
