//! End-to-end tests, one behaviour a file.
#![forbid(unsafe_code)]

pub mod golden;
pub mod greedy;
