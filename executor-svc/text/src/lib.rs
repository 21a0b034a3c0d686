//! Text in and out: tokenizer, chat template, incremental detokenisation, stop strings.
//!
//! On the way in, a [`ChatTemplate`] renders [`ChatMessage`]s and a [`Tokenizer`] encodes the result;
//! [`continue_conversation`] does both for a further turn of a session whose cache holds the earlier ones. On the way
//! out, a [`Detokenizer`] makes whole characters of tokens and a [`StopMatcher`] cuts them at stop strings. What comes
//! out of each is what Transformers makes of the same files.

#![forbid(unsafe_code)]

mod chat_template;
mod cleanup;
mod conversation;
mod detokenize;
mod error;
mod stop;
mod tokenizer;
mod tokenizer_config;
mod vocabulary;

pub use chat_template::{ChatMessage, ChatTemplate, Content, ContentPart, MAX_TEMPLATE_BYTES, RenderOptions};
pub use conversation::{Continuation, continue_conversation, conversation_tokens};
pub use detokenize::Detokenizer;
pub use error::TextError;
pub use stop::{MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, StopMatcher};
pub use tokenizer::Tokenizer;
pub use tokenizer_config::TokenizerConfig;
pub use vocabulary::TokenBytes;
