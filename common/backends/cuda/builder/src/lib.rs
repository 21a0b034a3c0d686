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
/// The cases of the suite's ops that this backend refuses: those that mix tokens in ways that no text model does, and
/// those of images.
pub const UNSUPPORTED_OPS: &[&str] = &[
    "matmul",
    "matmul_transposed",
    "rotary_embedding_sections",
    "attention_not_causal",
    "attention_segments",
    "attention_float_mask",
    "attention_bool_mask",
    "replace_rows",
];

pub use version::{ENGINE_FORMAT, can_run};
