//! Makes engines of the CUDA backend, without a GPU.
//!
//! An engine is the lowered graph, the plan that it becomes, the weights as the graph names them, and an image of the
//! kernels for each target. Weights lie row-major, as for the CPU, with which they are shared: what a step needs side by
//! side is put there when they are copied to the device.

#![forbid(unsafe_code)]

mod builder;
mod images;
mod version;

pub use builder::CudaBuilder;
pub use images::{PLAN, image_for, image_name};
pub use version::{ENGINE_FORMAT, can_run};
