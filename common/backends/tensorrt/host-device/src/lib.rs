//! A device for the TensorRT runtime whose memory is the host's and whose executions interpret the network: everything
//! between the seam and the device is the real one. For tests, where no GPU runs TensorRT.
//!
//! The device enforces what CUDA and TensorRT would: addresses are aligned, shapes are within the execution's own
//! profile, every tensor is bound to memory that is large enough, an output that aliases an input is at its address and
//! any other output is not, shape tensors are host values, nothing is written behind a cache's end.
//!
//! It loads engines of [`NetworkBuilder`], and real ones whose weights are beside the plan.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a device for tests: a panic is a failed test")]

mod builder;
mod bytes;
mod device;
mod execution;

pub use builder::NetworkBuilder;
pub use device::{HostDevice, HostEngine, HostMachine, HostMemory, HostState};
pub use execution::HostExecution;
