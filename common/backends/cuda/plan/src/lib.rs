//! What the CUDA backend makes of a graph: a list of fused steps over buffers of rows, which is plain data.
//!
//! A [`Plan`] runs *packed*: the new tokens of all sequences of a step are the rows of one batch, and a head is a part of
//! a row. All four cache kinds become the same plan. Keys and values are written in place, whatever the graph copies:
//! the caller cannot tell, since nothing reads an old cache. Without a cache the whole sequence is written anew each
//! step.

#![forbid(unsafe_code)]

mod cache;
mod compile;
mod launch;
mod limits;
mod plan;
mod slots;
mod step;
mod view;

use roundhouse_backend::BackendError;
use roundhouse_engine::BackendKind;

pub use cache::{CacheLayout, CacheOffset, CacheTensor};
pub use launch::{
    Argument, Attended, Greedy, LaunchContext, PlannedLaunch, StepShape, counter_bytes, greedy_launches,
    kernels, launches, nominal_multiprocessors, scratch_bytes,
};
pub use limits::StepLimits;
pub use plan::{Buffer, BufferId, ConstantId, DeviceWeight, Plan, Rows, WeightId};
pub use step::{
    Activation, Attend, BinaryOp, Embed, Epilogue, Experts, Function, HeadNorm, Ids, Linear, Norm, NormKind,
    Operand, Prepare, QuantizedWeight, Rotary, Step,
};
pub use view::{MAX_AXES, Span, Strided};

/// The backend has no way to do `what`.
pub(crate) fn unsupported(what: impl Into<String>) -> BackendError {
    BackendError::Unsupported { backend: BackendKind::Cuda.name(), what: what.into() }
}
