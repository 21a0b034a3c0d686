//! What can go wrong between text and tokens.

use std::path::PathBuf;

/// An error of this crate, by what it means to the caller.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// tokenizer.json is not a tokenizer that the `tokenizers` library reads.
    #[error("tokenizer.json cannot be used: {0}")]
    Tokenizer(#[source] tokenizers::Error),
    /// tokenizer_config.json is not what it should be.
    #[error("tokenizer_config.json cannot be used: {0}")]
    TokenizerConfig(#[source] serde_json::Error),
    /// Text could not be tokenised.
    #[error("the text cannot be tokenised: {0}")]
    Encode(#[source] tokenizers::Error),
    /// Tokens could not be decoded.
    #[error("the tokens cannot be decoded: {0}")]
    Decode(#[source] tokenizers::Error),
    /// The tokenizer's decoder changes text that it has decoded already, so its output cannot be streamed.
    #[error("the tokenizer's decoder changed earlier text at token {token}: its output cannot be streamed")]
    UnstableDecoder {
        /// The token after which the earlier text was another.
        token: u32,
    },
    /// Single tokens of the tokenizer do not stand for bytes.
    #[error("the tokenizer's tokens do not stand for bytes one by one: {reason}")]
    NoTokenBytes {
        /// Why not.
        reason: String,
    },
    /// The checkpoint has no chat template.
    #[error("the model has no chat template: send a prompt or token IDs instead of messages")]
    NoChatTemplate,
    /// The chat template is longer than any real one.
    #[error("the chat template has {bytes} bytes; the limit is {limit}")]
    TemplateTooLong {
        /// Its length.
        bytes: usize,
        /// [`crate::MAX_TEMPLATE_BYTES`].
        limit: usize,
    },
    /// The chat template is not valid Jinja, or uses what the renderer does not know.
    #[error("the chat template cannot be compiled: {message}")]
    TemplateSyntax {
        /// What and on which line.
        message: String,
    },
    /// The chat template failed on these messages.
    #[error("the chat template failed: {message}")]
    Template {
        /// What and on which line.
        message: String,
    },
    /// The chat template refuses these messages: it called `raise_exception`.
    #[error("the chat template refuses the messages: {message}")]
    RefusedByTemplate {
        /// The template's own words.
        message: String,
    },
    /// Rendering took more steps or memory than any real conversation needs.
    #[error("the chat template needs too much work for these messages: send fewer or shorter ones")]
    TemplateBudget,
    /// The thread that a rendering runs on could not be started, or a defect ended it.
    #[error("the chat template could not be run: {message}")]
    TemplateThread {
        /// What happened.
        message: String,
    },
    /// A conversation of no messages.
    #[error("a conversation needs at least one message")]
    EmptyConversation,
    /// The conversation renders to no tokens, so there is nothing to compute logits from.
    #[error("the chat template renders these messages to nothing")]
    EmptyRendering,
    /// More stop strings than allowed.
    #[error("{found} stop strings; the limit is {limit}")]
    TooManyStopStrings {
        /// How many were given.
        found: usize,
        /// [`crate::MAX_STOP_STRINGS`].
        limit: usize,
    },
    /// A stop string longer than allowed.
    #[error("stop string {index} has {bytes} bytes; the limit is {limit}")]
    StopStringTooLong {
        /// Which, from 0.
        index: usize,
        /// Its length.
        bytes: usize,
        /// [`crate::MAX_STOP_STRING_BYTES`].
        limit: usize,
    },
    /// A stop string that would stop everything.
    #[error("stop string {index} is empty")]
    EmptyStopString {
        /// Which, from 0.
        index: usize,
    },
}
