//! Converted networks against the graphs that they were made from.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

mod attention;
mod attention_choice;
mod errors;
mod form;
mod forms;
mod models;
mod mutations;
mod ops;
mod profiles;
mod signature;
mod support;
