//! What this crate promises, by its public interface, against golden data that Transformers made.

mod chat_template;
mod common;
mod conversation;
mod detokenize;
mod tokenizer;
