//! The runtime on a device whose memory is the host's and whose executions interpret the network.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

mod conformance;
mod engine;
mod refusals;
mod rules;
mod steps;
