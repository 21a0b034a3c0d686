//! Networks as JSON, and what is refused when they are read.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

use roundhouse_tensorrt_network::{
    Activation, CausalMask, Constant, DYNAMIC, DataType, ElementWise, FillDims, InputRange, LayerKind,
    MatrixOp, Network, NetworkError, Profile, Reduce, Reshape, RotaryTable, SliceOperand, TensorId, Unary,
    Values,
};
use serde_json::{Value, json};

/// A network with every kind of layer, of attribute and of value.
fn everything() -> Network {
    let mut network = Network::new("every layer");
    let mut inputs = Vec::new();
    for (name, dtype, dims) in [
        ("x", DataType::Float, &[DYNAMIC, 4][..]),
        ("cache", DataType::Half, &[1, 1, 8, 4]),
        ("update", DataType::Half, &[1, 1, DYNAMIC, 4]),
        ("write_indices", DataType::Int32, &[1]),
        ("kv_lengths", DataType::Int32, &[1]),
        ("position_ids", DataType::Int64, &[1, DYNAMIC]),
        ("count", DataType::Int64, &[1]),
    ] {
        inputs.push(network.add_input(name, dtype, dims).unwrap());
    }
    let [x, cache, update, write_indices, kv_lengths, position_ids, count] = inputs[..] else { panic!() };
    let mut names = 0..;
    let mut add = |network: &mut Network, kind: LayerKind, operands: &[TensorId]| {
        network.add_layer(format!("layer {}", names.next().unwrap()), kind, operands).unwrap()
    };
    let constant =
        |dtype, dims: &[i64], values| LayerKind::Constant(Constant { dtype, dims: dims.to_vec(), values });
    let floats = vec![0.1, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE];
    let row = add(&mut network, constant(DataType::Float, &[1, 4], Values::Floats { values: floats }), &[]);
    let integers = Values::Integers { values: vec![i64::MIN, i64::MAX] };
    add(&mut network, constant(DataType::Int64, &[2], integers), &[]);
    let weight = Values::Weight { name: "w".to_owned() };
    let weight = add(&mut network, constant(DataType::Float, &[3, 4], weight), &[]);
    let table = RotaryTable { positions: 8, inv_freq: vec![1.0, 0.01], attention_factor: 1.25 };
    let cos = add(&mut network, constant(DataType::Half, &[8, 2], Values::RotaryCos(table.clone())), &[]);
    let sin = add(&mut network, constant(DataType::Half, &[8, 2], Values::RotarySin(table)), &[]);
    for function in [Activation::Sigmoid, Activation::Tanh, Activation::GeluErf, Activation::GeluTanh] {
        add(&mut network, LayerKind::Activation { function }, &[x]);
    }
    for function in [Unary::Sqrt, Unary::Recip, Unary::IsInf] {
        add(&mut network, LayerKind::Unary { function }, &[x]);
    }
    for operation in [ElementWise::Sum, ElementWise::Prod, ElementWise::Sub, ElementWise::Div] {
        add(&mut network, LayerKind::ElementWise { operation }, &[x, row]);
    }
    for operation in [ElementWise::Max, ElementWise::Min, ElementWise::Greater, ElementWise::Equal] {
        add(&mut network, LayerKind::ElementWise { operation }, &[x, row]);
    }
    let less = add(&mut network, LayerKind::ElementWise { operation: ElementWise::Less }, &[x, row]);
    for operation in [ElementWise::And, ElementWise::Or] {
        add(&mut network, LayerKind::ElementWise { operation }, &[less, less]);
    }
    add(&mut network, LayerKind::Unary { function: Unary::Not }, &[less]);
    add(&mut network, LayerKind::Select, &[less, x, row]);
    for to in [DataType::Bf16, DataType::Int32, DataType::Bool] {
        add(&mut network, LayerKind::Cast { to }, &[x]);
    }
    let shuffle = LayerKind::Shuffle {
        first_transpose: Some(vec![1, 0]),
        reshape: Some(Reshape::Static(vec![2, 2, -1])),
        second_transpose: Some(vec![2, 0, 1]),
    };
    add(&mut network, shuffle, &[x]);
    let shape = add(&mut network, LayerKind::Shape, &[x]);
    let reshape = Some(Reshape::Input { expected: vec![DYNAMIC, 4] });
    add(
        &mut network,
        LayerKind::Shuffle { first_transpose: None, reshape, second_transpose: None },
        &[x, shape],
    );
    let size = SliceOperand::Input { expected: vec![DYNAMIC, 4] };
    add(&mut network, LayerKind::Slice { start: SliceOperand::Static(vec![0, 0]), size }, &[x, shape]);
    add(&mut network, LayerKind::Concatenation { axis: 0 }, &[x, row]);
    let product = LayerKind::MatrixMultiply { op_a: MatrixOp::None, op_b: MatrixOp::Transpose };
    add(&mut network, product, &[x, weight]);
    add(&mut network, LayerKind::Gather { axis: 0 }, &[weight, count]);
    for operation in [Reduce::Sum, Reduce::Max, Reduce::Avg] {
        add(&mut network, LayerKind::Reduce { operation, axes: vec![1] }, &[x]);
    }
    add(&mut network, LayerKind::SoftMax { axis: 1 }, &[x]);
    add(&mut network, LayerKind::Iota { length: FillDims::Static(3), dtype: DataType::Float }, &[]);
    add(&mut network, LayerKind::Iota { length: FillDims::Input, dtype: DataType::Int64 }, &[count]);
    let rotary = LayerKind::RotaryEmbedding { interleaved: true, dim: 4 };
    let query = add(&mut network, rotary, &[update, cos, sin, position_ids]);
    let updated = add(&mut network, LayerKind::KvCacheUpdate, &[cache, query, write_indices]);
    let attention = LayerKind::Attention {
        causal: CausalMask::LowerRight,
        decomposable: true,
        has_mask: false,
        has_kv_lengths: true,
    };
    let attended = add(&mut network, attention, &[query, updated, updated, kv_lengths]);
    network.mark_output(attended, "attended", None).unwrap();
    network.mark_output(updated, "cache_out", Some("cache".to_owned())).unwrap();
    let dimensions = |min: &[i64], max: &[i64]| InputRange::Dimensions {
        min: min.to_vec(),
        opt: max.to_vec(),
        max: max.to_vec(),
    };
    network.profiles.push(Profile {
        inputs: [
            ("x".to_owned(), dimensions(&[1, 4], &[9, 4])),
            ("update".to_owned(), dimensions(&[1, 1, 1, 4], &[1, 1, 8, 4])),
            ("position_ids".to_owned(), dimensions(&[1, 1], &[1, 8])),
            ("count".to_owned(), InputRange::Values { min: vec![0], opt: vec![1], max: vec![2] }),
        ]
        .into(),
    });
    network
}

