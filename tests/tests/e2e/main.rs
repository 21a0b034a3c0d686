//! What Roundhouse promises, end to end: the real services in this process, over real gRPC on loopback. One behaviour a
//! file.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod batching;
mod cancellation;
mod discovery;
mod engines;
mod errors;
mod greedy_tokens;
mod sampling;
mod sessions;
mod streaming_text;
mod tiny_llama_logits;
