use roundhouse_tensorrt_network::{DataType, LayerKind, MatrixOp, Reduce};

use DataType::{Bool, Float, Half, Int32, Int64};

use crate::{makes, refuses};

const fn product(op_a: MatrixOp, op_b: MatrixOp) -> LayerKind {
    LayerKind::MatrixMultiply { op_a, op_b }
}

#[test]
fn a_product_has_the_rows_of_one_and_the_columns_of_the_other() {
    use MatrixOp::{None, Transpose};
    makes(product(None, None), &[(Half, &[3, 5]), (Half, &[5, 8])], Half, &[3, 8]);
    makes(product(Transpose, None), &[(Half, &[5, 3]), (Half, &[5, 8])], Half, &[3, 8]);
    makes(product(None, Transpose), &[(Half, &[3, 5]), (Half, &[8, 5])], Half, &[3, 8]);
    makes(product(Transpose, Transpose), &[(Half, &[5, 3]), (Half, &[8, 5])], Half, &[3, 8]);
    refuses(product(None, None), &[(Half, &[3, 5]), (Half, &[8, 5])], "is 5 and that of the second is 8");
}

#[test]
fn dimensions_before_the_matrices_broadcast() {
    let plain = product(MatrixOp::None, MatrixOp::None);
    makes(plain.clone(), &[(Float, &[-1, -1, 64]), (Float, &[1, 64, 8])], Float, &[-1, -1, 8]);
    makes(plain.clone(), &[(Float, &[-1, -1, -1]), (Float, &[4, 64, 8])], Float, &[4, -1, 8]);
    makes(plain.clone(), &[(Float, &[2, 1, 3, 5]), (Float, &[1, 7, 5, 4])], Float, &[2, 7, 3, 4]);
    refuses(
        plain.clone(),
        &[(Float, &[2, 3, 5]), (Float, &[3, 5, 4])],
        "before the matrices: 2 and 3 on axis 0",
    );
    refuses(plain, &[(Float, &[3, 5]), (Float, &[2, 5, 4])], "ranks 0 and 1");
}

#[test]
fn matrices_are_floats_of_one_dtype_and_two_dimensions_or_more() {
    let plain = product(MatrixOp::None, MatrixOp::None);
    refuses(plain.clone(), &[(Float, &[3, 5]), (Half, &[5, 4])], "dtypes must be equal");
    refuses(plain.clone(), &[(Int64, &[3, 5]), (Int64, &[5, 4])], "must be kFLOAT");
    refuses(plain.clone(), &[(Float, &[5]), (Float, &[5, 4])], "rank 1");
    refuses(plain, &[(Float, &[5, 4])], "1 operands, 2 are needed");
}

#[test]
fn reductions_keep_their_axes_as_ones() {
    for operation in [Reduce::Sum, Reduce::Max, Reduce::Avg] {
        let reduce = |axes: &[usize]| LayerKind::Reduce { operation, axes: axes.to_vec() };
        makes(reduce(&[1]), &[(Half, &[2, -1, 4])], Half, &[2, 1, 4]);
        makes(reduce(&[2, 0]), &[(Float, &[2, -1, 4])], Float, &[1, -1, 1]);
        makes(reduce(&[0]), &[(Int32, &[2])], Int32, &[1]);
        refuses(reduce(&[0]), &[(Bool, &[2])], "kBOOL");
        refuses(reduce(&[]), &[(Float, &[2])], "no axes");
        refuses(reduce(&[1]), &[(Float, &[2])], "axis 1 of a tensor of rank 1");
        refuses(reduce(&[0, 0]), &[(Float, &[2])], "axis 0 twice");
    }
}

#[test]
fn softmax_is_of_floats_along_an_axis() {
    makes(LayerKind::SoftMax { axis: 1 }, &[(Half, &[2, -1])], Half, &[2, -1]);
    refuses(LayerKind::SoftMax { axis: 2 }, &[(Half, &[2, -1])], "axis 2");
    refuses(LayerKind::SoftMax { axis: 0 }, &[(Int64, &[2])], "must be kFLOAT");
}