#[test]
fn a_network_comes_back_as_it_was() {
    let network = everything();
    let mut back = Network::from_json(&network.to_json().unwrap()).unwrap();
    assert_eq!(back, network);
    assert_eq!(
        back.add_input("layer 3", DataType::Float, &[]),
        Err(NetworkError::Duplicate("layer 3".to_owned()))
    );
    assert_eq!(
        back.add_input("cache_out", DataType::Float, &[]),
        Err(NetworkError::Duplicate("cache_out".to_owned()))
    );
}

/// Changes the JSON of a network and reads it.
fn read(change: impl FnOnce(&mut Value)) -> Result<Network, NetworkError> {
    let mut json: Value = serde_json::from_slice(&everything().to_json().unwrap()).unwrap();
    change(&mut json);
    Network::from_json(&serde_json::to_vec(&json).unwrap())
}

/// The index of a layer in the JSON.
fn layer(json: &Value, kind: &str) -> usize {
    json["layers"].as_array().unwrap().iter().position(|layer| layer["layer"] == kind).unwrap()
}

#[track_caller]
fn stored(error: Result<Network, NetworkError>, words: &str) {
    match error {
        Err(NetworkError::Stored(what)) => assert!(what.contains(words), "{what:?} does not say {words:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_network_is_refused() {
    for bytes in [&b""[..], b"{}", b"[]", b"\xff", br#"{"name": 1}"#] {
        assert!(matches!(Network::from_json(bytes), Err(NetworkError::Json(_))));
    }
    assert!(matches!(read(|json| json["more"] = json!(1)), Err(NetworkError::Json(_))));
    assert!(matches!(
        read(|json| json["layers"][0]["layer"] = json!("convolution")),
        Err(NetworkError::Json(_))
    ));
}

#[test]
fn dtypes_and_dimensions_are_inferred_again() {
    stored(
        read(|json| {
            let output = json["layers"][layer(json, "soft_max")]["output"].as_u64().unwrap() as usize;
            json["tensors"][output]["dims"] = json!([-1, 5]);
        }),
        "is stored as kFLOAT [-1, 5] and inferred as kFLOAT [-1, 4]",
    );
    stored(
        read(|json| {
            let output = json["layers"][layer(json, "soft_max")]["output"].as_u64().unwrap() as usize;
            json["tensors"][output]["dtype"] = json!("half");
        }),
        "is stored as kHALF [-1, 4]",
    );
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    let error = read(|json| {
        let at = layer(json, "soft_max");
        json["layers"][at]["axis"] = json!(9);
    });
    assert!(matches!(error, Err(NetworkError::Layer { what, .. }) if what.contains("axis 9")));
    let error = read(|json| {
        let at = layer(json, "constant");
        json["layers"][at]["values"]["values"] = json!([1.0]);
    });
    assert!(
        matches!(error, Err(NetworkError::Layer { what, .. }) if what.contains("1 values for 4 elements"))
    );
}

#[test]
fn operands_exist_before_their_layer() {
    for operand in [40, u64::from(u32::MAX)] {
        let error = read(|json| {
            let at = layer(json, "activation");
            json["layers"][at]["inputs"] = json!([operand]);
        });
        assert_eq!(error, Err(NetworkError::NoSuchTensor(TensorId(operand as u32))));
    }
    let swapped = read(|json| {
        let at = layer(json, "kv_cache_update");
        json["layers"].as_array_mut().unwrap().swap(at, at + 1);
    });
    stored(swapped, "is of no input and no layer in order");
}

#[test]
fn every_tensor_has_one_maker() {
    let missing = read(|json| {
        json["layers"].as_array_mut().unwrap().pop();
    });
    stored(missing, "is of no input and no layer in order");
    let twice = read(|json| {
        let last = json["layers"].as_array().unwrap().last().unwrap().clone();
        json["layers"].as_array_mut().unwrap().push(last);
    });
    stored(twice, "makes no tensor in order");
    stored(
        read(|json| json["inputs"].as_array_mut().unwrap().push(json!(0))),
        "input 0 is no tensor in order",
    );
}

#[test]
fn names_belong_to_their_tensors() {
    let renamed = read(|json| {
        let output = json["layers"][layer(json, "soft_max")]["output"].as_u64().unwrap() as usize;
        json["tensors"][output]["name"] = json!("another");
    });
    stored(renamed, "is named \"another\"");
    let twice = read(|json| json["tensors"][1]["name"] = json!("x"));
    assert_eq!(twice, Err(NetworkError::Duplicate("x".to_owned())));
}

#[test]
fn outputs_are_checked() {
    let nowhere = read(|json| json["outputs"][0]["tensor"] = json!(4_000_000_000_u32));
    assert_eq!(nowhere, Err(NetworkError::NoSuchTensor(TensorId(4_000_000_000))));
    let alias = read(|json| json["outputs"][1]["aliases"] = json!("update"));
    assert!(matches!(alias, Err(NetworkError::Output { .. })));
}

#[test]
fn profiles_are_checked() {
    let error = read(|json| json["profiles"][0]["inputs"]["x"]["min"] = json!([1]));
    assert!(matches!(error, Err(NetworkError::Profile { profile: 0, .. })));
}

#[test]
fn every_way_of_reading_checks() {
    let mut json: Value = serde_json::from_slice(&everything().to_json().unwrap()).unwrap();
    assert_eq!(serde_json::from_value::<Network>(json.clone()).unwrap(), everything());
    json["tensors"][0]["dims"] = json!([-3, 4]);
    assert!(serde_json::from_value::<Network>(json).is_err());
}
