use roundhouse_tensorrt_network::{Constant, DataType, LayerKind, RotaryTable, Values};

use DataType::{Bf16, Bool, Float, Half, Int32, Int64};

use crate::{makes, refuses};

fn constant(dtype: DataType, dims: &[i64], values: Values) -> LayerKind {
    LayerKind::Constant(Constant { dtype, dims: dims.to_vec(), values })
}

fn floats(count: usize) -> Values {
    Values::Floats { values: vec![0.5; count] }
}

fn integers(count: usize) -> Values {
    Values::Integers { values: vec![1; count] }
}

fn weight() -> Values {
    Values::Weight { name: "lm_head.weight".to_owned() }
}

#[test]
fn a_constant_is_what_it_says() {
    makes(constant(Bf16, &[2, 3], floats(6)), &[], Bf16, &[2, 3]);
    makes(constant(Float, &[], floats(1)), &[], Float, &[]);
    makes(constant(Half, &[0, 3], floats(0)), &[], Half, &[0, 3]);
    for dtype in [Int32, Int64, Bool] {
        makes(constant(dtype, &[4], integers(4)), &[], dtype, &[4]);
    }
    makes(constant(Half, &[1, 128_256, 2048], weight()), &[], Half, &[1, 128_256, 2048]);
    refuses(constant(Float, &[2], floats(2)), &[(Float, &[2])], "1 operands, 0 are needed");
}

#[test]
fn a_constant_has_as_many_values_as_elements() {
    refuses(constant(Float, &[2, 3], floats(5)), &[], "5 values for 6 elements");
    refuses(constant(Int64, &[], integers(0)), &[], "0 values for 1 elements");
}

#[test]
fn a_constant_holds_values_of_its_kind() {
    refuses(constant(Int64, &[1], floats(1)), &[], "floats in a constant of kINT64");
    refuses(constant(Half, &[1], integers(1)), &[], "integers in a constant of kHALF");
    refuses(constant(Int64, &[1], weight()), &[], "\"lm_head.weight\" as kINT64");
}

#[test]
fn a_constant_is_static() {
    refuses(constant(Float, &[-1], weight()), &[], "must be static and countable");
    refuses(constant(Float, &[-2], weight()), &[], "must be static and countable");
    refuses(constant(Float, &[i64::MAX, 2], weight()), &[], "must be static and countable");
}

#[test]
fn a_rotary_table_has_a_row_for_each_position() {
    let table = |positions| RotaryTable { positions, inv_freq: vec![1.0, 0.5], attention_factor: 1.0 };
    makes(constant(Half, &[7, 2], Values::RotaryCos(table(7))), &[], Half, &[7, 2]);
    makes(constant(Float, &[7, 2], Values::RotarySin(table(7))), &[], Float, &[7, 2]);
    refuses(constant(Half, &[2, 7], Values::RotaryCos(table(7))), &[], "7 positions and 2 pairs as [2, 7]");
    refuses(constant(Half, &[14], Values::RotarySin(table(7))), &[], "7 positions and 2 pairs as [14]");
    refuses(
        constant(Int64, &[7, 2], Values::RotaryCos(table(7))),
        &[],
        "a rotary table in a constant of kINT64",
    );
    let many = (1 << 24) + 1;
    refuses(constant(Half, &[i64::from(many), 2], Values::RotaryCos(table(many))), &[], "are exact");
}
