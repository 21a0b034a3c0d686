use roundhouse_tensorrt_network::{DataType, FillDims, LayerKind, SliceOperand};

use DataType::{Bf16, Bool, Float, Half, Int32, Int64};

use crate::{makes, refuses};

fn known(dims: &[i64]) -> SliceOperand {
    SliceOperand::Static(dims.to_vec())
}

fn given(expected: &[i64]) -> SliceOperand {
    SliceOperand::Input { expected: expected.to_vec() }
}

#[test]
fn a_slice_has_its_size() {
    let slice = |start: &[i64], size: &[i64]| LayerKind::Slice { start: known(start), size: known(size) };
    makes(slice(&[1, 0], &[4, 6]), &[(Half, &[5, 6])], Half, &[4, 6]);
    makes(slice(&[1, 0], &[0, 6]), &[(Half, &[5, 6])], Half, &[0, 6]);
    makes(slice(&[2, 0], &[4, 6]), &[(Bool, &[-1, 6])], Bool, &[4, 6]);
    refuses(slice(&[2, 0], &[4, 6]), &[(Half, &[5, 6])], "4 elements from 2 on axis 0, which has 5");
    refuses(slice(&[i64::MAX, 0], &[4, 6]), &[(Half, &[5, 6])], "on axis 0");
    refuses(slice(&[0, -1], &[4, 6]), &[(Half, &[5, 6])], "must be 0 or more");
    refuses(slice(&[0, 0], &[-1, 6]), &[(Half, &[5, 6])], "must be 0 or more");
    refuses(slice(&[0], &[4, 6]), &[(Half, &[5, 6])], "the start is [0]: it must have 2 elements");
    refuses(slice(&[0, 0], &[4]), &[(Half, &[5, 6])], "the size is [4]: it must have 2 elements");
    refuses(slice(&[0, 0], &[4, 6]), &[(Half, &[5, 6]), (Int64, &[2])], "2 operands, 1 are needed");
    refuses(slice(&[], &[]), &[], "0 operands");
}

#[test]
fn a_slice_of_given_size_has_what_is_known_of_it() {
    let slice = LayerKind::Slice { start: known(&[0, 2]), size: given(&[4, -1]) };
    makes(slice.clone(), &[(Float, &[4, 9]), (Int64, &[2])], Float, &[4, -1]);
    makes(slice.clone(), &[(Float, &[-1, 9]), (Int32, &[2])], Float, &[4, -1]);
    refuses(slice.clone(), &[(Float, &[3, 9]), (Int64, &[2])], "4 elements from 0 on axis 0");
    refuses(slice.clone(), &[(Float, &[4, 9])], "1 operands, 2 are needed");
    refuses(slice.clone(), &[(Float, &[4, 9]), (Int64, &[3])], "the size has 3 elements: it must have 2");
    refuses(slice.clone(), &[(Float, &[4, 9]), (Int64, &[-1])], "the size has -1 elements");
    refuses(slice.clone(), &[(Float, &[4, 9]), (Float, &[2])], "must be kINT32 or kINT64");
    refuses(slice, &[(Float, &[4, 9]), (Int64, &[1, 2])], "the size has rank 2");
    let bad = LayerKind::Slice { start: known(&[0]), size: given(&[-2]) };
    refuses(bad, &[(Float, &[4]), (Int64, &[1])], "must be -1 or more");
}

#[test]
fn a_slice_may_start_at_what_is_given() {
    let both = LayerKind::Slice { start: given(&[0, -1]), size: given(&[-1, 3]) };
    makes(both.clone(), &[(Float, &[4, 9]), (Int64, &[2]), (Int64, &[2])], Float, &[-1, 3]);
    refuses(both, &[(Float, &[4, 2]), (Int64, &[2]), (Int64, &[2])], "3 elements from 0 on axis 1");
    let start = LayerKind::Slice { start: given(&[-1]), size: known(&[3]) };
    makes(start, &[(Float, &[9]), (Int64, &[1])], Float, &[3]);
}

#[test]
fn a_concatenation_is_as_long_as_its_parts() {
    let join = |axis| LayerKind::Concatenation { axis };
    makes(join(1), &[(Bf16, &[2, 3])], Bf16, &[2, 3]);
    makes(join(1), &[(Bf16, &[2, 3]), (Bf16, &[2, 0]), (Bf16, &[2, 4])], Bf16, &[2, 7]);
    makes(join(0), &[(Int64, &[-1, 5]), (Int64, &[1, -1])], Int64, &[-1, 5]);
    makes(join(0), &[(Int64, &[1]), (Int64, &[-1]), (Int64, &[2])], Int64, &[-1]);
    makes(join(1), &[(Float, &[-1, 5]), (Float, &[4, 3])], Float, &[4, 8]);
    refuses(join(1), &[(Float, &[2, 5]), (Float, &[4, 3])], "2 and 4 on axis 0: only axis 1 may differ");
    refuses(join(0), &[(Float, &[2, 5]), (Half, &[2, 5])], "dtypes must be equal");
    refuses(join(0), &[(Float, &[2, 5]), (Float, &[2])], "rank 1: it must be 2");
    refuses(join(2), &[(Float, &[2, 5])], "axis 2");
    refuses(join(0), &[(Float, &[i64::MAX]), (Float, &[1])], "counted");
    refuses(join(0), &[], "no operands");
}

#[test]
fn a_gather_puts_the_indices_in_place_of_the_axis() {
    let gather = |axis| LayerKind::Gather { axis };
    makes(gather(0), &[(Half, &[100, 8]), (Int64, &[-1, 4])], Half, &[-1, 4, 8]);
    makes(gather(1), &[(Half, &[100, 8]), (Int32, &[3])], Half, &[100, 3]);
    makes(gather(1), &[(Half, &[100, 8]), (Int64, &[])], Half, &[100]);
    refuses(gather(2), &[(Half, &[100, 8]), (Int64, &[])], "axis 2");
    refuses(gather(0), &[(Half, &[100, 8]), (Float, &[1])], "must be kINT32 or kINT64");
    refuses(gather(0), &[(Half, &[100, 8])], "1 operands, 2 are needed");
}

#[test]
fn a_shape_is_a_vector_of_int64() {
    makes(LayerKind::Shape, &[(Half, &[-1, 3, 4])], Int64, &[3]);
    makes(LayerKind::Shape, &[(Bool, &[])], Int64, &[0]);
    refuses(LayerKind::Shape, &[], "0 operands, 1 are needed");
}

#[test]
fn an_iota_is_a_vector() {
    let counted = |length, dtype| LayerKind::Iota { length: FillDims::Static(length), dtype };
    let given = |dtype| LayerKind::Iota { length: FillDims::Input, dtype };
    for dtype in [Int32, Int64, Float] {
        makes(counted(5, dtype), &[], dtype, &[5]);
        makes(given(dtype), &[(Int64, &[1])], dtype, &[-1]);
    }
    refuses(counted(5, Half), &[], "an iota of kHALF");
    refuses(counted(-1, Int64), &[], "a length of -1");
    refuses(counted(5, Int64), &[(Int64, &[1])], "1 operands, 0 are needed");
    refuses(given(Int64), &[], "0 operands, 1 are needed");
    refuses(given(Int64), &[(Int64, &[2])], "the length has 2 elements: it must have 1");
    refuses(given(Int64), &[(Int64, &[])], "the length has rank 0");
    refuses(given(Int64), &[(Float, &[1])], "must be kINT32 or kINT64");
}
