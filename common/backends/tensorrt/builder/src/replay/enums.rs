//! Attribute values in TensorRT's names.

use roundhouse_tensorrt_network::{Activation, CausalMask, ElementWise, MatrixOp, Reduce, Unary};
use trtx::{
    ActivationType, CausalMaskKind, ElementWiseOperation, MatrixOperation, ReduceOperation, UnaryOperation,
};

pub(super) fn activation(function: Activation) -> ActivationType {
    match function {
        Activation::Sigmoid => ActivationType::kSIGMOID,
        Activation::Tanh => ActivationType::kTANH,
        Activation::GeluErf => ActivationType::kGELU_ERF,
        Activation::GeluTanh => ActivationType::kGELU_TANH,
    }
}

pub(super) fn unary(function: Unary) -> UnaryOperation {
    match function {
        Unary::Sqrt => UnaryOperation::kSQRT,
        Unary::Recip => UnaryOperation::kRECIP,
        Unary::Not => UnaryOperation::kNOT,
        Unary::IsInf => UnaryOperation::kISINF,
    }
}

pub(super) fn elementwise(operation: ElementWise) -> ElementWiseOperation {
    match operation {
        ElementWise::Sum => ElementWiseOperation::kSUM,
        ElementWise::Prod => ElementWiseOperation::kPROD,
        ElementWise::Sub => ElementWiseOperation::kSUB,
        ElementWise::Div => ElementWiseOperation::kDIV,
        ElementWise::Max => ElementWiseOperation::kMAX,
        ElementWise::Min => ElementWiseOperation::kMIN,
        ElementWise::Less => ElementWiseOperation::kLESS,
        ElementWise::Greater => ElementWiseOperation::kGREATER,
        ElementWise::Equal => ElementWiseOperation::kEQUAL,
        ElementWise::And => ElementWiseOperation::kAND,
        ElementWise::Or => ElementWiseOperation::kOR,
    }
}

pub(super) fn matrix_op(operation: MatrixOp) -> MatrixOperation {
    match operation {
        MatrixOp::None => MatrixOperation::kNONE,
        MatrixOp::Transpose => MatrixOperation::kTRANSPOSE,
    }
}

pub(super) fn reduce(operation: Reduce) -> ReduceOperation {
    match operation {
        Reduce::Sum => ReduceOperation::kSUM,
        Reduce::Max => ReduceOperation::kMAX,
        Reduce::Avg => ReduceOperation::kAVG,
    }
}

pub(super) fn causal_mask(kind: CausalMask) -> CausalMaskKind {
    match kind {
        CausalMask::None => CausalMaskKind::kNONE,
        CausalMask::LowerRight => CausalMaskKind::kLOWER_RIGHT,
    }
}
