//! From logits to the next token.
//!
//! A [`Sampler`] belongs to one sequence. It takes a row of logits through penalties, temperature, top-k, top-p and
//! min-p, in this order, and draws a token with its own random numbers; or takes the most probable one. A [`Scorer`]
//! says how probable the tokens of a prompt are.

#![forbid(unsafe_code)]

mod candidates;
mod error;
#[cfg(test)]
mod golden;
mod logprobs;
mod params;
mod penalties;
mod sampler;
mod softmax;

pub use error::SamplingError;
pub use logprobs::{MAX_TOP_LOGPROBS, Scorer, TokenScore};
pub use params::SamplingParams;
pub use sampler::{Sampled, Sampler};
