//! What the scheduler's policy promises, without a backend.
#![expect(clippy::expect_used, reason = "a panic in a test is a failed test")]

mod common;
mod decisions;
mod random_states;
