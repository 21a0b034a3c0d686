//! All cases, a mechanism a file.

use roundhouse_graph::DType;

use crate::Case;

mod attention;
mod experts;
mod linear;
mod quantized;
mod rows;
mod sampling;

/// The types that kernels compute in.
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
const HALVES: [DType; 2] = [DType::F16, DType::Bf16];

/// All cases.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        rows::cases(),
        linear::cases(),
        quantized::cases(),
        attention::cases(),
        experts::cases(),
        sampling::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The arguments of a launch, each made what it is.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &[$(crate::Argument::from($argument)),*] };
}
use arguments;
