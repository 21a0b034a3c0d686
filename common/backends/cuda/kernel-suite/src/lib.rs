//! What every device has to show of the CUDA kernels.
//!
//! A [`Case`] runs one or a few kernels on random inputs at awkward shapes, with poisoned outputs, and compares with a
//! float64 reference. All cases run on the emulated device in `cargo test`, and on a GPU by hand.

#![forbid(unsafe_code)]

mod case;
mod cases;
mod compare;
mod random;
mod runner;
mod tensor;

pub use case::{Case, SuiteError};
pub use cases::all;
pub use compare::compare;
pub use random::Random;
pub use runner::{Argument, Runner};
pub use tensor::Tensor;
