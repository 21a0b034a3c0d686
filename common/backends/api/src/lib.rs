//! The seam every backend implements.
//!
//! A backend is a [`Builder`], which the compiler uses, and a [`Runtime`], which an executor uses:
//! `Runtime::load(engine) → Model`, `Model::new_cache(max_seq_len) → Cache`, `Model::forward(batch)` fills logits.

#![forbid(unsafe_code)]

mod build;
mod component;
mod error;
mod images;
mod kv_block;
mod library;
mod quantization;
mod run;
mod weights;

pub use build::{BuildProgress, Builder, BuiltFile};
pub use component::{
    ComponentInputs, ComponentModel, ComponentSignature, NamedTensor, OutputTensor, TensorElements,
};
pub use error::{BackendError, UnsupportedNode};
pub use images::{ImageTokens, POSITION_AXES, SequenceImages};
pub use kv_block::KvBlock;
pub use library::LibrarySearch;
pub use quantization::{GroupSteps, QuantizationLoss, quantized_number};
pub use run::{Cache, CacheGrowth, GreedySequence, LogitsRequest, Model, NOT_FINITE, Runtime, Sequence};
pub use weights::{QuantizedTensor, WeightError, WeightSource, evaluate_rows, expr_shape};
