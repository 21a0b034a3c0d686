use roundhouse_tensorrt_network::{Activation, DataType, ElementWise, LayerKind, Unary};

use DataType::{Bf16, Bool, Float, Half, Int32, Int64};

use crate::{makes, refuses};

const NUMERIC: [ElementWise; 6] = [
    ElementWise::Sum,
    ElementWise::Prod,
    ElementWise::Sub,
    ElementWise::Div,
    ElementWise::Max,
    ElementWise::Min,
];

const SUM: LayerKind = LayerKind::ElementWise { operation: ElementWise::Sum };

#[test]
fn activations_are_of_floats() {
    for function in [Activation::Sigmoid, Activation::Tanh, Activation::GeluErf, Activation::GeluTanh] {
        let kind = LayerKind::Activation { function };
        for dtype in [Float, Half, Bf16] {
            makes(kind.clone(), &[(dtype, &[2, -1])], dtype, &[2, -1]);
        }
        refuses(kind.clone(), &[(Int64, &[2])], "must be kFLOAT");
        refuses(kind, &[], "0 operands, 1 are needed");
    }
}

#[test]
fn unary_functions() {
    for function in [Unary::Sqrt, Unary::Recip] {
        makes(LayerKind::Unary { function }, &[(Half, &[-1, 3])], Half, &[-1, 3]);
        refuses(LayerKind::Unary { function }, &[(Int32, &[3])], "must be kFLOAT");
    }
    let not = LayerKind::Unary { function: Unary::Not };
    makes(not.clone(), &[(Bool, &[3])], Bool, &[3]);
    refuses(not, &[(Int64, &[3])], "must be kBOOL");
    let infinite = LayerKind::Unary { function: Unary::IsInf };
    makes(infinite.clone(), &[(Bf16, &[3])], Bool, &[3]);
    refuses(infinite, &[(Bool, &[3])], "must be kFLOAT");
}

#[test]
fn elementwise_operations_on_numbers_keep_the_dtype() {
    for operation in NUMERIC {
        for dtype in [Float, Half, Bf16, Int32, Int64] {
            makes(LayerKind::ElementWise { operation }, &[(dtype, &[3]), (dtype, &[3])], dtype, &[3]);
        }
        refuses(LayerKind::ElementWise { operation }, &[(Bool, &[3]), (Bool, &[3])], "must be numbers");
        refuses(LayerKind::ElementWise { operation }, &[(Float, &[3]), (Half, &[3])], "dtypes must be equal");
    }
}

#[test]
fn comparisons_give_truth_values() {
    for operation in [ElementWise::Less, ElementWise::Greater] {
        makes(LayerKind::ElementWise { operation }, &[(Int64, &[3]), (Int64, &[1])], Bool, &[3]);
        refuses(LayerKind::ElementWise { operation }, &[(Bool, &[3]), (Bool, &[3])], "must be numbers");
        refuses(
            LayerKind::ElementWise { operation },
            &[(Int64, &[3]), (Int32, &[3])],
            "dtypes must be equal",
        );
    }
    let equal = LayerKind::ElementWise { operation: ElementWise::Equal };
    makes(equal.clone(), &[(Half, &[3]), (Half, &[3])], Bool, &[3]);
    makes(equal, &[(Bool, &[3]), (Bool, &[3])], Bool, &[3]);
}

#[test]
fn logic_is_of_truth_values() {
    for operation in [ElementWise::And, ElementWise::Or] {
        makes(LayerKind::ElementWise { operation }, &[(Bool, &[3]), (Bool, &[3])], Bool, &[3]);
        refuses(LayerKind::ElementWise { operation }, &[(Int64, &[3]), (Int64, &[3])], "must be kBOOL");
    }
}

#[test]
fn dimensions_of_one_are_repeated() {
    makes(SUM, &[(Float, &[3, 1, 5]), (Float, &[1, 4, 5])], Float, &[3, 4, 5]);
    makes(SUM, &[(Float, &[]), (Float, &[])], Float, &[]);
    makes(SUM, &[(Float, &[1]), (Float, &[0])], Float, &[0]);
    refuses(SUM, &[(Float, &[3, 5]), (Float, &[2, 5])], "3 and 2 on axis 0");
    refuses(SUM, &[(Float, &[3]), (Float, &[1, 3])], "ranks 1 and 2");
}

#[test]
fn a_dynamic_dimension_is_what_is_known_of_the_other() {
    makes(SUM, &[(Float, &[-1]), (Float, &[1])], Float, &[-1]);
    makes(SUM, &[(Float, &[7]), (Float, &[-1])], Float, &[7]);
    makes(SUM, &[(Float, &[-1]), (Float, &[0])], Float, &[0]);
    makes(SUM, &[(Float, &[-1]), (Float, &[-1])], Float, &[-1]);
}

#[test]
fn casts_go_anywhere() {
    for from in [Float, Half, Bf16, Int32, Int64, Bool] {
        for to in [Float, Half, Bf16, Int32, Int64, Bool] {
            makes(LayerKind::Cast { to }, &[(from, &[2, -1])], to, &[2, -1]);
        }
    }
    refuses(LayerKind::Cast { to: Float }, &[(Half, &[1]), (Half, &[1])], "2 operands, 1 are needed");
}

#[test]
fn selections_broadcast_all_three() {
    let select = LayerKind::Select;
    makes(select.clone(), &[(Bool, &[-1, 1]), (Half, &[1, 5]), (Half, &[1, 1])], Half, &[-1, 5]);
    makes(select.clone(), &[(Bool, &[1, 0]), (Int64, &[1, 1]), (Int64, &[3, 1])], Int64, &[3, 0]);
    makes(select.clone(), &[(Bool, &[2]), (Bool, &[2]), (Bool, &[1])], Bool, &[2]);
    refuses(select.clone(), &[(Int64, &[2]), (Half, &[2]), (Half, &[2])], "condition is kINT64");
    refuses(select.clone(), &[(Bool, &[2]), (Half, &[2]), (Float, &[2])], "dtypes must be equal");
    refuses(select.clone(), &[(Bool, &[2]), (Half, &[1, 2]), (Half, &[1, 2])], "ranks 1 and 2");
    refuses(select.clone(), &[(Bool, &[2, 2]), (Half, &[1, 2]), (Half, &[2])], "ranks 2 and 1");
    refuses(select, &[(Bool, &[3]), (Half, &[2]), (Half, &[1])], "3 and 2 on axis 0");
}
