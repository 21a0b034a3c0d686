use roundhouse_tensorrt_interpreter::Tensor;
use roundhouse_tensorrt_network::{Activation, DataType, ElementWise, LayerKind, Unary};

use crate::{fails, floats, gives, gives_about, ints, ints32, truths};

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

fn op(operation: ElementWise) -> LayerKind {
    LayerKind::ElementWise { operation }
}

#[test]
fn activations() {
    let x = [floats(&[4], &[0.0, 1.0, -1.0, 20.0])];
    let check = |function, expected: [f32; 4]| {
        gives_about(LayerKind::Activation { function }, &x, Tensor::float(&[4], expected.to_vec()));
    };
    check(Activation::Sigmoid, [0.5, 0.731_058_6, 0.268_941_4, 1.0]);
    check(Activation::Tanh, [0.0, 0.761_594_2, -0.761_594_2, 1.0]);
    // Φ(1) = 0.841345, and its approximation.
    check(Activation::GeluErf, [0.0, 0.841_344_7, -0.158_655_3, 20.0]);
    check(Activation::GeluTanh, [0.0, 0.841_192, -0.158_808, 20.0]);
}

#[test]
fn unary_functions() {
    let of = |function| LayerKind::Unary { function };
    gives(of(Unary::Sqrt), &[floats(&[3], &[9.0, 0.25, -1.0])], Tensor::float(&[3], vec![3.0, 0.5, NAN]));
    gives(of(Unary::Recip), &[floats(&[3], &[4.0, -0.5, 0.0])], Tensor::float(&[3], vec![0.25, -2.0, INF]));
    gives(of(Unary::Not), &[truths(&[2], &[0, 1])], Tensor::int(&[2], vec![1, 0]));
    gives(of(Unary::IsInf), &[floats(&[4], &[1.0, INF, -INF, NAN])], Tensor::int(&[4], vec![0, 1, 1, 0]));
}

#[test]
fn arithmetic_of_floats() {
    let x = [floats(&[2], &[6.0, -1.0]), floats(&[2], &[4.0, 0.5])];
    for (operation, expected) in [
        (ElementWise::Sum, [10.0, -0.5]),
        (ElementWise::Prod, [24.0, -0.5]),
        (ElementWise::Sub, [2.0, -1.5]),
        (ElementWise::Div, [1.5, -2.0]),
        (ElementWise::Max, [6.0, 0.5]),
        (ElementWise::Min, [4.0, -1.0]),
    ] {
        gives(op(operation), &x, Tensor::float(&[2], expected.to_vec()));
    }
    for operation in [ElementWise::Max, ElementWise::Min] {
        gives(op(operation), &[floats(&[1], &[NAN]), floats(&[1], &[1.0])], Tensor::float(&[1], vec![NAN]));
    }
}

#[test]
fn arithmetic_of_integers() {
    let x = [ints(&[2], &[7, -7]), ints(&[2], &[2, 2])];
    for (operation, expected) in [
        (ElementWise::Sum, [9, -5]),
        (ElementWise::Prod, [14, -14]),
        (ElementWise::Sub, [5, -9]),
        (ElementWise::Div, [3, -3]),
        (ElementWise::Max, [7, 2]),
        (ElementWise::Min, [2, -7]),
    ] {
        gives(op(operation), &x, Tensor::int(&[2], expected.to_vec()));
    }
    fails(op(ElementWise::Div), &[ints(&[1], &[1]), ints(&[1], &[0])], "Div of 1 and 0");
    fails(op(ElementWise::Sum), &[ints(&[1], &[i64::MAX]), ints(&[1], &[1])], "Sum of");
    fails(op(ElementWise::Sum), &[ints32(&[1], &[i64::from(i32::MAX)]), ints32(&[1], &[1])], "is no kINT32");
}

