//! Makes TensorRT engines.
//!
//! [`TensorRtBuilder`] converts a lowered graph into a network, [`replay`]s that into TensorRT call by call, checks that
//! TensorRT infers what the network says and [holds](read_back) what it was given, and streams the plan into a file.

#![forbid(unsafe_code)]

mod build;
mod builder;
mod error;
mod memory;
mod memory_plan;
mod placement;
mod progress;
mod targets;

pub mod inspect;
pub mod read_back;
pub mod replay;

pub use builder::TensorRtBuilder;
pub use error::ReplayError;
