//! The compiler service: takes a model and options, lowers the model to a graph with a static KV cache, builds an
//! engine and uploads it to object storage.
//!
//! [`pipeline`] is one compilation from checkpoint to published engine, for one of the [`backends`]; [`support`] is
//! the table of what is built; [`jobs`] runs compilations as operations that callers follow; [`service`] is the gRPC
//! surface.

#![forbid(unsafe_code)]

pub mod backends;
pub mod config;
mod convert;
pub mod jobs;
pub mod metrics;
pub mod pipeline;
mod progress;
mod quantization;
mod quantization_loss;
pub mod service;
pub mod support;

pub use config::CompilerConfig;
pub use service::CompilerService;

/// The version of the compiler, part of every engine key.
pub const COMPILER_VERSION: &str = concat!("roundhouse-", env!("CARGO_PKG_VERSION"));
