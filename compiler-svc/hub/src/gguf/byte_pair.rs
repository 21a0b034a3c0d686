//! Byte-level BPE tokenizers (`tokenizer.ggml.model = "gpt2"`): which pre-tokeniser goes with which
//! `tokenizer.ggml.pre`.

use serde_json::{Value, json};

use crate::HubError;

use super::architecture::unsupported;
use super::tokenizer::{Pipeline, Vocabulary};

/// How text is split before BPE.
enum Split {
    /// GPT-2's own expression.
    Gpt2,
    /// Every digit by itself, then GPT-2's expression.
    DigitsThenGpt2,
    /// An expression of the model's own.
    Expression(&'static str),
}

/// One family of tokenizers.
struct Known {
    /// The values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    split: Split,
    /// Whether text is composed to NFC first.
    nfc: bool,
    /// Whether a piece that is a token of the vocabulary is that token, merges or not.
    ignore_merges: bool,
    /// Whether BOS is added when the metadata does not say.
    adds_bos: bool,
}

const KNOWN: [Known; 7] = [
    Known {
        names: &["default", "gpt-2", "gpt2"],
        split: Split::Gpt2,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    Known {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        split: Split::DigitsThenGpt2,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    Known {
        names: &["llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"],
        split: Split::Expression(LLAMA3),
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
    Known {
        names: &["smaug-bpe", "dbrx"],
        split: Split::Expression(LLAMA3),
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    Known {
        names: &["qwen2", "deepseek-r1-qwen"],
        split: Split::Expression(QWEN2),
        nfc: true,
        ignore_merges: false,
        adds_bos: false,
    },
    Known {
        names: &["tekken"],
        split: Split::Expression(TEKKEN),
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
    Known {
        names: &["gpt-4o", "llama4"],
        split: Split::Expression(GPT4O),
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
];

/// As in the `tokenizer.json` of Llama 3, Qwen 2, Mistral NeMo and Llama 4.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pipeline of a vocabulary.
///
/// # Errors
/// When its pre-tokeniser is not known, or its merges do not fit its tokens.
pub(crate) fn pipeline(vocabulary: &Vocabulary<'_>) -> Result<Pipeline, HubError> {
    let metadata = vocabulary.metadata;
    let pre = metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
    let Some(known) = KNOWN.iter().find(|known| known.names.contains(&pre)) else {
        let names: Vec<&str> = KNOWN.iter().flat_map(|known| known.names).copied().collect();
        return Err(unsupported(metadata, format!("pre-tokenizer {pre:?}"), &names.join(", ")));
    };
    let prefix_space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    let byte_level = |use_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": use_regex,
        })
    };
    let sequence =
        |first: Value, second: Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
    let pre_tokenizer = match known.split {
        Split::Gpt2 => byte_level(true),
        Split::DigitsThenGpt2 => {
            sequence(json!({"type": "Digits", "individual_digits": true}), byte_level(true))
        }
        Split::Expression(expression) => sequence(
            json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false}),
            byte_level(false),
        ),
    };
    Ok(Pipeline {
        normalizer: if known.nfc { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer,
        decoder: json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        }),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": known.ignore_merges,
            "merges": merges(vocabulary)?,
            "vocab": vocabulary.ids(),
        }),
        adds_bos: known.adds_bos,
    })
}

/// Pairs of tokens, best first.
fn merges<'a>(vocabulary: &Vocabulary<'a>) -> Result<Vec<[&'a str; 2]>, HubError> {
    let metadata = vocabulary.metadata;
    let key = "tokenizer.ggml.merges";
    let ids = vocabulary.ids();
    let merges = metadata.required(key, metadata.strings(key)?)?;
    merges
        .iter()
        .map(|merge| {
            // A byte is never written as a space, so the space is between the tokens.
            let pair = merge.split_once(' ').filter(|(left, right)| {
                ids.contains_key(*left)
                    && ids.contains_key(*right)
                    && ids.contains_key(&[*left, *right].concat())
            });
            let (left, right) = pair.ok_or_else(|| {
                HubError::corrupt(
                    &metadata.path,
                    format!("merge {merge:?} is not of tokens of the vocabulary"),
                )
            })?;
            Ok([left, right])
        })
        .collect()
}
