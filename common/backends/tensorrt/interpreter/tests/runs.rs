//! Whole runs: weights, inputs, profiles, rounding and outputs.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::collections::BTreeMap;

use roundhouse_tensorrt_interpreter::{Interpreter, InterpreterError, Rounding, Tensor};
use roundhouse_tensorrt_network::{
    Constant, DYNAMIC, DataType, ElementWise, InputRange, LayerKind, MatrixOp, Network, NetworkError,
    Profile, RotaryTable, TensorId, Values,
};

const SUM: LayerKind = LayerKind::ElementWise { operation: ElementWise::Sum };

fn constant(network: &mut Network, name: &str, dtype: DataType, dims: &[i64], values: Values) -> TensorId {
    let constant = Constant { dtype, dims: dims.to_vec(), values };
    network.add_layer(name, LayerKind::Constant(constant), &[]).unwrap()
}

fn weight(name: &str) -> Values {
    Values::Weight { name: name.to_owned() }
}

/// `y = x · wᵀ + b` with `x [-1, 2]` and two outputs, in kHALF.
fn linear() -> Network {
    let mut network = Network::new("linear");
    let x = network.add_input("x", DataType::Half, &[DYNAMIC, 2]).unwrap();
    let w = constant(&mut network, "w", DataType::Half, &[2, 2], weight("proj.weight"));
    let product = LayerKind::MatrixMultiply { op_a: MatrixOp::None, op_b: MatrixOp::Transpose };
    let product = network.add_layer("product", product, &[x, w]).unwrap();
    let b = constant(&mut network, "b", DataType::Half, &[1, 2], weight("proj.bias"));
    let sum = network.add_layer("sum", SUM, &[product, b]).unwrap();
    network.mark_output(sum, "y", None).unwrap();
    network
}

fn weights(name: &str) -> Option<Vec<f32>> {
    match name {
        "proj.weight" => Some(vec![1.0, 2.0, 3.0, 4.0]),
        "proj.bias" => Some(vec![10.0, 20.0]),
        _ => None,
    }
}

fn run(
    network: &Network,
    rounding: Rounding,
    x: Tensor,
) -> Result<BTreeMap<String, Tensor>, InterpreterError> {
    Interpreter::new(network, rounding, weights)?.run([("x", x)])
}

#[test]
fn a_network_runs() {
    let x = Tensor::float(&[2, 2], vec![1.0, 0.0, 1.0, 1.0]);
    let outputs = run(&linear(), Rounding::Weights, x).unwrap();
    let expected = Tensor::float(&[2, 2], vec![11.0, 23.0, 13.0, 27.0]);
    assert_eq!(outputs, BTreeMap::from([("y".to_owned(), expected)]));
}

#[test]
fn weights_are_there_and_as_long_as_their_constants() {
    let wrong =
        |weights: fn(&str) -> Option<Vec<f32>>| match Interpreter::new(&linear(), Rounding::Weights, weights)
            .unwrap_err()
        {
            InterpreterError::Weight { name, what } => (name, what),
            other => panic!("{other}"),
        };
    assert_eq!(wrong(|_| None).1, "there is no such weight");
    let short = wrong(|name| weights(name).map(|weight| weight[1..].to_vec()));
    assert_eq!(short, ("proj.weight".to_owned(), "3 elements: 4 are needed".to_owned()));
}

/// The output of a network whose layer adds 0 to a constant.
fn read(rounding: Rounding, dtype: DataType, dims: &[i64], values: Values) -> Vec<f32> {
    let mut network = Network::new("constant");
    let constant = constant(&mut network, "constant", dtype, dims, values);
    let zero = network.add_input("x", dtype, &vec![1; dims.len()]).unwrap();
    let sum = network.add_layer("sum", SUM, &[constant, zero]).unwrap();
    network.mark_output(sum, "y", None).unwrap();
    let third = |_: &str| Some(vec![1.0 / 3.0]);
    let interpreter = Interpreter::new(&network, rounding, third).unwrap();
    let outputs = interpreter.run([("x", Tensor::zeros(&vec![1; dims.len()]))]).unwrap();
    outputs["y"].floats().to_vec()
}

