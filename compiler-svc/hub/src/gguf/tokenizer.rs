//! `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`, rebuilt from metadata.
//!
//! A GGUF file has a vocabulary and names its tokenizer; the rest of `tokenizer.json` (normaliser, pre-tokeniser,
//! decoder) is that of the Hugging Face models that llama.cpp's converter gives this name.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::HubError;

use super::architecture::unsupported;
use super::metadata::Metadata;
use super::{byte_pair, sentencepiece};

/// More tokens than any vocabulary has.
const MAX_TOKENS: usize = 1 << 21;

/// The types of tokens, as in llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    fn from_id(id: u64) -> Option<Self> {
        Some(match id {
            // Files made before types were written have zeros.
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// What the metadata says of the vocabulary.
pub(crate) struct Vocabulary<'a> {
    pub(crate) metadata: &'a Metadata,
    pub(crate) tokens: &'a [String],
    /// As many as tokens.
    pub(crate) types: Vec<TokenType>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, HubError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata.required(key, metadata.strings(key)?)?;
        if tokens.is_empty() || tokens.len() > MAX_TOKENS {
            return Err(HubError::corrupt(
                &metadata.path,
                format!("a vocabulary of {} tokens", tokens.len()),
            ));
        }
        let key = "tokenizer.ggml.token_type";
        let types = match metadata.u64s(key)? {
            None => vec![TokenType::Normal; tokens.len()],
            Some(ids) => ids
                .into_iter()
                .map(TokenType::from_id)
                .collect::<Option<Vec<_>>>()
                .filter(|types| types.len() == tokens.len())
                .ok_or_else(|| {
                    HubError::corrupt(&metadata.path, format!("metadata {key:?} does not fit the tokens"))
                })?,
        };
        Ok(Self { metadata, tokens, types })
    }

    /// The token of a role: `bos`, `eos`, `unknown`, …
    pub(crate) fn special(&self, role: &str) -> Result<Option<(u64, &'a str)>, HubError> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        let Some(id) = self.metadata.u64(&key)? else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|index| self.tokens.get(index));
        match token {
            Some(token) => Ok(Some((id, token))),
            None => {
                let what =
                    format!("metadata {key:?} is {id}, the vocabulary has {} tokens", self.tokens.len());
                Err(HubError::corrupt(&self.metadata.path, what))
            }
        }
    }

    /// `model.vocab`: token to id. Of equal tokens the last counts.
    pub(crate) fn ids(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
    }

    /// `added_tokens`: those that are found in the text before anything else. Control tokens and those with a role
    /// are special: they are left out of decoded text.
    fn added(&self) -> Result<Vec<Value>, HubError> {
        let mut roles = BTreeSet::new();
        for role in ["bos", "eos", "unknown", "padding"] {
            roles.extend(self.special(role)?.map(|(id, _)| id));
        }
        let ids = self.ids();
        let added = self.tokens.iter().zip(&self.types).enumerate().filter_map(|(id, (token, kind))| {
            let special = *kind == TokenType::Control || roles.contains(&(id as u64));
            let wanted = special || *kind == TokenType::UserDefined;
            // An empty token would be found everywhere; of equal tokens only one can be found.
            if !wanted || token.is_empty() || ids.get(token) != Some(&json!(id)) {
                return None;
            }
            Some(json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": special,
            }))
        });
        Ok(added.collect())
    }
}

/// The parts of `tokenizer.json` that depend on the tokenizer's kind.
pub(crate) struct Pipeline {
    pub(crate) normalizer: Value,
    pub(crate) pre_tokenizer: Value,
    pub(crate) decoder: Value,
    pub(crate) model: Value,
    /// Whether BOS is added when the metadata does not say.
    pub(crate) adds_bos: bool,
}

/// What is rebuilt.
pub(crate) struct Rebuilt {
    /// `tokenizer.json`.
    pub(crate) json: Vec<u8>,
    /// `tokenizer_config.json`.
    pub(crate) config: Value,
    pub(crate) chat_template: Option<String>,
    /// `generation_config.json`.
    pub(crate) generation_config: Value,
}

/// Rebuilds a file's tokenizer.
///
/// # Errors
/// When the tokenizer is of a kind that is not supported, or its metadata is broken.
pub(crate) fn rebuild(metadata: &Metadata) -> Result<Rebuilt, HubError> {
    let key = "tokenizer.ggml.model";
    let Some(kind) = metadata.string(key)? else {
        return Err(HubError::MissingTokenizer { place: format!("{} ({key})", metadata.path.display()) });
    };
    let vocabulary = Vocabulary::read(metadata)?;
    let pipeline = match kind {
        "gpt2" => byte_pair::pipeline(&vocabulary)?,
        "llama" => sentencepiece::pipeline(&vocabulary)?,
        other => return Err(unsupported(metadata, format!("tokenizer {other:?}"), "gpt2, llama")),
    };
    let adds_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(pipeline.adds_bos);
    let adds_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let bos = vocabulary.special("bos")?;
    let eos = vocabulary.special("eos")?;
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added()?,
        "normalizer": pipeline.normalizer,
        "pre_tokenizer": pipeline.pre_tokenizer,
        "post_processor": post_processor(bos.filter(|_| adds_bos), eos.filter(|_| adds_eos)),
        "decoder": pipeline.decoder,
        "model": pipeline.model,
    });
    let chat_template = metadata.string("tokenizer.chat_template")?.map(str::to_owned);
    let token = |role| Ok::<_, HubError>(vocabulary.special(role)?.map(|(_, token)| token));
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "add_bos_token": adds_bos,
        "add_eos_token": adds_eos,
        "bos_token": token("bos")?,
        "eos_token": token("eos")?,
        "unk_token": token("unknown")?,
        "pad_token": token("padding")?,
        "chat_template": chat_template,
    });
    Ok(Rebuilt {
        json: serde_json::to_vec(&tokenizer)
            .map_err(|error| HubError::corrupt(&metadata.path, format!("its tokenizer: {error}")))?,
        config,
        chat_template,
        generation_config: generation_config(&vocabulary)?,
    })
}

/// Adds the tokens around every sequence. `null` when there are none.
fn post_processor(bos: Option<(u64, &str)>, eos: Option<(u64, &str)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let around = |sequence: &str, type_id: u32| -> Vec<Value> {
        let special = |token: Option<(u64, &str)>| {
            token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": type_id}}))
        };
        let content = json!({"Sequence": {"id": sequence, "type_id": type_id}});
        [special(bos), Some(content), special(eos)].into_iter().flatten().collect()
    };
    let specials: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(id, token)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": specials,
    })
}

/// Besides EOS, the tokens that end a turn and a message end a generation.
fn generation_config(vocabulary: &Vocabulary<'_>) -> Result<Value, HubError> {
    let id = |role| Ok::<_, HubError>(vocabulary.special(role)?.map(|(id, _)| id));
    let mut ends: Vec<u64> = Vec::new();
    for end in [id("eos")?, id("eot")?, id("eom")?].into_iter().flatten() {
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    let eos = match ends[..] {
        [] => Value::Null,
        [one] => json!(one),
        _ => json!(ends),
    };
    let mut config = Map::new();
    for (name, value) in
        [("bos_token_id", json!(id("bos")?)), ("eos_token_id", eos), ("pad_token_id", json!(id("padding")?))]
    {
        if !value.is_null() {
            config.insert(name.to_owned(), value);
        }
    }
    Ok(Value::Object(config))
}