#[test]
fn comparisons_and_logic() {
    let x = [ints(&[3], &[1, 2, 3]), ints(&[3], &[2, 2, 2])];
    gives(op(ElementWise::Less), &x, Tensor::int(&[3], vec![1, 0, 0]));
    gives(op(ElementWise::Greater), &x, Tensor::int(&[3], vec![0, 0, 1]));
    gives(op(ElementWise::Equal), &x, Tensor::int(&[3], vec![0, 1, 0]));
    let x = [floats(&[3], &[1.0, NAN, INF]), floats(&[3], &[2.0, NAN, INF])];
    gives(op(ElementWise::Less), &x, Tensor::int(&[3], vec![1, 0, 0]));
    gives(op(ElementWise::Greater), &x, Tensor::int(&[3], vec![0, 0, 0]));
    gives(op(ElementWise::Equal), &x, Tensor::int(&[3], vec![0, 0, 1]));
    let x = [truths(&[4], &[0, 0, 1, 1]), truths(&[4], &[0, 1, 0, 1])];
    gives(op(ElementWise::And), &x, Tensor::int(&[4], vec![0, 0, 0, 1]));
    gives(op(ElementWise::Or), &x, Tensor::int(&[4], vec![0, 1, 1, 1]));
    gives(op(ElementWise::Equal), &x, Tensor::int(&[4], vec![1, 0, 0, 1]));
}

#[test]
fn dimensions_of_one_are_repeated() {
    let x = [floats(&[2, 1], &[10.0, 20.0]), floats(&[1, 3], &[1.0, 2.0, 3.0])];
    gives(op(ElementWise::Sum), &x, Tensor::float(&[2, 3], vec![11.0, 12.0, 13.0, 21.0, 22.0, 23.0]));
    let x = [floats(&[2, 1], &[10.0, 20.0]), floats(&[1, 0], &[])];
    gives(op(ElementWise::Sum), &x, Tensor::float(&[2, 0], vec![]));
    let x = [floats(&[], &[10.0]), floats(&[], &[1.0])];
    gives(op(ElementWise::Sub), &x, Tensor::float(&[], vec![9.0]));
    let x = [floats(&[2], &[1.0, 2.0]).dynamic(), floats(&[3], &[1.0, 2.0, 3.0]).dynamic()];
    fails(op(ElementWise::Sum), &x, "do not broadcast");
}

#[test]
fn casts() {
    let to = |to| LayerKind::Cast { to };
    let x = [floats(&[4], &[1.9, -1.9, 0.0, 0.1])];
    gives(to(DataType::Int32), &x, Tensor::int(&[4], vec![1, -1, 0, 0]));
    gives(to(DataType::Bool), &x, Tensor::int(&[4], vec![1, 1, 0, 1]));
    gives(to(DataType::Half), &x, x[0].value.clone());
    gives(to(DataType::Float), &[ints(&[2], &[-3, 1 << 24])], Tensor::float(&[2], vec![-3.0, 16_777_216.0]));
    gives(to(DataType::Bool), &[ints(&[3], &[-3, 0, 1])], Tensor::int(&[3], vec![1, 0, 1]));
    gives(to(DataType::Float), &[truths(&[2], &[0, 1])], Tensor::float(&[2], vec![0.0, 1.0]));
    gives(to(DataType::Int32), &[ints(&[1], &[5])], Tensor::int(&[1], vec![5]));
    fails(to(DataType::Int32), &[ints(&[1], &[1 << 31])], "2147483648 is no kINT32");
    fails(to(DataType::Int64), &[floats(&[1], &[NAN])], "NaN as an integer");
    fails(to(DataType::Int64), &[floats(&[1], &[9.3e18])], "as an integer");
    fails(to(DataType::Int32), &[floats(&[1], &[3e9])], "3000000000 is no kINT32");
}

#[test]
fn selections() {
    let condition = truths(&[2, 1], &[1, 0]);
    let x = [condition.clone(), floats(&[1, 2], &[1.0, 2.0]), floats(&[1, 1], &[9.0])];
    gives(LayerKind::Select, &x, Tensor::float(&[2, 2], vec![1.0, 2.0, 9.0, 9.0]));
    let x = [condition, ints(&[1, 1], &[1]), ints(&[2, 1], &[5, 6])];
    gives(LayerKind::Select, &x, Tensor::int(&[2, 1], vec![1, 6]));
    // What is not chosen does not matter.
    let x = [truths(&[1], &[1]), floats(&[1], &[1.0]), floats(&[1], &[NAN])];
    gives(LayerKind::Select, &x, Tensor::float(&[1], vec![1.0]));
}
