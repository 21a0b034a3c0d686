//! Structured output: which tokens a grammar allows next.
//!
//! A [`Guide`] says what an output must be: JSON of a schema, a regular expression, one of several texts, a Lark grammar.
//! A [`GrammarCompiler`], one an engine, knows what each token of the vocabulary adds to a text, and makes of a guide a
//! [`TokenGuide`], which follows one output and says at each token which ones may come next. The masks are computed on
//! threads of their own, while the model computes the logits that they are for.

#![forbid(unsafe_code)]

mod compiler;
mod error;
mod guide;
mod mask_pool;
mod token_guide;

pub use compiler::GrammarCompiler;
pub use error::GuideError;
pub use guide::{Guide, MAX_CHOICES, MAX_GUIDE_BYTES};
pub use token_guide::{Accepted, TokenGuide};
