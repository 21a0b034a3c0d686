//! NVIDIA GPUs: CUDA's driver through `cudarc`, TensorRT through `trtx`.

mod checks;
mod device;
mod engine;
mod execution;
mod kernels;
mod memory;
mod refit;
mod said;

pub use checks::{Check, Cuda, CudaConfig, Refusal, doctor};
