//! A further turn of a conversation: which tokens a cache keeps, and which it lacks.

use crate::{ChatMessage, ChatTemplate, RenderOptions, TextError, Tokenizer};

/// What to do with a session's cache before the next answer is generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// Tokens of the history that stay; the cache and the history are truncated to this length.
    pub keep_prefix_len: usize,
    /// Tokens to append after them; at least one, so that there are logits to sample the next token from.
    pub new_tokens: Vec<u32>,
}

/// The tokens that turn a session's history into the whole conversation.
///
/// `messages` are all messages so far, the new turn's last; `history` is what the session has seen and generated, in
/// tokens. The whole conversation is rendered and tokenised, and the longest common prefix with the history is kept.
/// So history and new tokens together are always what Transformers' `apply_chat_template` gives for the conversation,
/// whatever the history holds:
///
/// * The end-of-turn token that ended an answer (`<|im_end|>`, …) may be in the history or not. If it is, it is kept;
///   if not, it comes as the first new token, and what the template puts after it (a newline) follows either way.
/// * An answer that was cancelled, cut at a stop string or ended by a token limit is followed by the template's
///   end-of-turn token as if the model had ended it; tokens past its text are dropped.
/// * A template that renders earlier messages otherwise once others follow (trimmed answers, reasoning left out), or an
///   answer whose tokens are not the tokenizer's own choice for its text, shortens the prefix to where the two part.
///
/// The caller appends the answer's text to `messages` as an `assistant` message when the generation ends, and passes
/// the same [`RenderOptions::now`] on every turn, or a template that prints the date keeps nothing past midnight.
///
/// # Errors
/// Those of [`ChatTemplate::render`] and [`Tokenizer::encode`], and [`TextError::EmptyRendering`].
pub fn continue_conversation(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    history: &[u32],
    messages: &[ChatMessage],
    options: &RenderOptions,
) -> Result<Continuation, TextError> {
    Continuation::of(history, conversation_tokens(tokenizer, template, messages, options)?, usize::MAX)
}

/// The tokens of a whole conversation, with one placeholder for each image.
///
/// # Errors
/// Those of [`ChatTemplate::render`] and [`Tokenizer::encode`].
pub fn conversation_tokens(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[ChatMessage],
    options: &RenderOptions,
) -> Result<Vec<u32>, TextError> {
    tokenizer.encode(&template.render(messages, options)?, false)
}

impl Continuation {
    /// What makes `tokens` of a history, of which `most` tokens may stay: beyond them equal tokens stand for other images.
    ///
    /// # Errors
    /// [`TextError::EmptyRendering`] for no tokens.
    pub fn of(history: &[u32], mut tokens: Vec<u32>, most: usize) -> Result<Self, TextError> {
        let last = tokens.len().checked_sub(1).ok_or(TextError::EmptyRendering)?;
        let common = history.iter().zip(&tokens).take_while(|(seen, token)| seen == token).count();
        let keep_prefix_len = common.min(last).min(most);
        tokens.drain(..keep_prefix_len);
        Ok(Self { keep_prefix_len, new_tokens: tokens })
    }
}
