//! The CUDA kernels: their sources, what they are specialised by, their arguments and their launch geometry.
//!
//! A [`Kernel`] is one specialisation of one kernel. [`translation_unit`] gives the CUDA C++ text that defines a set of
//! them, each as an `extern "C"` function called [`Kernel::name`]; it needs no header of the CUDA toolkit. `launch`
//! of each kernel's struct says how it is launched, and [`Kernel::parameters`] what its arguments are, in order.
//!
//! # What all kernels share
//! * **A step is packed.** Its rows are the new tokens of all its sequences, a sequence's rows being neighbours.
//!   Activations are row-major `[rows, width]`, heads inside a row: `[rows, heads, head_dim]`. What a kernel must know
//!   of sequences is in device memory ([`step`]), so that a captured launch can be replayed for other lengths.
//! * **Padding is harmless.** A row whose sequence is negative writes nothing to a cache; what it computes is finite
//!   or not, but never read.
//! * **Types.** A kernel is specialised by its activations' type (`f32`, `f16` or `bf16`), accumulates in fp32 and rounds
//!   once, when it stores.
//! * **Alignment.** Rows of activations, weights and caches start at multiples of 16 bytes.
//! * **Programmatic dependent launch.** A kernel lets the next one start at once, and waits for the one before it ahead
//!   of touching anything but weights. So all launches of a stream carry the attribute, or none does; and every
//!   kernel of a chain waits, which makes the order transitive.

#![forbid(unsafe_code)]

mod attention;
mod compiler;
mod element;
mod elementwise;
mod embedding;
mod experts;
mod kernel;
mod launch;
mod linear;
mod norm;
mod parameter;
mod rotary;
mod sampling;
mod softmax;
mod source;

pub mod step;

pub use attention::{
    AttentionCombine, AttentionDecode, AttentionMethod, AttentionPrefill, MAX_GROUP, QUERY_TILE,
};
pub use compiler::{CompileError, KernelCompiler};
pub use elementwise::{Advance, Binary, Map, Numbers};
pub use embedding::{Embedding, SelectRows};
pub use experts::{ExpertsDown, ExpertsGateUp};
pub use kernel::Kernel;
pub use launch::Launch;
pub use linear::{Activation, Epilogue, Linear, Method, Nominal, Prologue, Weight};
pub use norm::{Norm, NormKind};
pub use parameter::{Parameter, ParameterKind};
pub use rotary::{HeadNorm, RotaryAppend};
pub use sampling::{ArgMax, Sample, SampleRow};
pub use softmax::{Router, Softmax};
pub use source::{translation_unit, translation_unit_on};
