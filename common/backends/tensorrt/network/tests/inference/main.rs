//! What dtype and dimensions each layer's output has, and what each layer refuses.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

mod attention;
mod constant;
mod elementwise;
mod matrix;
mod movement;
mod shuffle;

use roundhouse_tensorrt_network::{DataType, Dims, LayerKind, Network, NetworkError};

/// A dtype and dimensions.
type Operand<'a> = (DataType, &'a [i64]);

/// What a layer with these operands makes.
fn output(kind: LayerKind, operands: &[Operand<'_>]) -> Result<(DataType, Dims), String> {
    let mut network = Network::new("test");
    let inputs: Vec<_> = operands
        .iter()
        .enumerate()
        .map(|(index, (dtype, dims))| network.add_input(format!("x{index}"), *dtype, dims).unwrap())
        .collect();
    match network.add_layer("layer", kind, &inputs) {
        Ok(id) => Ok((network.tensor(id).dtype, network.tensor(id).dims.clone())),
        Err(NetworkError::Layer { layer, what }) if layer == "layer" => Err(what),
        Err(other) => panic!("{other}"),
    }
}

/// Asserts what a layer makes.
#[track_caller]
fn makes(kind: LayerKind, operands: &[Operand<'_>], dtype: DataType, dims: &[i64]) {
    assert_eq!(output(kind.clone(), operands), Ok((dtype, dims.to_vec())), "{kind:?} of {operands:?}");
}

/// Asserts that a layer is refused with words that contain these.
#[track_caller]
fn refuses(kind: LayerKind, operands: &[Operand<'_>], words: &str) {
    match output(kind.clone(), operands) {
        Err(what) => {
            assert!(what.contains(words), "{kind:?} of {operands:?}: {what:?} does not say {words:?}")
        }
        Ok(made) => panic!("{kind:?} of {operands:?} makes {made:?}"),
    }
}

#[test]
fn a_refusal_names_the_operands() {
    let what = output(LayerKind::Select, &[(DataType::Float, &[2, -1])]).unwrap_err();
    assert_eq!(what, "1 operands, 3 are needed; operands: \"x0\" kFLOAT [2, -1]");
}

#[test]
fn no_tensor_has_more_than_eight_dimensions() {
    let mut network = Network::new("test");
    network.add_input("eight", DataType::Float, &[1; 8]).unwrap();
    let error = network.add_input("nine", DataType::Float, &[1; 9]).unwrap_err();
    assert!(matches!(error, NetworkError::Input { input, .. } if input == "nine"));
    let gather = LayerKind::Gather { axis: 0 };
    makes(
        gather.clone(),
        &[(DataType::Float, &[2; 6]), (DataType::Int64, &[3; 3])],
        DataType::Float,
        &[3, 3, 3, 2, 2, 2, 2, 2],
    );
    refuses(gather, &[(DataType::Float, &[2; 7]), (DataType::Int64, &[3; 3])], "9 dimensions");
}

#[test]
fn no_tensor_has_negative_or_uncountable_dimensions() {
    let mut network = Network::new("test");
    assert!(network.add_input("negative", DataType::Float, &[-2]).is_err());
    assert!(network.add_input("vast", DataType::Float, &[i64::MAX, 2]).is_err());
    network.add_input("dynamic", DataType::Float, &[-1, i64::MAX]).unwrap();
}

#[test]
fn operands_of_another_network_are_refused() {
    let mut other = Network::new("other");
    for name in ["a", "b"] {
        other.add_input(name, DataType::Float, &[1]).unwrap();
    }
    let stranger = other.inputs()[1];
    let mut network = Network::new("test");
    network.add_input("a", DataType::Float, &[1]).unwrap();
    assert_eq!(
        network.add_layer("shape", LayerKind::Shape, &[stranger]),
        Err(NetworkError::NoSuchTensor(stranger))
    );
    assert_eq!(network.mark_output(stranger, "out", None), Err(NetworkError::NoSuchTensor(stranger)));
}

#[test]
fn names_are_unique() {
    let mut network = Network::new("test");
    let x = network.add_input("x", DataType::Float, &[1]).unwrap();
    let duplicate = |name: &str| Err(NetworkError::Duplicate(name.to_owned()));
    assert_eq!(network.add_input("x", DataType::Float, &[1]), duplicate("x"));
    assert_eq!(network.add_layer("x", LayerKind::Shape, &[x]), duplicate("x"));
    let shape = network.add_layer("shape", LayerKind::Shape, &[x]).unwrap();
    assert_eq!(network.mark_output(shape, "x", None).map(|()| x), duplicate("x"));
    network.mark_output(shape, "out", None).unwrap();
    assert_eq!(network.add_layer("shape", LayerKind::Shape, &[x]), duplicate("shape"));
    assert_eq!(network.add_layer("out", LayerKind::Shape, &[x]), duplicate("out"));
}

#[test]
fn outputs_come_from_layers_and_alias_inputs_that_are_alike() {
    let mut network = Network::new("test");
    let x = network.add_input("x", DataType::Float, &[2]).unwrap();
    network.add_input("half", DataType::Half, &[2]).unwrap();
    network.add_input("long", DataType::Float, &[3]).unwrap();
    let cast = network.add_layer("cast", LayerKind::Cast { to: DataType::Float }, &[x]).unwrap();
    let refused = |network: &mut Network, tensor, aliases: Option<&str>, words: &str| match network
        .mark_output(tensor, "out", aliases.map(str::to_owned))
    {
        Err(NetworkError::Output { output, what }) if output == "out" => {
            assert!(what.contains(words), "{what:?} does not say {words:?}");
        }
        other => panic!("{other:?}"),
    };
    refused(&mut network, x, None, "is an input");
    refused(&mut network, cast, Some("cast"), "no input");
    refused(&mut network, cast, Some("half"), "kHALF");
    refused(&mut network, cast, Some("long"), "[3]");
    network.mark_output(cast, "out", Some("x".to_owned())).unwrap();
    assert_eq!(network.tensor(cast).name, "out");
    assert_eq!(network.outputs()[0].aliases.as_deref(), Some("x"));
    assert!(matches!(network.mark_output(cast, "again", None), Err(NetworkError::Output { .. })));
}
