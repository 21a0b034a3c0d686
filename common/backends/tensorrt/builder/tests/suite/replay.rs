//! Every layer, with every value of every attribute, reaches TensorRT as it is in the network.

use roundhouse_backend_conformance::MemoryWeights;
use roundhouse_graph::{DType, Graph, WeightExpr};
use roundhouse_tensorrt_builder::replay::{Weights, replay};
use roundhouse_tensorrt_builder::{ReplayError, read_back};
use roundhouse_tensorrt_library::{BuildSession, testing};
use roundhouse_tensorrt_network::DataType::{self, Bf16, Bool, Float, Half, Int32, Int64};
use roundhouse_tensorrt_network::{
    Activation, CausalMask, Constant, ElementWise, FillDims, LayerKind, MatrixOp, Network, Reduce, Reshape,
    RotaryTable, SliceOperand, TensorId, Unary, Values,
};
use roundhouse_weights::{MappedWeights, PartialFile, WeightsLayout, write_weights};

const DYNAMIC: i64 = -1;

/// An input of a case: its dtype and dimensions.
type Input = (DataType, &'static [i64]);

/// A network of one layer over inputs.
fn network_of(kind: LayerKind, inputs: &[Input]) -> Network {
    let mut network = Network::new("case");
    let ids: Vec<TensorId> = inputs
        .iter()
        .enumerate()
        .map(|(index, (dtype, dims))| network.add_input(format!("input_{index}"), *dtype, dims).unwrap())
        .collect();
    let output = network.add_layer("the layer", kind, &ids).unwrap();
    network.mark_output(output, "the output", None).unwrap();
    network
}

/// Replays a network and compares what TensorRT holds with another one.
fn replay_and_compare(network: &Network, held: &Network) -> Result<(), ReplayError> {
    let mut session = BuildSession::new(&testing::library()).unwrap();
    replay(&mut session, network, Weights::Placeholders)?;
    read_back::compare(&session, held, Weights::Placeholders)
}

fn constant(dtype: DataType, dims: &[i64], values: Values) -> LayerKind {
    LayerKind::Constant(Constant { dtype, dims: dims.to_vec(), values })
}

fn static_reshape(dims: &[i64]) -> Option<Reshape> {
    Some(Reshape::Static(dims.to_vec()))
}

fn shuffle(first: Option<&[usize]>, reshape: Option<Reshape>, second: Option<&[usize]>) -> LayerKind {
    LayerKind::Shuffle {
        first_transpose: first.map(<[usize]>::to_vec),
        reshape,
        second_transpose: second.map(<[usize]>::to_vec),
    }
}

fn attention(causal: CausalMask, decomposable: bool, has_mask: bool, has_kv_lengths: bool) -> LayerKind {
    LayerKind::Attention { causal, decomposable, has_mask, has_kv_lengths }
}

const Q: Input = (Half, &[DYNAMIC, 4, DYNAMIC, 32]);
const KV: Input = (Half, &[DYNAMIC, 2, 64, 32]);
const MASK: Input = (Bool, &[DYNAMIC, 1, DYNAMIC, 64]);
const LENGTHS: Input = (Int32, &[DYNAMIC]);

/// Layers, each kind with every value of its attributes; a kind's cases differ in one attribute or operand each.
fn cases() -> Vec<(LayerKind, Vec<Input>)> {
    let mut cases = Vec::new();
    let x4 = (Half, &[DYNAMIC, 4, DYNAMIC, 8][..]);
    let floats = |values: &[f32]| Values::Floats { values: values.to_vec() };
    let integers = |values: &[i64]| Values::Integers { values: values.to_vec() };
    let table = RotaryTable { positions: 3, inv_freq: vec![1.0, 0.5], attention_factor: 1.5 };
    for dtype in [Float, Half, Bf16] {
        cases.push((constant(dtype, &[2], floats(&[1.5, -2.0])), vec![]));
        cases.push((constant(dtype, &[3, 2], Values::RotaryCos(table.clone())), vec![]));
        cases.push((constant(dtype, &[3, 2], Values::RotarySin(table.clone())), vec![]));
    }
    cases.push((constant(Float, &[2, 1], floats(&[1.5, -2.0])), vec![]));
    cases.push((constant(Float, &[], floats(&[f32::NEG_INFINITY])), vec![]));
    for dtype in [Int32, Int64] {
        cases.push((constant(dtype, &[3], integers(&[1, -2, 3])), vec![]));
    }
    for function in [Activation::Sigmoid, Activation::Tanh, Activation::GeluErf, Activation::GeluTanh] {
        cases.push((LayerKind::Activation { function }, vec![x4]));
    }
    for function in [Unary::Sqrt, Unary::Recip, Unary::IsInf] {
        cases.push((LayerKind::Unary { function }, vec![x4]));
    }
    cases.push((LayerKind::Unary { function: Unary::Not }, vec![(Bool, &[DYNAMIC, 4])]));
    use ElementWise::{And, Div, Equal, Greater, Less, Max, Min, Or, Prod, Sub, Sum};
    for operation in [Sum, Prod, Sub, Div, Max, Min, Less, Greater, Equal] {
        cases.push((LayerKind::ElementWise { operation }, vec![(Float, &[DYNAMIC, 4]), (Float, &[1, 4])]));
    }
    for operation in [And, Or] {
        cases.push((LayerKind::ElementWise { operation }, vec![(Bool, &[DYNAMIC, 4]), (Bool, &[1, 4])]));
    }
    for to in [Float, Half, Bf16, Int32, Int64, Bool] {
        cases.push((LayerKind::Cast { to }, vec![(Int32, &[DYNAMIC, 4])]));
    }
    cases.extend([
        (shuffle(Some(&[2, 0, 3, 1]), None, None), vec![x4]),
        (shuffle(None, static_reshape(&[0, 0, 2, 16]), None), vec![(Half, &[DYNAMIC, DYNAMIC, 32])]),
        (shuffle(None, static_reshape(&[0, 0, -1, 16]), None), vec![(Half, &[DYNAMIC, DYNAMIC, 32])]),
        (shuffle(None, static_reshape(&[]), None), vec![(Half, &[1])]),
        (shuffle(Some(&[0, 2, 1, 3]), static_reshape(&[0, 0, 32]), Some(&[2, 0, 1])), vec![x4]),
        (shuffle(None, None, Some(&[3, 1, 0, 2])), vec![x4]),
        (
            shuffle(None, Some(Reshape::Input { expected: vec![DYNAMIC, DYNAMIC] }), Some(&[1, 0])),
            vec![(Half, &[DYNAMIC, 2, 2]), (Int64, &[2])],
        ),
    ]);
    let given = |dims: &[i64]| SliceOperand::Static(dims.to_vec());
    let input = |dims: &[i64]| SliceOperand::Input { expected: dims.to_vec() };
    let x2 = (Half, &[8, 6][..]);
    let index = (Int64, &[2][..]);
    cases.extend([
        (LayerKind::Slice { start: given(&[1, 2]), size: given(&[3, 4]) }, vec![x2]),
        (LayerKind::Slice { start: given(&[2, 1]), size: given(&[4, 3]) }, vec![x2]),
        (LayerKind::Slice { start: input(&[-1, -1]), size: given(&[4, 3]) }, vec![x2, index]),
        (LayerKind::Slice { start: given(&[2, 1]), size: input(&[-1, -1]) }, vec![x2, index]),
        (LayerKind::Slice { start: input(&[-1, -1]), size: input(&[-1, -1]) }, vec![x2, index, index]),
    ]);
    for axis in 0..3 {
        let part = (Half, &[2, 2, 2][..]);
        cases.push((LayerKind::Concatenation { axis }, vec![part, part, part]));
        cases.push((LayerKind::Gather { axis }, vec![part, (Int64, &[DYNAMIC, DYNAMIC])]));
        cases.push((LayerKind::SoftMax { axis }, vec![part]));
        for operation in [Reduce::Sum, Reduce::Max, Reduce::Avg] {
            cases.push((LayerKind::Reduce { operation, axes: vec![axis] }, vec![part]));
        }
    }
    cases.push((LayerKind::Concatenation { axis: 0 }, vec![(Int64, &[1]), (Int64, &[1])]));
    cases.push((LayerKind::Reduce { operation: Reduce::Sum, axes: vec![2, 0] }, vec![(Half, &[2, 2, 2])]));
    for op_a in [MatrixOp::None, MatrixOp::Transpose] {
        for op_b in [MatrixOp::None, MatrixOp::Transpose] {
            cases.push((
                LayerKind::MatrixMultiply { op_a, op_b },
                vec![(Float, &[DYNAMIC, 4, 4]), (Float, &[1, 4, 4])],
            ));
        }
    }
    cases.push((LayerKind::Shape, vec![x4]));
    for dtype in [Int32, Int64, Float] {
        cases.push((LayerKind::Iota { length: FillDims::Static(5), dtype }, vec![]));
        cases.push((LayerKind::Iota { length: FillDims::Input, dtype }, vec![(Int64, &[1])]));
    }
    cases.push((LayerKind::Iota { length: FillDims::Static(6), dtype: Int64 }, vec![]));
    cases.push((LayerKind::Select, vec![(Bool, &[DYNAMIC, 4]), (Half, &[1, 4]), (Half, &[DYNAMIC, 1])]));
    for (interleaved, dim) in [(false, 32), (true, 32), (false, 16)] {
        let tables: Input = if dim == 32 { (Half, &[64, 16]) } else { (Half, &[64, 8]) };
        cases.push((
            LayerKind::RotaryEmbedding { interleaved, dim },
            vec![Q, tables, tables, (Int64, &[DYNAMIC, DYNAMIC])],
        ));
    }
    cases.push((LayerKind::KvCacheUpdate, vec![KV, (Half, &[DYNAMIC, 2, DYNAMIC, 32]), (Int32, &[DYNAMIC])]));
    for decomposable in [false, true] {
        cases.push((attention(CausalMask::None, decomposable, false, false), vec![Q, KV, KV]));
    }
    cases.push((attention(CausalMask::LowerRight, true, false, false), vec![Q, KV, KV]));
    cases.push((attention(CausalMask::None, true, true, false), vec![Q, KV, KV, MASK]));
    cases.push((attention(CausalMask::LowerRight, true, false, true), vec![Q, KV, KV, LENGTHS]));
    cases.push((attention(CausalMask::None, true, true, true), vec![Q, KV, KV, MASK, LENGTHS]));
    cases
}

#[test]
fn every_layer_is_held_as_it_is_and_infers_the_same() {
    let mut failures = Vec::new();
    for (kind, inputs) in cases() {
        let network = network_of(kind.clone(), &inputs);
        if let Err(error) = replay_and_compare(&network, &network) {
            failures.push(format!("{kind:?} {inputs:?}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What no two cases of a kind differ in could be lost unnoticed; what they differ in is noticed.
#[test]
fn any_other_attribute_value_is_noticed() {
    let cases = cases();
    let kinds = |kind: &LayerKind| std::mem::discriminant(kind);
    let mut pairs = 0;
    for (index, (kind, inputs)) in cases.iter().enumerate() {
        let network = network_of(kind.clone(), inputs);
        let mut session = BuildSession::new(&testing::library()).unwrap();
        replay(&mut session, &network, Weights::Placeholders).unwrap();
        for (other_index, (other, other_inputs)) in cases.iter().enumerate() {
            if index == other_index || kinds(kind) != kinds(other) {
                continue;
            }
            let other_network = network_of(other.clone(), other_inputs);
            let compared = read_back::compare(&session, &other_network, Weights::Placeholders);
            assert!(matches!(compared, Err(ReplayError::Held { .. })), "{kind:?} passes for {other:?}");
            pairs += 1;
        }
    }
    assert!(pairs > 200, "{pairs}");
}

#[test]
fn swapped_operands_are_noticed() {
    let operands = |swap: bool| {
        let mut network = Network::new("case");
        let a = network.add_input("a", Half, &[4, 4]).unwrap();
        let b = network.add_input("b", Half, &[4, 4]).unwrap();
        let pair = if swap { [b, a] } else { [a, b] };
        let kind = LayerKind::ElementWise { operation: ElementWise::Sub };
        let difference = network.add_layer("difference", kind, &pair).unwrap();
        network.mark_output(difference, "out", None).unwrap();
        network
    };
    assert_eq!(replay_and_compare(&operands(false), &operands(false)), Ok(()));
    let error = replay_and_compare(&operands(false), &operands(true)).unwrap_err();
    assert!(error.to_string().contains("the operands"), "{error}");
}

#[test]
fn what_tensorrt_infers_otherwise_names_the_layer_and_both() {
    // A reshape by a tensor of shape [3], which is expected to give dimensions that its elements do not.
    let mut network = Network::new("case");
    let x = network.add_input("x", Half, &[2, 6]).unwrap();
    let dims = Values::Integers { values: vec![3, 4] };
    let shape = network.add_layer("shape", constant(Int64, &[2], dims), &[]).unwrap();
    let kind = shuffle(None, Some(Reshape::Input { expected: vec![DYNAMIC, 6] }), None);
    let y = network.add_layer("decoder.reshape", kind, &[x, shape]).unwrap();
    network.mark_output(y, "y", None).unwrap();
    let error = replay_and_compare(&network, &network).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ReplayError::Output { .. }), "{text}");
    for part in ["decoder.reshape", "[3, 4]", "[-1, 6]", "kHALF"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn tensors_that_cannot_be_read_back_are_refused_by_name() {
    let mut network = Network::new("case");
    let deep = [DYNAMIC, 2, 2, 2, 2, 2, 2, 2];
    let x = network.add_input("eight.dimensions", Half, &deep).unwrap();
    let y = network.add_layer("shape", LayerKind::Shape, &[x]).unwrap();
    network.mark_output(y, "y", None).unwrap();
    let text = replay_and_compare(&network, &network).unwrap_err().to_string();
    assert!(text.contains("eight.dimensions") && text.contains("8 dimensions"), "{text}");
}

/// A weights file with `a` and `b`, both f16 `[2, 3]`, mapped.
fn mapped() -> MappedWeights {
    let mut graph = Graph::new("weights");
    let mut weights = MemoryWeights::new();
    for name in ["a", "b"] {
        graph.add_weight(name, DType::F16, &[2, 3], WeightExpr::tensor(name));
        weights.insert(name, &[2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let mut file = PartialFile::create(&path).unwrap();
    write_weights(&WeightsLayout::new(&graph).unwrap(), &weights, &mut file, &|_| Ok(())).unwrap();
    file.finish().unwrap();
    MappedWeights::open(&path, &graph, "test").unwrap()
}

#[test]
fn weights_are_the_bytes_of_their_own_name() {
    let file = mapped();
    let weights = Weights::Mapped(&file);
    let network = |name: &str, dtype, dims: &[i64]| {
        network_of(constant(dtype, dims, Values::Weight { name: name.to_owned() }), &[])
    };
    let replayed = |network: &Network, held: &Network| -> Result<(), ReplayError> {
        let mut session = BuildSession::new(&testing::library()).unwrap();
        replay(&mut session, network, weights)?;
        read_back::compare(&session, held, weights)
    };
    let a = network("a", Half, &[1, 2, 3]);
    assert_eq!(replayed(&a, &a), Ok(()));
    // Equal bytes of another weight are not its own.
    let error = replayed(&a, &network("b", Half, &[1, 2, 3])).unwrap_err();
    assert!(error.to_string().contains("the bytes"), "{error}");
    for (wrong, part) in [
        (network("c", Half, &[2, 3]), "is not in the weights file"),
        (network("a", Float, &[2, 3]), "is f16 in the weights file, kFLOAT here"),
        (network("a", Half, &[2, 2]), "has 12 bytes, expected 8"),
    ] {
        let error = replayed(&wrong, &wrong).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
