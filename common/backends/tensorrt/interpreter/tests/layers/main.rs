//! What each layer computes, by numbers that can be checked by hand.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

mod attention;
mod cache;
mod elementwise;
mod matrix;
mod movement;
mod normalization;
mod rotary;
mod shuffle;

use roundhouse_tensorrt_interpreter::{Data, Interpreter, InterpreterError, Rounding, Tensor};
use roundhouse_tensorrt_network::{DYNAMIC, DataType, LayerKind, Network};

use DataType::{Bool, Float, Int32, Int64};

/// An operand. Its dimensions are declared as they are, if not otherwise.
#[derive(Clone)]
struct Operand {
    dtype: DataType,
    dims: Option<Vec<i64>>,
    value: Tensor,
}

impl Operand {
    /// With nothing but dynamic dimensions.
    fn dynamic(self) -> Self {
        Self { dims: Some(vec![DYNAMIC; self.value.shape.len()]), ..self }
    }
}

fn floats(shape: &[usize], values: &[f32]) -> Operand {
    Operand { dtype: Float, dims: None, value: Tensor::float(shape, values.to_vec()) }
}

fn integers(dtype: DataType, shape: &[usize], values: &[i64]) -> Operand {
    Operand { dtype, dims: None, value: Tensor::int(shape, values.to_vec()) }
}

fn ints(shape: &[usize], values: &[i64]) -> Operand {
    integers(Int64, shape, values)
}

fn ints32(shape: &[usize], values: &[i64]) -> Operand {
    integers(Int32, shape, values)
}

fn truths(shape: &[usize], values: &[i64]) -> Operand {
    integers(Bool, shape, values)
}

/// What a layer makes of these operands, in fp32.
fn compute(kind: LayerKind, operands: &[Operand]) -> Result<Tensor, String> {
    let mut network = Network::new("test");
    let mut inputs = Vec::new();
    for (index, operand) in operands.iter().enumerate() {
        let shape = || operand.value.shape.iter().map(|&dim| dim as i64).collect();
        let dims: Vec<i64> = operand.dims.clone().unwrap_or_else(shape);
        inputs.push(network.add_input(format!("x{index}"), operand.dtype, &dims).unwrap());
    }
    let aliases = matches!(kind, LayerKind::KvCacheUpdate).then(|| "x0".to_owned());
    let output = network.add_layer("layer", kind, &inputs).unwrap();
    network.mark_output(output, "y", aliases).unwrap();
    let interpreter = Interpreter::new(&network, Rounding::Weights, |_| None).unwrap();
    let names: Vec<String> = (0..operands.len()).map(|index| format!("x{index}")).collect();
    let given = names.iter().map(String::as_str).zip(operands.iter().map(|operand| operand.value.clone()));
    match interpreter.run(given) {
        Ok(mut outputs) => Ok(outputs.remove("y").unwrap()),
        Err(InterpreterError::Layer { layer, what }) if layer == "layer" => Err(what),
        Err(other) => panic!("{other}"),
    }
}

/// Asserts what a layer makes, to the last bit; NaN equals NaN.
#[track_caller]
fn gives(kind: LayerKind, operands: &[Operand], expected: Tensor) {
    let found = compute(kind, operands).unwrap();
    assert_eq!(found.shape, expected.shape);
    match (&found.data, &expected.data) {
        (Data::Float(found), Data::Float(expected)) => {
            let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
            assert!(found.iter().zip(expected).all(same), "{found:?} is not {expected:?}");
        }
        (found, expected) => assert_eq!(found, expected),
    }
}

/// Asserts what a layer makes, to six digits.
#[track_caller]
fn gives_about(kind: LayerKind, operands: &[Operand], expected: Tensor) {
    let found = compute(kind, operands).unwrap();
    assert_eq!(found.shape, expected.shape);
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
    assert!(found.floats().iter().zip(expected.floats()).all(near), "{found:?} is not {expected:?}");
}

/// Asserts that a layer fails with words that contain these.
#[track_caller]
fn fails(kind: LayerKind, operands: &[Operand], words: &str) {
    match compute(kind, operands) {
        Err(what) => assert!(what.contains(words), "{what:?} does not say {words:?}"),
        Ok(made) => panic!("{made:?}"),
    }
}
