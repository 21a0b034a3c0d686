//! What Roundhouse promises, end to end: the real services in this process, over real gRPC on loopback. One behaviour a
//! file.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod batch_invariance;
mod batching;
mod cancellation;
mod discovery;
mod engines;
mod engines_on_demand;
mod errors;
mod gated;
mod gemma3_tokens;
mod greedy_tokens;
mod guided_output;
mod image_requests;
mod memory_pressure;
mod pictures;
mod prefix_cache;
mod prompt_logprobs;
mod queueing;
mod refused_images;
mod refused_turns;
mod sampling;
mod session_history;
mod sessions;
mod several_outputs;
mod sliding_windows;
mod speculative;
mod stored_sessions;
mod streaming_text;
#[cfg(feature = "tensorrt")]
mod tensorrt_engines;
mod tiny_model_logits;
mod vision_language;
mod watchdog;
mod weight_quantization;
