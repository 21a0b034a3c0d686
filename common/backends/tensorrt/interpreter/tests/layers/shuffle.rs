use roundhouse_tensorrt_interpreter::Tensor;
use roundhouse_tensorrt_network::{LayerKind, Reshape};

use crate::{Operand, fails, floats, gives, ints, truths};

fn shuffle(first: Option<&[usize]>, reshape: Option<Reshape>, second: Option<&[usize]>) -> LayerKind {
    LayerKind::Shuffle {
        first_transpose: first.map(<[usize]>::to_vec),
        reshape,
        second_transpose: second.map(<[usize]>::to_vec),
    }
}

fn reshape(dims: &[i64]) -> LayerKind {
    shuffle(None, Some(Reshape::Static(dims.to_vec())), None)
}

/// 0, 1, 2, …
fn counted(shape: &[usize]) -> Operand {
    ints(shape, &(0..shape.iter().product::<usize>() as i64).collect::<Vec<_>>())
}

#[test]
fn a_transpose_takes_axes_in_the_order_given() {
    let expected = Tensor::int(&[3, 2], vec![0, 3, 1, 4, 2, 5]);
    gives(shuffle(Some(&[1, 0]), None, None), &[counted(&[2, 3])], expected.clone());
    gives(shuffle(None, None, Some(&[1, 0])), &[counted(&[2, 3])], expected);
    // Not its own inverse: element [i, j, k] of [2, 1, 3] comes to [j, k, i].
    let expected = Tensor::int(&[1, 3, 2], vec![0, 3, 1, 4, 2, 5]);
    gives(shuffle(Some(&[1, 2, 0]), None, None), &[counted(&[2, 1, 3])], expected);
    let expected = Tensor::int(&[3, 2, 1], vec![0, 3, 1, 4, 2, 5]);
    gives(shuffle(Some(&[2, 0, 1]), None, None), &[counted(&[2, 1, 3])], expected);
}

#[test]
fn a_reshape_comes_between_the_transposes() {
    // [2, 3] → [3, 2]: 0 3 1 4 2 5 → [2, 3]: (0 3 1) (4 2 5) → [3, 2].
    let kind = shuffle(Some(&[1, 0]), Some(Reshape::Static(vec![2, -1])), Some(&[1, 0]));
    gives(kind, &[counted(&[2, 3])], Tensor::int(&[3, 2], vec![0, 4, 3, 2, 1, 5]));
    // 0 copies a dimension of what is reshaped, so after the first transpose.
    let kind = shuffle(Some(&[1, 0]), Some(Reshape::Static(vec![0, -1, 1])), None);
    gives(kind, &[counted(&[2, 3])], Tensor::int(&[3, 2, 1], vec![0, 3, 1, 4, 2, 5]));
}

#[test]
fn reshapes_copy_and_find_out() {
    let six = || Tensor::int(&[6], (0..6).collect()).data;
    let shaped = |shape: &[usize]| Tensor { shape: shape.to_vec(), data: six() };
    gives(reshape(&[3, 2]), &[counted(&[2, 3])], shaped(&[3, 2]));
    gives(reshape(&[0, 1, 3]), &[counted(&[2, 3]).dynamic()], shaped(&[2, 1, 3]));
    gives(reshape(&[-1, 2]), &[counted(&[2, 3]).dynamic()], shaped(&[3, 2]));
    gives(reshape(&[0, 0]), &[counted(&[2, 3]).dynamic()], shaped(&[2, 3]));
    gives(reshape(&[]), &[floats(&[1], &[5.0]).dynamic()], Tensor::float(&[], vec![5.0]));
    gives(reshape(&[1, 1]), &[truths(&[], &[1])], Tensor::int(&[1, 1], vec![1]));
    gives(reshape(&[0, -1]), &[floats(&[2, 0], &[]).dynamic()], Tensor::float(&[2, 0], vec![]));
}

#[test]
fn a_reshape_that_pins_a_dimension_fails_where_it_is_another() {
    gives(reshape(&[2, 3]), &[counted(&[2, 3]).dynamic()], counted(&[2, 3]).value);
    fails(reshape(&[2, 3]), &[counted(&[3, 3]).dynamic()], "the number of elements changes");
    fails(reshape(&[-1, 4]), &[counted(&[3, 3]).dynamic()], "no whole number");
    fails(reshape(&[0, -1]), &[counted(&[0, 3]).dynamic()], "no whole number");
}

#[test]
fn reshapes_to_what_is_given() {
    let kind = shuffle(None, Some(Reshape::Input { expected: vec![-1, 2] }), None);
    let with = |shape: &[i64]| [counted(&[2, 3]).dynamic(), ints(&[2], shape)];
    gives(kind.clone(), &with(&[3, 2]), Tensor::int(&[3, 2], (0..6).collect()));
    gives(kind.clone(), &with(&[-1, 2]), Tensor::int(&[3, 2], (0..6).collect()));
    fails(kind.clone(), &with(&[2, 3]), "it makes [2, 3]: it must make [-1, 2]");
    fails(kind.clone(), &with(&[4, 2]), "the number of elements changes");
    fails(kind.clone(), &with(&[-1, -1]), "-1 twice");
    fails(kind, &with(&[-2, 2]), "a negative dimension");
}
