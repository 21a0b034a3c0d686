//! The binary as processes of its own: what a person or a machine that runs it sees.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure")]

mod doctor;
mod eval;
mod killed_executor;
mod load;
mod metrics;
mod run_vlm;
mod services;
mod support;
#[cfg(feature = "tensorrt")]
mod tensorrt;
