//! From logits to the next token.
//!
//! A [`Sampler`] belongs to one sequence. It takes a row of logits through biases, penalties, what is forbidden,
//! temperature, top-k, top-p, min-p and typical-p, in this order, and draws a token with its own random numbers; or takes
//! the most probable one. A [`Scorer`] says how probable the tokens of a prompt are.

#![forbid(unsafe_code)]

mod candidates;
mod constraints;
mod error;
#[cfg(test)]
mod golden;
mod logprobs;
mod params;
mod penalties;
mod restriction;
mod sampler;
mod softmax;

pub use constraints::{Constraints, MAX_BAD_WORDS, MAX_LOGIT_BIASES};
pub use error::SamplingError;
pub use logprobs::{MAX_TOP_LOGPROBS, Scorer, TokenScore};
pub use params::{MAX_NGRAM, SamplingParams};
pub use restriction::Restriction;
pub use sampler::{Sampled, Sampler};
