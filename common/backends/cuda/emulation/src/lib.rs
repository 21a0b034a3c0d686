//! The CUDA kernels on a processor.
//!
//! [`EmulatedDevice`] is a device whose memory is the host's. Its kernels are the ones of `roundhouse-cuda-kernels`,
//! unchanged but for the intrinsics, compiled by the system's C++ compiler ([`compile`]) and run with one fibre a thread.
//! It is for tests: a kernel that is wrong on it is wrong on a GPU. It shows neither speed nor what depends on
//! the order of blocks.

#![deny(unsafe_code)]

mod allocations;
mod compile;
mod compiler;
mod device;
mod library;

pub use compile::{EmulationError, Mistake, compile};
pub use compiler::EmulationCompiler;
pub use device::EmulatedDevice;
