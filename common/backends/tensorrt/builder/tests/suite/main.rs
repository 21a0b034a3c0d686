//! The builder with TensorRT itself. Without the library these tests fail, and say how to get it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

mod engines;
mod refusals;
mod replay;
mod support;
