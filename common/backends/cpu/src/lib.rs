//! The CPU backend: builder and runtime.
//!
//! [`CpuBuilder`] writes an engine's graph and weights; [`CpuRuntime`] maps the weights and runs the graph. A graph is
//! compiled once into a plan: calls of the kernels of `roundhouse-cpu-kernels` over fp32 buffers that are reused. With
//! the in-place cache all sequences of a step run packed, their new tokens as the rows of one batch; with the other
//! caches one after the other.

#![deny(unsafe_code)]

mod builder;
mod cache;
mod component;
mod error;
mod exec;
mod fusion;
mod limits;
mod model;
mod plan;
mod runtime;
mod zeroed;

pub use builder::CpuBuilder;
pub use runtime::{CpuOptions, CpuRuntime};
