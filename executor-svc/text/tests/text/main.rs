//! What this crate promises, by its public interface, against golden data that Transformers made.

#![expect(clippy::unwrap_used, reason = "a panic in a test's helper is a failed test")]

mod chat_template;
mod common;
mod conversation;
mod detokenize;
mod tokenizer;
mod vocabulary;
