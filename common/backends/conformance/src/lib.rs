//! The suite every backend passes, and the reference interpreter it compares with.
//!
//! [`Interpreter`] runs any graph, naively, as the ops' documentation says. [`tiny_models`] makes decoders small enough
//! for it, [`quantized_models`] quantises their weights. The functions of [`suite`] take a backend and say where it departs from what the interpreter computes or
//! from what the seam promises. [`ReferenceBackend`] is the interpreter behind that seam: the suite's own test, and a
//! backend for the tests of passes.

#![forbid(unsafe_code)]

pub mod quantized_models;
mod reference;
mod reference_backend;
mod rng;
pub mod suite;
mod tensor;
pub mod tiny_models;
pub mod tiny_towers;
mod weights;

pub use reference::{Interpreter, ReferenceError, Rounding};
pub use reference_backend::ReferenceBackend;
pub use rng::Rng;
pub use tensor::{Data, Tensor, round_to};
pub use weights::{MemoryWeights, RoundedWeights};
