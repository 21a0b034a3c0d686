//! What each token of a vocabulary adds to a text, in bytes.

use serde_json::Value;

use crate::tokenizer::{Decoding, byte_fallback_byte, byte_level_bytes};
use crate::{TextError, Tokenizer};

/// What a token adds to a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenBytes {
    /// These bytes, which need not be whole characters.
    Text(Vec<u8>),
    /// Nothing: a special token, by its name in the vocabulary.
    Special(String),
    /// There is no token of this number.
    Absent,
}

impl Tokenizer {
    /// What each token from 0 to the largest adds to a text that goes on: what a [`crate::Detokenizer`] shows of it.
    ///
    /// # Errors
    /// [`TextError::NoTokenBytes`] where a token's text depends on its neighbours: decoders that are neither byte-level
    /// nor with byte fallback, and clean-up of spaces.
    pub fn token_bytes(&self) -> Result<Vec<TokenBytes>, TextError> {
        if self.cleans_up() {
            return Err(TextError::NoTokenBytes { reason: "it cleans up spaces".to_owned() });
        }
        let space = match self.decoding() {
            Decoding::ByteLevel => None,
            Decoding::Window { byte_fallback: true, byte_level: false } => self.written_space(),
            Decoding::Window { .. } => {
                let reason = "its decoder is neither byte-level nor with byte fallback".to_owned();
                return Err(TextError::NoTokenBytes { reason });
            }
        };
        let of_token = |token| {
            let Some(written) = self.token_text(token) else { return TokenBytes::Absent };
            if self.is_special(token) {
                return TokenBytes::Special(written);
            }
            let mut bytes = Vec::new();
            match (self.decoding(), byte_fallback_byte(&written)) {
                (Decoding::ByteLevel, _) => byte_level_bytes(&written, &mut bytes),
                (_, Some(byte)) => bytes.push(byte),
                (_, None) => match space {
                    Some(space) => bytes.extend(written.replace(space, " ").as_bytes()),
                    None => bytes.extend(written.as_bytes()),
                },
            }
            TokenBytes::Text(bytes)
        };
        Ok((0..self.token_count()).map(of_token).collect())
    }

    /// The character that stands for a space in the vocabulary, where the decoder replaces one.
    fn written_space(&self) -> Option<char> {
        let decoder = serde_json::to_value(self.decoder()?).ok()?;
        let single = |text: &str| text.chars().next().filter(|first| text.len() == first.len_utf8());
        let of = |decoder: &Value| match decoder.get("type")?.as_str()? {
            "Replace" if decoder.get("content")?.as_str()? == " " => {
                single(decoder.pointer("/pattern/String")?.as_str()?)
            }
            "Metaspace" => single(decoder.get("replacement")?.as_str()?),
            _ => None,
        };
        match decoder.get("decoders").and_then(Value::as_array) {
            Some(decoders) => decoders.iter().find_map(of),
            None => of(&decoder),
        }
    }
}