const THIRD: f32 = 1.0 / 3.0;
const HALF_THIRD: f32 = 0.333_251_95;
const BF16_THIRD: f32 = 0.333_984_38;

#[test]
fn weights_are_always_rounded() {
    for rounding in [Rounding::Weights, Rounding::Stored] {
        assert_eq!(read(rounding, DataType::Half, &[1], weight("w")), [HALF_THIRD]);
        assert_eq!(read(rounding, DataType::Bf16, &[1], weight("w")), [BF16_THIRD]);
        assert_eq!(read(rounding, DataType::Float, &[1], weight("w")), [THIRD]);
    }
}

#[test]
fn other_constants_are_rounded_with_the_rest() {
    let floats = || Values::Floats { values: vec![THIRD] };
    assert_eq!(read(Rounding::Weights, DataType::Half, &[1], floats()), [THIRD]);
    assert_eq!(read(Rounding::Stored, DataType::Half, &[1], floats()), [HALF_THIRD]);
    assert_eq!(read(Rounding::Stored, DataType::Bf16, &[1], floats()), [BF16_THIRD]);
    let table = RotaryTable { positions: 2, inv_freq: vec![0.0], attention_factor: THIRD };
    assert_eq!(
        read(Rounding::Weights, DataType::Bf16, &[2, 1], Values::RotaryCos(table.clone())),
        [THIRD; 2]
    );
    assert_eq!(
        read(Rounding::Stored, DataType::Bf16, &[2, 1], Values::RotaryCos(table.clone())),
        [BF16_THIRD; 2]
    );
    assert_eq!(read(Rounding::Stored, DataType::Bf16, &[2, 1], Values::RotarySin(table)), [0.0; 2]);
}

#[test]
fn what_layers_make_and_inputs_are_rounded_if_everything_is() {
    let mut network = Network::new("sum");
    let x = network.add_input("x", DataType::Float, &[1]).unwrap();
    let half = network.add_layer("half", LayerKind::Cast { to: DataType::Half }, &[x]).unwrap();
    let back = network.add_layer("back", LayerKind::Cast { to: DataType::Float }, &[half]).unwrap();
    network.mark_output(back, "y", None).unwrap();
    let third = Tensor::float(&[1], vec![THIRD]);
    assert_eq!(run(&network, Rounding::Weights, third.clone()).unwrap()["y"].floats(), [THIRD]);
    assert_eq!(run(&network, Rounding::Stored, third.clone()).unwrap()["y"].floats(), [HALF_THIRD]);

    let mut network = Network::new("input");
    let x = network.add_input("x", DataType::Half, &[1]).unwrap();
    let y = network.add_layer("float", LayerKind::Cast { to: DataType::Float }, &[x]).unwrap();
    network.mark_output(y, "y", None).unwrap();
    assert_eq!(run(&network, Rounding::Weights, third.clone()).unwrap()["y"].floats(), [THIRD]);
    assert_eq!(run(&network, Rounding::Stored, third).unwrap()["y"].floats(), [HALF_THIRD]);
}

#[test]
fn integer_constants_are_what_they_are() {
    let mut network = Network::new("integers");
    for (name, dtype, values) in [
        ("int64", DataType::Int64, vec![i64::MIN, 5]),
        ("int32", DataType::Int32, vec![i64::from(i32::MIN), 5]),
        ("bool", DataType::Bool, vec![0, 1]),
    ] {
        let id =
            constant(&mut network, &format!("{name} constant"), dtype, &[2], Values::Integers { values });
        network.mark_output(id, name, None).unwrap();
    }
    let outputs = Interpreter::new(&network, Rounding::Stored, |_| None).unwrap().run([]).unwrap();
    assert_eq!(outputs["int64"].ints(), [i64::MIN, 5]);
    assert_eq!(outputs["int32"].ints(), [i64::from(i32::MIN), 5]);
    assert_eq!(outputs["bool"].ints(), [0, 1]);
}

