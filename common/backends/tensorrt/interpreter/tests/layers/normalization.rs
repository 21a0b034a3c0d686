use roundhouse_tensorrt_interpreter::Tensor;
use roundhouse_tensorrt_network::{LayerKind, Reduce};

use crate::{fails, floats, gives, gives_about, ints};

fn reduce(operation: Reduce, axes: &[usize]) -> LayerKind {
    LayerKind::Reduce { operation, axes: axes.to_vec() }
}

#[test]
fn reductions_of_floats() {
    let x = [floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 9.0])];
    gives(reduce(Reduce::Sum, &[1]), &x, Tensor::float(&[2, 1], vec![6.0, 18.0]));
    gives(reduce(Reduce::Avg, &[1]), &x, Tensor::float(&[2, 1], vec![2.0, 6.0]));
    gives(reduce(Reduce::Max, &[0]), &x, Tensor::float(&[1, 3], vec![4.0, 5.0, 9.0]));
    gives(reduce(Reduce::Avg, &[1, 0]), &x, Tensor::float(&[1, 1], vec![4.0]));
    let x = [floats(&[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])];
    gives(reduce(Reduce::Sum, &[0, 2]), &x, Tensor::float(&[1, 2, 1], vec![14.0, 22.0]));
    gives(reduce(Reduce::Sum, &[1]), &x, Tensor::float(&[2, 1, 2], vec![4.0, 6.0, 12.0, 14.0]));
}

#[test]
fn reductions_of_little_or_nothing() {
    let nan = [floats(&[1, 2], &[f32::NAN, 1.0])];
    gives(reduce(Reduce::Max, &[1]), &nan, Tensor::float(&[1, 1], vec![f32::NAN]));
    let none = [floats(&[1, 0], &[])];
    gives(reduce(Reduce::Sum, &[1]), &none, Tensor::float(&[1, 1], vec![0.0]));
    gives(reduce(Reduce::Max, &[1]), &none, Tensor::float(&[1, 1], vec![f32::NEG_INFINITY]));
    gives(reduce(Reduce::Avg, &[1]), &none, Tensor::float(&[1, 1], vec![f32::NAN]));
}

#[test]
fn reductions_of_integers() {
    let x = [ints(&[3], &[4, -1, 7])];
    gives(reduce(Reduce::Sum, &[0]), &x, Tensor::int(&[1], vec![10]));
    gives(reduce(Reduce::Max, &[0]), &x, Tensor::int(&[1], vec![7]));
    fails(reduce(Reduce::Avg, &[0]), &x, "an average of integers");
    fails(reduce(Reduce::Sum, &[0]), &[ints(&[2], &[i64::MAX, 1])], "beyond kINT64");
}

#[test]
fn softmax_runs_along_its_axis() {
    let ln = |x: f32| x.ln();
    let x = [floats(&[2, 3], &[ln(1.0), ln(2.0), ln(5.0), ln(3.0), ln(3.0), ln(2.0)])];
    let rows = Tensor::float(&[2, 3], vec![0.125, 0.25, 0.625, 0.375, 0.375, 0.25]);
    gives_about(LayerKind::SoftMax { axis: 1 }, &x, rows);
    let columns = Tensor::float(&[2, 3], vec![0.25, 0.4, 5.0 / 7.0, 0.75, 0.6, 2.0 / 7.0]);
    gives_about(LayerKind::SoftMax { axis: 0 }, &x, columns);
}

#[test]
fn softmax_bears_large_numbers() {
    let x = [floats(&[1, 3], &[1e30, -1e30, f32::NEG_INFINITY])];
    gives(LayerKind::SoftMax { axis: 1 }, &x, Tensor::float(&[1, 3], vec![1.0, 0.0, 0.0]));
}

#[test]
fn softmax_of_nothing_but_minus_infinity_is_nan() {
    let x = [floats(&[2, 2], &[f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY])];
    gives(LayerKind::SoftMax { axis: 1 }, &x, Tensor::float(&[2, 2], vec![f32::NAN, f32::NAN, 1.0, 0.0]));
}
