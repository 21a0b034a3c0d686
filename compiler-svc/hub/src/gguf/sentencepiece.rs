//! SentencePiece BPE tokenizers with byte fallback (`tokenizer.ggml.model = "llama"`).

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{Value, json};

use crate::HubError;

use super::tokenizer::{Pipeline, TokenType, Vocabulary};

/// How SentencePiece writes a space.
const SPACE: &str = "\u{2581}";
/// Longer tokens are no result of training, which stops at a few dozen bytes; merges lead to none.
const MAX_MERGED_BYTES: usize = 256;

/// The pipeline of a vocabulary.
///
/// # Errors
/// When its scores do not fit its tokens.
pub(crate) fn pipeline(vocabulary: &Vocabulary<'_>) -> Result<Pipeline, HubError> {
    let metadata = vocabulary.metadata;
    let prefix_space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = vocabulary.special("unknown")?.map(|(_, token)| token).or_else(|| {
        let index = vocabulary.types.iter().position(|kind| *kind == TokenType::Unknown)?;
        vocabulary.tokens.get(index).map(String::as_str)
    });
    Ok(Pipeline {
        normalizer: if prefix_space {
            json!({"type": "Sequence", "normalizers": [prepend, replace]})
        } else {
            replace
        },
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": vocabulary.types.contains(&TokenType::Byte),
            "ignore_merges": false,
            "merges": merges(vocabulary)?,
            "vocab": vocabulary.ids(),
        }),
        adds_bos: true,
    })
}

/// A pair of tokens that together are a token.
struct Merge<'a> {
    pair: [&'a str; 2],
    /// The result's.
    score: f32,
    /// Characters of both parts.
    lengths: [usize; 2],
}

/// The merges that the scores imply, best first: SentencePiece joins the neighbours whose result scores highest.
fn merges<'a>(vocabulary: &Vocabulary<'a>) -> Result<Vec<[&'a str; 2]>, HubError> {
    let metadata = vocabulary.metadata;
    let key = "tokenizer.ggml.scores";
    let scores = metadata.required(key, metadata.f32s(key)?)?;
    if scores.len() != vocabulary.tokens.len() {
        let what = format!("{} scores for {} tokens", scores.len(), vocabulary.tokens.len());
        return Err(HubError::corrupt(&metadata.path, what));
    }
    let mergeable = |kind: TokenType| matches!(kind, TokenType::Normal | TokenType::UserDefined);
    let ids: HashMap<&str, usize> = vocabulary
        .tokens
        .iter()
        .zip(&vocabulary.types)
        .enumerate()
        .filter(|(_, (token, kind))| mergeable(**kind) && token.len() <= MAX_MERGED_BYTES)
        .map(|(id, (token, _))| (token.as_str(), id))
        .collect();
    let mut merges = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        if ids.get(token.as_str()) != Some(&id) {
            continue;
        }
        let mut splits: Vec<(usize, usize, Merge<'_>)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                let lengths = [left.chars().count(), right.chars().count()];
                let merge = Merge { pair: [left, right], score: scores[id], lengths };
                Some((*ids.get(left)?, *ids.get(right)?, merge))
            })
            .collect();
        splits.sort_by_key(|(left, right, _)| (*left, *right));
        merges.extend(splits.into_iter().map(|(_, _, merge)| merge));
    }
    // Stable: of equals, the earlier token's merge is better.
    merges.sort_by(|a, b| {
        b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal).then(b.lengths.cmp(&a.lengths))
    });
    Ok(merges.into_iter().map(|merge| merge.pair).collect())
}
