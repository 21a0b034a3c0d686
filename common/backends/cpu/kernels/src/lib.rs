//! CPU kernels: matrix products, norms, rotary embedding, attention, and the thread pool under them.
//!
//! Every kernel computes and accumulates in fp32, whatever the type of the weights or the cache. A kernel is written
//! once, generic over a vector instruction set, and compiled for each of them; an [`Isa`], detected once, picks
//! the one that runs. Kernels that use several cores take a [`ThreadPool`], which knows the instruction set, and a
//! [`Scratch`] that keeps their working memory from call to call.
//!
//! Slices whose lengths do not fit the stated shapes are a caller's error: kernels panic on them.

#![deny(clippy::undocumented_unsafe_blocks)]

mod argmax;
mod attention;
mod convert;
mod elements;
mod elementwise;
mod isa;
mod linear;
mod math;
mod norm;
mod pool;
mod rotary;
mod scratch;
mod shared;
mod simd;
mod softmax;
mod weight;

pub use argmax::argmax;
pub use attention::{AttentionArgs, AttentionSequence, KvView, StridedRows, StridedRowsMut, attention};
pub use convert::{load, store, store_kv};
pub use elements::{Elements, ElementsMut, KvElements, Matrix};
pub use elementwise::{
    add, add_assign, gelu_erf, gelu_tanh, mul, mul_assign, scale, sigmoid, silu, silu_mul, soft_cap,
};
pub use isa::Isa;
pub use linear::{LinearJob, Reduction, linear, linear_silu_mul};
pub use norm::{layer_norm, layer_norm_rows, rms_norm, rms_norm_rows};
pub use pool::ThreadPool;
pub use rotary::{rope_apply, rope_table};
pub use scratch::Scratch;
pub use softmax::softmax;
pub use weight::{QuantizedFormat, QuantizedMatrix, Weight};
