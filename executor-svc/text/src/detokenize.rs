//! Tokens to text while they are generated.

use crate::cleanup::StreamingCleanup;
use crate::tokenizer::{Decoding, byte_fallback_byte, byte_level_bytes};
use crate::{TextError, Tokenizer};

/// Turns a stream of tokens into pieces of text that, put together, are [`Tokenizer::decode`] of all the tokens.
///
/// A piece is whole characters: what a later token may still change is held back. That is
///
/// * with byte-level BPE, the at most 3 bytes of an unfinished character;
/// * with byte-fallback tokens (`<0xE2>`), the run of them until another token follows, because the decoder makes text
///   of a run only when all of it is UTF-8;
/// * with `clean_up_tokenization_spaces`, an ending such as ` n` that may become `n't`.
///
/// The work for a token depends on the tokens held back, not on those before them. Of the methods' tokenizer, pass the
/// same one each time.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    skip_special_tokens: bool,
    /// Byte-level BPE: the bytes of an unfinished character.
    bytes: Vec<u8>,
    window: Window,
    cleanup: StreamingCleanup,
}

/// The latest tokens, for decoders that look at a token's neighbours.
#[derive(Debug, Clone, Default)]
struct Window {
    /// The tokens of the latest piece, then those held back.
    tokens: Vec<u32>,
    /// How many are the latest piece's. They are decoded again with each new token, so that a decoder that treats the
    /// beginning of a text differently (SentencePiece drops a leading space there) does not take the middle for it.
    context: usize,
    /// The text of the context alone.
    context_text: String,
}

impl Detokenizer {
    /// A detokenizer at the beginning of a text.
    #[must_use]
    pub fn new(skip_special_tokens: bool) -> Self {
        Self {
            skip_special_tokens,
            bytes: Vec::new(),
            window: Window::default(),
            cleanup: StreamingCleanup::default(),
        }
    }

    /// Takes the next token and returns the new text, often none.
    ///
    /// # Errors
    /// [`TextError::Decode`] and [`TextError::UnstableDecoder`], neither of which the decoders of known language models
    /// cause.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, TextError> {
        if self.skip_special_tokens && tokenizer.is_special(token) {
            return Ok(String::new());
        }
        let Some(token_text) = tokenizer.token_text(token) else { return Ok(String::new()) };
        let text = match tokenizer.decoding() {
            Decoding::ByteLevel => {
                byte_level_bytes(&token_text, &mut self.bytes);
                take_characters(&mut self.bytes)
            }
            Decoding::Window { byte_fallback, byte_level } => {
                self.window.tokens.push(token);
                if byte_fallback && byte_fallback_byte(&token_text).is_some() {
                    return Ok(String::new());
                }
                self.window.advance(tokenizer, byte_level)?
            }
        };
        Ok(if tokenizer.cleans_up() { self.cleanup.push(&text) } else { text })
    }

    /// Ends the text: returns what was held back, unfinished characters as U+FFFD. The detokenizer is then at the
    /// beginning of a text again.
    ///
    /// # Errors
    /// As [`Detokenizer::push`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        let mut text = String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned();
        text.push_str(&std::mem::take(&mut self.window).rest(tokenizer)?);
        if tokenizer.cleans_up() {
            text = self.cleanup.push(&text);
            text.push_str(&self.cleanup.finish());
        }
        Ok(text)
    }
}

impl Window {
    /// The text that the tokens held back add, unless it may still change; then they become the context.
    fn advance(&mut self, tokenizer: &Tokenizer, byte_level: bool) -> Result<String, TextError> {
        // Special tokens that are to be skipped never enter the window.
        let text = tokenizer.decode_as_is(&self.tokens, false)?;
        if byte_level && text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = self.new_text(&text)?.to_owned();
        if !new.is_empty() {
            self.tokens.drain(..self.context);
            self.context = self.tokens.len();
            self.context_text = tokenizer.decode_as_is(&self.tokens, false)?;
        }
        Ok(new)
    }

    fn rest(self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        if self.tokens.len() == self.context {
            return Ok(String::new());
        }
        let text = tokenizer.decode_as_is(&self.tokens, false)?;
        Ok(self.new_text(&text)?.to_owned())
    }

    fn new_text<'a>(&self, text: &'a str) -> Result<&'a str, TextError> {
        text.strip_prefix(self.context_text.as_str()).ok_or_else(|| TextError::UnstableDecoder {
            token: self.tokens.last().copied().unwrap_or_default(),
        })
    }
}

/// Takes the whole characters, and U+FFFD for what can become none, from the front of a buffer; what
/// [`String::from_utf8_lossy`] makes of the stream does not depend on where it was cut.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(invalid) = error.error_len() else {
                    rest = after;
                    break;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &after[invalid..];
            }
        }
    }
    let taken = bytes.len() - rest.len();
    bytes.drain(..taken);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_taken_whole_and_broken_ones_replaced() {
        let mut bytes = b"a\xF0\x9F\x98".to_vec();
        assert_eq!(take_characters(&mut bytes), "a");
        bytes.push(0x80);
        assert_eq!(take_characters(&mut bytes), "😀");
        bytes.extend(b"\x80\xE2\x82");
        assert_eq!(take_characters(&mut bytes), "\u{FFFD}");
        bytes.extend(b"b");
        assert_eq!(take_characters(&mut bytes), "\u{FFFD}b");
        assert!(bytes.is_empty());
    }
}
