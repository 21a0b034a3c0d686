//! NVRTC: where it is, loading it, and compiling CUDA C++ to device code with it. It needs no GPU and no driver.

#![deny(unsafe_code)]

mod error;
mod find;
mod library;
mod nvrtc;

pub mod cubin;

pub use error::NvrtcError;
pub use nvrtc::Nvrtc;
