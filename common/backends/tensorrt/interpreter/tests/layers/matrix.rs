use roundhouse_tensorrt_interpreter::Tensor;
use roundhouse_tensorrt_network::{LayerKind, MatrixOp};

use crate::{fails, floats, gives};

fn product(op_a: MatrixOp, op_b: MatrixOp) -> LayerKind {
    LayerKind::MatrixMultiply { op_a, op_b }
}

/// `[[1, 2, 3], [4, 5, 6]] · [[1, 0], [0, 1], [2, 3]]`.
const PRODUCT: [f32; 4] = [7.0, 11.0, 16.0, 23.0];

#[test]
fn matrices_are_transposed_first() {
    let a = floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let a_transposed = floats(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    let b = floats(&[3, 2], &[1.0, 0.0, 0.0, 1.0, 2.0, 3.0]);
    let b_transposed = floats(&[2, 3], &[1.0, 0.0, 2.0, 0.0, 1.0, 3.0]);
    let expected = Tensor::float(&[2, 2], PRODUCT.to_vec());
    use MatrixOp::{None, Transpose};
    gives(product(None, None), &[a.clone(), b.clone()], expected.clone());
    gives(product(Transpose, None), &[a_transposed.clone(), b], expected.clone());
    gives(product(None, Transpose), &[a, b_transposed.clone()], expected.clone());
    gives(product(Transpose, Transpose), &[a_transposed, b_transposed], expected);
}

#[test]
fn leading_dimensions_are_repeated() {
    let plain = product(MatrixOp::None, MatrixOp::None);
    let a = floats(&[2, 1, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
    let b = floats(&[1, 3, 2, 1], &[1.0, 1.0, 10.0, 10.0, 1.0, 0.0]);
    let expected = Tensor::float(&[2, 3, 1, 1], vec![3.0, 30.0, 1.0, 7.0, 70.0, 3.0]);
    gives(plain.clone(), &[a, b], expected);
    let (two, three) = (floats(&[2, 1, 1], &[1.0; 2]), floats(&[3, 1, 1], &[1.0; 3]));
    fails(plain, &[two.dynamic(), three.dynamic()], "do not broadcast");
}

#[test]
fn inner_dimensions_are_equal() {
    let (a, b) = (floats(&[1, 2], &[1.0; 2]), floats(&[3, 1], &[1.0; 3]));
    fails(product(MatrixOp::None, MatrixOp::None), &[a.dynamic(), b.dynamic()], "inner dimensions 2 and 3");
}

#[test]
fn a_product_over_nothing_is_zero() {
    let (a, b) = (floats(&[1, 0], &[]), floats(&[0, 2], &[]));
    gives(product(MatrixOp::None, MatrixOp::None), &[a, b], Tensor::float(&[1, 2], vec![0.0; 2]));
}

#[test]
fn sums_do_not_lose_small_terms() {
    let (a, b) = (floats(&[1, 3], &[1e8, 1.0, -1e8]), floats(&[3, 1], &[1.0; 3]));
    gives(product(MatrixOp::None, MatrixOp::None), &[a, b], Tensor::float(&[1, 1], vec![1.0]));
}
