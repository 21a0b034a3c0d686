//! `tokenizer_config.json`: special tokens by name, and how Transformers decodes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::TextError;

/// The names under which Transformers passes special tokens to a chat template.
const NAMED_SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What of `tokenizer_config.json` matters here. The default is that of a checkpoint without the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// Special tokens by name, e.g. `eos_token` → `<|im_end|>`: variables of the chat template.
    pub special_tokens: BTreeMap<String, String>,
    /// Whether decoding removes the spaces before punctuation and English contractions that old tokenizers put there.
    pub clean_up_tokenization_spaces: bool,
    /// Whether it does so with a BPE tokenizer too, whose spaces are the text's own.
    pub clean_up_bpe: bool,
    /// The chat template, where the checkpoint keeps it here instead of in a file of its own. Of several, the one
    /// named `default`.
    pub chat_template: Option<String>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    clean_up_tokenization_spaces: Option<bool>,
    #[serde(default, rename = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")]
    clean_up_bpe: Option<bool>,
    #[serde(default)]
    chat_template: Option<RawTemplate>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TokenizerConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`TextError::Read`] and [`TextError::TokenizerConfig`].
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        let json = fs::read(path).map_err(|source| TextError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&json)
    }

    /// Reads the file's content.
    ///
    /// # Errors
    /// [`TextError::TokenizerConfig`] when it is not JSON of this structure.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TextError> {
        let raw: Raw = serde_json::from_slice(json).map_err(TextError::TokenizerConfig)?;
        let special_tokens = NAMED_SPECIAL_TOKENS
            .iter()
            .filter_map(|&name| Some((name.to_owned(), token_text(raw.rest.get(name)?)?.to_owned())))
            .collect();
        let chat_template = match raw.chat_template {
            Some(RawTemplate::One(template)) => Some(template),
            Some(RawTemplate::Named(templates)) => {
                templates.into_iter().find(|named| named.name == "default").map(|named| named.template)
            }
            None => None,
        };
        Ok(Self {
            special_tokens,
            clean_up_tokenization_spaces: raw.clean_up_tokenization_spaces.unwrap_or(false),
            clean_up_bpe: raw.clean_up_bpe.unwrap_or(false),
            chat_template,
        })
    }
}

/// A token is written as its text, or as an object with its matching rules.
fn token_text(value: &serde_json::Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_tokens_written_as_text_and_as_objects_and_leaves_null_out() {
        let config = TokenizerConfig::from_bytes(
            br#"{"bos_token": null, "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": "<pad>", "x": 1}"#,
        )
        .unwrap();
        let tokens: Vec<_> =
            config.special_tokens.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(tokens, [("eos_token", "</s>"), ("pad_token", "<pad>")]);
        assert!(!config.clean_up_tokenization_spaces);
        assert_eq!(config.chat_template, None);
    }

    #[test]
    fn takes_the_default_of_several_templates() {
        let config = TokenizerConfig::from_bytes(
            br#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#,
        )
        .unwrap();
        assert_eq!(config.chat_template.as_deref(), Some("d"));
    }

    #[test]
    fn says_what_is_wrong_with_the_file() {
        let error = TokenizerConfig::from_bytes(b"{\"eos_token\"").unwrap_err();
        assert!(matches!(error, TextError::TokenizerConfig(_)));
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
