//! Runs engines of the CUDA backend.
//!
//! [`CudaRuntime`] checks whether this machine can run an engine, and loads it onto a device: `weights` copies the
//! weights, `executor` turns the plan's steps into launches and repeats recorded ones where a step is a batch of decode
//! steps, `step` writes down what kernels need to know of a step's sequences, `cache` keeps each sequence's memory, and
//! `model` is all of it behind the seam. What the device is is behind `roundhouse_cuda_device::Device`.

#![forbid(unsafe_code)]

mod cache;
mod error;
mod executor;
mod model;
mod pool;
mod runtime;
mod step;
mod weights;

pub use runtime::CudaRuntime;
