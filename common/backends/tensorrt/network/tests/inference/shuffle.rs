use roundhouse_tensorrt_network::{DataType, LayerKind, Reshape};

use DataType::{Bool, Float, Half, Int32, Int64};

use crate::{makes, refuses};

fn reshape(dims: &[i64]) -> LayerKind {
    LayerKind::Shuffle {
        first_transpose: None,
        reshape: Some(Reshape::Static(dims.to_vec())),
        second_transpose: None,
    }
}

fn reshape_to_input(expected: &[i64]) -> LayerKind {
    LayerKind::Shuffle {
        first_transpose: None,
        reshape: Some(Reshape::Input { expected: expected.to_vec() }),
        second_transpose: None,
    }
}

fn transpose(first: Option<&[usize]>, second: Option<&[usize]>) -> LayerKind {
    LayerKind::Shuffle {
        first_transpose: first.map(<[usize]>::to_vec),
        reshape: None,
        second_transpose: second.map(<[usize]>::to_vec),
    }
}

#[test]
fn a_transpose_takes_axes_in_the_order_given() {
    makes(transpose(Some(&[1, 2, 0]), None), &[(Half, &[3, 5, -1])], Half, &[5, -1, 3]);
    makes(transpose(None, Some(&[1, 2, 0])), &[(Half, &[3, 5, -1])], Half, &[5, -1, 3]);
    makes(transpose(Some(&[1, 2, 0]), Some(&[1, 2, 0])), &[(Bool, &[3, 5, 7])], Bool, &[7, 3, 5]);
    makes(transpose(None, None), &[(Half, &[3])], Half, &[3]);
    for bad in [&[0][..], &[0, 0], &[0, 2], &[0, 1, 2]] {
        refuses(transpose(Some(bad), None), &[(Half, &[3, 5])], "is no permutation of the axes of [3, 5]");
        refuses(transpose(None, Some(bad)), &[(Half, &[3, 5])], "is no permutation of the axes of [3, 5]");
    }
}

#[test]
fn a_reshape_copies_and_finds_out() {
    makes(reshape(&[0, 0, 9, 64]), &[(Half, &[-1, -1, 576])], Half, &[-1, -1, 9, 64]);
    makes(reshape(&[0, -1, 9, 64]), &[(Half, &[-1, -1, 576])], Half, &[-1, -1, 9, 64]);
    makes(reshape(&[0, 0, -1]), &[(Half, &[-1, -1, 9, 64])], Half, &[-1, -1, 576]);
    makes(reshape(&[0, -1, 3]), &[(Half, &[-1, 4, 6])], Half, &[-1, 8, 3]);
    makes(reshape(&[0, -1, 2]), &[(Half, &[-1, 4, -1])], Half, &[-1, -1, 2]);
    makes(reshape(&[-1]), &[(Half, &[3, 4])], Half, &[12]);
    makes(reshape(&[-1]), &[(Half, &[-1, 4])], Half, &[-1]);
    makes(reshape(&[0, -1]), &[(Half, &[2, 0])], Half, &[2, 0]);
    makes(reshape(&[1]), &[(Half, &[])], Half, &[1]);
    makes(reshape(&[]), &[(Half, &[1])], Half, &[]);
    makes(reshape(&[]), &[(Half, &[-1])], Half, &[]);
}

#[test]
fn a_reshape_may_pin_a_dynamic_dimension() {
    makes(reshape(&[0, 16, 9, 64]), &[(Half, &[-1, -1, 9, 64])], Half, &[-1, 16, 9, 64]);
    makes(reshape(&[4, 2]), &[(Half, &[-1, 2])], Half, &[4, 2]);
}

#[test]
fn a_reshape_keeps_the_number_of_elements() {
    refuses(
        reshape(&[5, 5]),
        &[(Half, &[2, 3, 4])],
        "[2, 3, 4] reshaped to [5, 5]: the number of elements changes",
    );
    refuses(reshape(&[0, 8, 64]), &[(Half, &[-1, 9, 64])], "the number of elements changes");
    refuses(reshape(&[5, -1]), &[(Half, &[2, 3, 4])], "no whole number");
    refuses(reshape(&[0, 0, 0]), &[(Half, &[2, 3])], "no axis 2 to copy");
    refuses(reshape(&[-1, -1]), &[(Half, &[2, 3])], "at most one");
    refuses(reshape(&[-2, 3]), &[(Half, &[2, 3])], "must be above 0");
    refuses(reshape(&[0, -1]), &[(Half, &[0, 3])], "not determined");
    refuses(reshape(&[6]), &[(Half, &[2, 3]), (Int64, &[1])], "2 operands, 1 are needed");
}

#[test]
fn a_reshape_comes_between_the_transposes() {
    let kind = LayerKind::Shuffle {
        first_transpose: Some(vec![0, 2, 1]),
        reshape: Some(Reshape::Static(vec![0, 0, 2, 3])),
        second_transpose: Some(vec![2, 0, 1, 3]),
    };
    makes(kind, &[(Float, &[-1, 6, 5])], Float, &[2, -1, 5, 3]);
}

#[test]
fn a_reshape_to_given_dimensions_has_what_is_known_of_them() {
    makes(reshape_to_input(&[4, -1, 16]), &[(Float, &[1, 4, -1, 16]), (Int64, &[3])], Float, &[4, -1, 16]);
    makes(reshape_to_input(&[4, 3]), &[(Float, &[12]), (Int32, &[2])], Float, &[4, 3]);
    refuses(reshape_to_input(&[4, 4]), &[(Float, &[12]), (Int64, &[2])], "the number of elements changes");
    refuses(reshape_to_input(&[4, 0]), &[(Float, &[-1]), (Int64, &[2])], "must be above 0");
    refuses(reshape_to_input(&[4, 3]), &[(Float, &[12])], "1 operands, 2 are needed");
    refuses(
        reshape_to_input(&[4, 3]),
        &[(Float, &[12]), (Int64, &[3])],
        "the shape has 3 elements: it must have 2",
    );
    refuses(reshape_to_input(&[4, 3]), &[(Float, &[12]), (Float, &[2])], "must be kINT32 or kINT64");
}