#[test]
fn inputs_are_those_of_the_network() {
    let mut network = linear();
    network.add_input("mask", DataType::Bool, &[2]).unwrap();
    network.add_input("ids", DataType::Int32, &[]).unwrap();
    let interpreter = Interpreter::new(&network, Rounding::Weights, weights).unwrap();
    let x = || ("x", Tensor::zeros(&[1, 2]));
    let mask = || ("mask", Tensor::int(&[2], vec![0, 1]));
    let ids = || ("ids", Tensor::int(&[], vec![7]));
    interpreter.run([x(), mask(), ids()]).unwrap();
    let wrong = |inputs: Vec<(&str, Tensor)>, input: &str, words: &str| match interpreter.run(inputs) {
        Err(InterpreterError::Input { name, what }) => {
            assert_eq!(name, input, "{what}");
            assert!(what.contains(words), "{what:?} does not say {words:?}");
        }
        other => panic!("{other:?}"),
    };
    wrong(vec![x(), mask()], "ids", "not given");
    wrong(vec![x(), mask(), ids(), x()], "x", "given twice");
    wrong(vec![x(), ("w", Tensor::zeros(&[2, 2]))], "w", "no such input");
    wrong(vec![("x", Tensor::zeros(&[1, 3]))], "x", "shape [1, 3]: it must be [-1, 2]");
    wrong(vec![("x", Tensor::zeros(&[2]))], "x", "shape [2]");
    wrong(vec![("x", Tensor::float(&[1, 2], vec![0.0]))], "x", "1 elements for the shape [1, 2]");
    wrong(vec![("x", Tensor::int(&[1, 2], vec![0, 0]))], "x", "integers are no kHALF");
    wrong(vec![("mask", Tensor::zeros(&[2]))], "mask", "floats are no kBOOL");
    wrong(vec![("mask", Tensor::int(&[2], vec![0, 2]))], "mask", "2 is no kBOOL");
    wrong(vec![("ids", Tensor::int(&[], vec![1 << 40]))], "ids", "is no kINT32");
}

fn range(min: &[i64], max: &[i64]) -> InputRange {
    InputRange::Dimensions { min: min.to_vec(), opt: max.to_vec(), max: max.to_vec() }
}

#[test]
fn one_profile_allows_all_inputs() {
    let mut network = linear();
    network.add_input("end_idx", DataType::Int64, &[]).unwrap();
    let profile = |rows: [i64; 2], end: [i64; 2]| Profile {
        inputs: [
            ("x".to_owned(), range(&[rows[0], 2], &[rows[1], 2])),
            (
                "end_idx".to_owned(),
                InputRange::Values { min: vec![end[0]], opt: vec![end[1]], max: vec![end[1]] },
            ),
        ]
        .into(),
    };
    network.profiles = vec![profile([1, 1], [1, 9]), profile([2, 4], [1, 4])];
    let interpreter = Interpreter::new(&network, Rounding::Weights, weights).unwrap();
    let run = |rows: usize, end: i64| {
        interpreter.run([("x", Tensor::zeros(&[rows, 2])), ("end_idx", Tensor::int(&[], vec![end]))])
    };
    for (rows, end) in [(1, 1), (1, 9), (2, 1), (4, 4)] {
        run(rows, end).unwrap();
    }
    for (rows, end) in [(0, 1), (5, 1), (1, 0), (1, 10)] {
        assert!(matches!(run(rows, end), Err(InterpreterError::Profile(_))), "{rows} {end}");
    }
    // Each input is in the range of a profile, but of another.
    let Err(InterpreterError::Profile(reasons)) = run(2, 9) else { panic!() };
    assert_eq!(
        reasons,
        [
            "profile 0: \"x\" is [2, 2], not in [1, 2]..=[1, 2]",
            "profile 1: \"end_idx\" is [9], not in [1]..=[4]",
        ]
    );
}

#[test]
fn networks_are_verified_first() {
    let mut network = linear();
    network.profiles.push(Profile::default());
    let error = Interpreter::new(&network, Rounding::Weights, weights).unwrap_err();
    assert!(matches!(error, InterpreterError::Network(NetworkError::Profile { .. })));
}

