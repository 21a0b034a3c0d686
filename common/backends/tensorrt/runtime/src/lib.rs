//! Runs TensorRT engines.
//!
//! [`TensorRtRuntime`] checks whether this machine can run an engine, and loads it. What a device does is behind the
//! traits of [`device`]: [`Cuda`] is the one with GPUs. Everything above it is the same for any: `grouping` decides
//! which sequences of a step run together, `slots` and `slabs` where their caches are, `executor` runs them, and
//! `owner` is the thread on which all that happens.

#![deny(unsafe_code)]

mod cache;
mod cuda;
pub mod device;
mod error;
mod executor;
mod grouping;
mod host;
mod model;
mod owner;
mod runtime;
mod signature;
mod slabs;
mod slots;

pub use cuda::{Check, Cuda, CudaConfig, Refusal, doctor};
pub use error::DeviceError;
pub use runtime::TensorRtRuntime;
