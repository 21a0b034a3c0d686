//! The tokenizer: text to tokens and back, as Transformers does both.

use std::fs;
use std::path::Path;

use tokenizers::{DecoderWrapper, ModelWrapper};

use crate::cleanup::clean_up;
use crate::{TextError, TokenizerConfig};

/// How a tokenizer's decoder lets its output be streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoding {
    /// Tokens are bytes in byte-level BPE's alphabet; the text is their concatenation, decoded with replacement.
    ByteLevel,
    /// Anything else: decoded through the tokenizer's own decoder, in a window of the latest tokens.
    Window {
        /// Tokens such as `<0xE2>` are bytes, and a run of them becomes text as a whole or not at all.
        byte_fallback: bool,
        /// Byte-level BPE among other decoders: characters may span tokens.
        byte_level: bool,
    },
}

/// A tokenizer of the `tokenizers` library with the decoding rules of its `tokenizer_config.json`.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    decoding: Decoding,
    clean_up: bool,
    special_token_ids: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// [`TextError::Read`] and [`TextError::Tokenizer`].
    pub fn from_file(path: &Path, config: &TokenizerConfig) -> Result<Self, TextError> {
        let json = fs::read(path).map_err(|source| TextError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&json, config)
    }

    /// Reads the content of `tokenizer.json`.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] when the library cannot use it.
    pub fn from_bytes(json: &[u8], config: &TokenizerConfig) -> Result<Self, TextError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(TextError::Tokenizer)?;
        // A file may carry the truncation and padding of the training script that saved it. Transformers turns both
        // off unless a call asks for them.
        inner.with_truncation(None).map_err(TextError::Tokenizer)?;
        inner.with_padding(None);
        let is_bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
        let mut special_token_ids: Vec<u32> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .collect();
        special_token_ids.sort_unstable();
        Ok(Self {
            decoding: decoding(inner.get_decoder()),
            clean_up: config.clean_up_tokenization_spaces && (!is_bpe || config.clean_up_bpe),
            special_token_ids,
            inner,
        })
    }

    /// The tokens of a text. Special tokens written out in it become those tokens. With `add_special_tokens` the
    /// tokenizer's own are added, e.g. a beginning-of-sequence token; not after a chat template, which writes them.
    ///
    /// # Errors
    /// [`TextError::Encode`], e.g. for a character that a vocabulary without an unknown token lacks.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(TextError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of all these tokens. Tokens that are not in the vocabulary are left out, as are special ones with
    /// `skip_special_tokens`; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub fn decode(&self, tokens: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        let text = self.decode_as_is(tokens, skip_special_tokens)?;
        Ok(if self.clean_up { clean_up(&text) } else { text })
    }

    /// Entries of the vocabulary, added tokens included. A model's logits may have more columns.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The special tokens, in ascending order.
    #[must_use]
    pub fn special_token_ids(&self) -> &[u32] {
        &self.special_token_ids
    }

    /// Whether a token is special.
    #[must_use]
    pub fn is_special(&self, token: u32) -> bool {
        self.special_token_ids.binary_search(&token).is_ok()
    }

    /// The token that is written like this in the vocabulary, e.g. `<|im_end|>`.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How a token is written in the vocabulary.
    #[must_use]
    pub fn token_text(&self, token: u32) -> Option<String> {
        self.inner.id_to_token(token)
    }

    /// One more than the largest token.
    pub(crate) fn token_count(&self) -> u32 {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |token| token.saturating_add(1))
    }

    pub(crate) fn decoder(&self) -> Option<&DecoderWrapper> {
        self.inner.get_decoder()
    }

    pub(crate) fn decoding(&self) -> Decoding {
        self.decoding
    }

    pub(crate) fn cleans_up(&self) -> bool {
        self.clean_up
    }

    pub(crate) fn decode_as_is(
        &self,
        tokens: &[u32],
        skip_special_tokens: bool,
    ) -> Result<String, TextError> {
        self.inner.decode(tokens, skip_special_tokens).map_err(TextError::Decode)
    }
}

fn decoding(decoder: Option<&DecoderWrapper>) -> Decoding {
    match decoder {
        Some(DecoderWrapper::ByteLevel(_)) => Decoding::ByteLevel,
        Some(DecoderWrapper::Sequence(sequence)) => match sequence.get_decoders() {
            [DecoderWrapper::ByteLevel(_)] | [DecoderWrapper::ByteLevel(_), DecoderWrapper::Fuse(_)] => {
                Decoding::ByteLevel
            }
            decoders => Decoding::Window {
                byte_fallback: decoders
                    .iter()
                    .any(|decoder| matches!(decoder, DecoderWrapper::ByteFallback(_))),
                byte_level: decoders.iter().any(|decoder| matches!(decoder, DecoderWrapper::ByteLevel(_))),
            },
        },
        Some(DecoderWrapper::ByteFallback(_)) => Decoding::Window { byte_fallback: true, byte_level: false },
        _ => Decoding::Window { byte_fallback: false, byte_level: false },
    }
}

/// Appends the bytes of a token of byte-level BPE. A token with a character outside the alphabet, such as an added
/// one, stands for its own text.
pub(crate) fn byte_level_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in token.chars() {
        match byte_level_byte(character) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The byte that a token such as `<0xE2>` stands for, as `tokenizers`' ByteFallback decoder sees it.
pub(crate) fn byte_fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The byte that a character stands for in the alphabet of byte-level BPE (GPT-2's `bytes_to_unicode`): printable
/// bytes of Latin-1 stand for themselves, the others, in ascending order, are U+0100 and on.
fn byte_level_byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_byte_level_alphabet_has_one_character_for_each_byte() {
        let bytes: HashSet<u8> = ('\0'..='\u{FFFF}').filter_map(byte_level_byte).collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(
            ('\0'..='\u{FFFF}').filter(|&character| byte_level_byte(character).is_some()).count(),
            256
        );
        assert_eq!(byte_level_byte('Ġ'), Some(b' '));
        assert_eq!(byte_level_byte('Ċ'), Some(b'\n'));
    }

    #[test]
    fn byte_tokens_are_those_of_the_byte_fallback_decoder() {
        assert_eq!(byte_fallback_byte("<0xE2>"), Some(0xE2));
        assert_eq!(byte_fallback_byte("<0x0a>"), Some(0x0A));
        for token in ["<0xE>", "<0xG0>", "0xE2", "<0xE2>>", "<unk>", "<0x€"] {
            assert_eq!(byte_fallback_byte(token), None, "{token}");
        }
    }
}