#[test]
fn what_layers_make_has_the_dimensions_that_the_network_says() {
    // TensorRT is told that both are equal, so it knows the dimension; the run says otherwise.
    let mut network = Network::new("concatenation");
    let x = network.add_input("x", DataType::Float, &[DYNAMIC, 1]).unwrap();
    let y = network.add_input("y", DataType::Float, &[3, 1]).unwrap();
    let joined = network.add_layer("joined", LayerKind::Concatenation { axis: 1 }, &[x, y]).unwrap();
    assert_eq!(network.tensor(joined).dims, [3, 2]);
    network.mark_output(joined, "out", None).unwrap();
    let interpreter = Interpreter::new(&network, Rounding::Weights, |_| None).unwrap();
    let run = |rows| interpreter.run([("x", Tensor::zeros(&[rows, 1])), ("y", Tensor::zeros(&[3, 1]))]);
    run(3).unwrap();
    assert!(matches!(run(2), Err(InterpreterError::Layer { layer, .. }) if layer == "joined"));

    // A product with a dimension of 1 that is not known to be so.
    let mut network = Network::new("sum");
    let x = network.add_input("x", DataType::Float, &[DYNAMIC]).unwrap();
    let y = network.add_input("y", DataType::Float, &[DYNAMIC]).unwrap();
    let pinned = network.add_input("z", DataType::Float, &[3]).unwrap();
    let sum = network.add_layer("sum", SUM, &[x, y]).unwrap();
    let sum = network.add_layer("again", SUM, &[sum, pinned]).unwrap();
    network.mark_output(sum, "out", None).unwrap();
    let interpreter = Interpreter::new(&network, Rounding::Weights, |_| None).unwrap();
    let run = |x, y| {
        let inputs = [("x", Tensor::zeros(&[x])), ("y", Tensor::zeros(&[y])), ("z", Tensor::zeros(&[3]))];
        interpreter.run(inputs).map(|outputs| outputs["out"].shape.clone())
    };
    assert_eq!(run(1, 1), Ok(vec![3]));
    assert_eq!(run(1, 3), Ok(vec![3]));
    assert!(matches!(run(2, 1), Err(InterpreterError::Layer { layer, .. }) if layer == "again"));
}

/// A decoder's worth of layers over a cache, twice.
#[test]
fn a_cache_goes_from_step_to_step() {
    let mut network = Network::new("cache");
    let cache = network.add_input("cache", DataType::Half, &[1, 1, 4, 1]).unwrap();
    let update = network.add_input("update", DataType::Half, &[1, 1, DYNAMIC, 1]).unwrap();
    let write_indices = network.add_input("write_indices", DataType::Int32, &[1]).unwrap();
    let updated =
        network.add_layer("updated", LayerKind::KvCacheUpdate, &[cache, update, write_indices]).unwrap();
    network.mark_output(updated, "cache_out", Some("cache".to_owned())).unwrap();
    let shape = network.add_layer("shape", LayerKind::Shape, &[update]).unwrap();
    network.mark_output(shape, "tokens", None).unwrap();
    let interpreter = Interpreter::new(&network, Rounding::Stored, |_| None).unwrap();
    let step = |cache: Tensor, values: &[f32], index: i64| {
        let update = Tensor::float(&[1, 1, values.len(), 1], values.to_vec());
        let index = Tensor::int(&[1], vec![index]);
        interpreter.run([("cache", cache), ("update", update), ("write_indices", index)]).unwrap()
    };
    let first = step(Tensor::zeros(&[1, 1, 4, 1]), &[1.0, 2.0], 0);
    assert_eq!(first["tokens"].ints(), [1, 1, 2, 1]);
    let second = step(first["cache_out"].clone(), &[3.0], 2);
    assert_eq!(second["cache_out"].floats(), [1.0, 2.0, 3.0, 0.0]);
}

#[test]
fn a_network_read_from_json_runs_the_same() {
    let network = Network::from_json(&linear().to_json().unwrap()).unwrap();
    let x = || Tensor::float(&[1, 2], vec![0.5, -0.25]);
    assert_eq!(run(&network, Rounding::Stored, x()), run(&linear(), Rounding::Stored, x()));
}
