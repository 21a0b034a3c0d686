//! Runs TensorRT networks on the CPU, as TensorRT documents its layers: the check where no GPU can run them.
//!
//! What a layer does is what `NvInfer.h` says of it, and not what the graph's op that it came from means: a converter that
//! mistakes a layer gives other numbers here than the graph does. Sums are in fp64. What TensorRT leaves undefined or
//! checks when an engine runs is an error.

#![forbid(unsafe_code)]

mod constants;
mod elements;
mod error;
mod inputs;
mod interpreter;
mod layers;

pub use error::InterpreterError;
pub use interpreter::Interpreter;
pub use roundhouse_backend_conformance::{Data, Rounding, Tensor};
