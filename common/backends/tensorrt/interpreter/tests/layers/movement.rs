use roundhouse_tensorrt_interpreter::Tensor;
use roundhouse_tensorrt_network::{DataType, FillDims, LayerKind, SliceOperand};

use crate::{Operand, fails, floats, gives, ints, truths};

fn known(dims: &[i64]) -> SliceOperand {
    SliceOperand::Static(dims.to_vec())
}

fn given(expected: &[i64]) -> SliceOperand {
    SliceOperand::Input { expected: expected.to_vec() }
}

/// `[[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]`.
fn grid() -> Operand {
    let values: Vec<i64> = (0..3).flat_map(|row| (0..4).map(move |column| 10 * row + column)).collect();
    ints(&[3, 4], &values)
}

#[test]
fn slices() {
    let slice = LayerKind::Slice { start: known(&[1, 2]), size: known(&[2, 2]) };
    gives(slice.clone(), &[grid()], Tensor::int(&[2, 2], vec![12, 13, 22, 23]));
    fails(slice, &[ints(&[2, 4], &[0; 8]).dynamic()], "2 elements from 1 on of 2");
    let empty = LayerKind::Slice { start: known(&[3, 0]), size: known(&[0, 4]) };
    gives(empty, &[grid()], Tensor::int(&[0, 4], vec![]));
}

#[test]
fn slices_of_what_is_given() {
    let slice = LayerKind::Slice { start: given(&[-1, -1]), size: given(&[-1, 3]) };
    let operands = |start: &[i64], size: &[i64]| [grid(), ints(&[2], start), ints(&[2], size)];
    gives(slice.clone(), &operands(&[0, 1], &[2, 3]), Tensor::int(&[2, 3], vec![1, 2, 3, 11, 12, 13]));
    fails(slice.clone(), &operands(&[0, 1], &[2, 2]), "the size is [2, 2]: [-1, 3] is expected");
    fails(slice.clone(), &operands(&[2, 1], &[2, 3]), "2 elements from 2 on of 3");
    fails(slice.clone(), &operands(&[0, 1], &[-1, 3]), "the size is [-1, 3]");
    fails(slice, &operands(&[-1, 1], &[1, 3]), "the start is [-1, 1]");
    let size = LayerKind::Slice { start: known(&[1, 0]), size: given(&[-1, 4]) };
    gives(size, &[grid(), ints(&[2], &[1, 4])], Tensor::int(&[1, 4], vec![10, 11, 12, 13]));
}

#[test]
fn concatenations() {
    let join = |axis| LayerKind::Concatenation { axis };
    let (a, b) = (floats(&[2, 1], &[1.0, 2.0]), floats(&[2, 2], &[3.0, 4.0, 5.0, 6.0]));
    gives(
        join(1),
        &[a.clone(), b.clone(), a.clone()],
        Tensor::float(&[2, 4], vec![1.0, 3.0, 4.0, 1.0, 2.0, 5.0, 6.0, 2.0]),
    );
    gives(
        join(0),
        &[b.clone(), b.clone()],
        Tensor::float(&[4, 2], vec![3.0, 4.0, 5.0, 6.0, 3.0, 4.0, 5.0, 6.0]),
    );
    gives(join(1), &[floats(&[2, 0], &[]), a.clone()], a.value.clone());
    gives(join(0), &[truths(&[1], &[1]), truths(&[2], &[0, 1])], Tensor::int(&[3], vec![1, 0, 1]));
    fails(join(0), &[a.dynamic(), b.dynamic()], "joined along axis 0");
}

#[test]
fn gathers() {
    let gather = |axis| LayerKind::Gather { axis };
    gives(
        gather(0),
        &[grid(), ints(&[2, 1], &[2, 0])],
        Tensor::int(&[2, 1, 4], vec![20, 21, 22, 23, 0, 1, 2, 3]),
    );
    gives(gather(1), &[grid(), ints(&[2], &[3, 1])], Tensor::int(&[3, 2], vec![3, 1, 13, 11, 23, 21]));
    gives(gather(1), &[grid(), ints(&[], &[1])], Tensor::int(&[3], vec![1, 11, 21]));
    gives(gather(0), &[floats(&[2], &[5.0, 6.0]), ints(&[1], &[1])], Tensor::float(&[1], vec![6.0]));
}

#[test]
fn gathers_out_of_bounds_give_zero_and_negative_ones_count_back() {
    let gather = LayerKind::Gather { axis: 0 };
    let x = floats(&[3], &[5.0, 6.0, 7.0]);
    let indices = ints(&[6], &[3, -1, -3, -4, i64::MAX, i64::MIN]);
    gives(gather.clone(), &[x.clone(), indices], Tensor::float(&[6], vec![0.0, 7.0, 5.0, 0.0, 0.0, 0.0]));
    gives(gather.clone(), &[x.clone().dynamic(), ints(&[2], &[9, 1])], Tensor::float(&[2], vec![0.0, 6.0]));
    fails(gather, &[x.dynamic(), ints(&[1], &[-1])], "index -1 of an axis of dynamic length");
}

#[test]
fn shapes() {
    gives(LayerKind::Shape, &[grid().dynamic()], Tensor::int(&[2], vec![3, 4]));
    gives(LayerKind::Shape, &[floats(&[], &[1.0])], Tensor::int(&[0], vec![]));
}

#[test]
fn iotas() {
    let iota = |length, dtype| LayerKind::Iota { length, dtype };
    gives(iota(FillDims::Static(3), DataType::Int64), &[], Tensor::int(&[3], vec![0, 1, 2]));
    gives(iota(FillDims::Input, DataType::Int32), &[ints(&[1], &[2])], Tensor::int(&[2], vec![0, 1]));
    gives(iota(FillDims::Input, DataType::Float), &[ints(&[1], &[2])], Tensor::float(&[2], vec![0.0, 1.0]));
    gives(iota(FillDims::Input, DataType::Int64), &[ints(&[1], &[0])], Tensor::int(&[0], vec![]));
    fails(iota(FillDims::Input, DataType::Int64), &[ints(&[1], &[-1])], "a length of -1");
    fails(iota(FillDims::Input, DataType::Int64), &[ints(&[1], &[i64::MAX])], "too many elements");
}
