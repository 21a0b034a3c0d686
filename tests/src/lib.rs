//! End-to-end tests, one behaviour a file: what they share.
//!
//! [`harness`] starts the real services in this process and talks to them over gRPC on loopback; [`golden`] and
//! [`greedy`] compare what they generate with what Hugging Face Transformers computes, for every engine of [`support`];
//! [`quantised_checkpoint`] writes what quantisation tools write.
#![forbid(unsafe_code)]

pub mod golden;
pub mod golden_images;
pub mod greedy;
pub mod harness;
pub mod quantised_checkpoint;
pub mod support;
