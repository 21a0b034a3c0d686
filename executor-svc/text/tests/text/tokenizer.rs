//! The tokenizer gives what Transformers gives.

use crate::common;
use roundhouse_text::{TextError, Tokenizer, TokenizerConfig};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    vocab_size: usize,
    special_token_ids: Vec<u32>,
    encoded: Vec<Encoded>,
    decoded: Vec<Decoded>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    tokens: Vec<u32>,
    tokens_with_special: Vec<u32>,
}

#[derive(Deserialize)]
struct Decoded {
    tokens: Vec<u32>,
    text: String,
    text_without_special: String,
}

fn cases() -> Vec<Case> {
    let cases = common::golden::<Golden>("tokenizers.json").cases;
    assert_eq!(cases.iter().map(|case| case.kind.as_str()).collect::<Vec<_>>(), common::KINDS);
    cases
}

#[test]
fn encodes_as_transformers_does() {
    for case in cases() {
        let tokenizer = common::tokenizer(&case.kind);
        for encoded in case.encoded {
            let context = format!("{}: {:?}", case.kind, encoded.text);
            assert_eq!(tokenizer.encode(&encoded.text, false).unwrap(), encoded.tokens, "{context}");
            assert_eq!(
                tokenizer.encode(&encoded.text, true).unwrap(),
                encoded.tokens_with_special,
                "{context}"
            );
        }
    }
}

#[test]
fn decodes_as_transformers_does() {
    for case in cases() {
        let tokenizer = common::tokenizer(&case.kind);
        for decoded in case.decoded {
            let context = format!("{}: {:?}", case.kind, decoded.tokens);
            assert_eq!(tokenizer.decode(&decoded.tokens, false).unwrap(), decoded.text, "{context}");
            assert_eq!(
                tokenizer.decode(&decoded.tokens, true).unwrap(),
                decoded.text_without_special,
                "{context}"
            );
        }
    }
}

#[test]
fn knows_its_vocabulary_and_special_tokens() {
    for case in cases() {
        let tokenizer = common::tokenizer(&case.kind);
        assert_eq!(tokenizer.vocab_size(), case.vocab_size, "{}", case.kind);
        assert_eq!(tokenizer.special_token_ids(), case.special_token_ids, "{}", case.kind);
        for &token in &case.special_token_ids {
            assert!(tokenizer.is_special(token));
            assert_eq!(tokenizer.token_id(&tokenizer.token_text(token).unwrap()), Some(token));
        }
    }
    let tokenizer = common::tokenizer("byte_level");
    // An added token that is not special.
    assert!(!tokenizer.is_special(tokenizer.token_id("<think>").unwrap()));
    assert_eq!(tokenizer.token_id("no such token"), None);
}

#[test]
fn a_file_that_is_no_tokenizer_is_an_error() {
    let config = TokenizerConfig::default();
    assert!(matches!(Tokenizer::from_bytes(b"{}", &config), Err(TextError::Tokenizer(_))));
    let missing = common::golden_path("no_such_file.json");
    let error = Tokenizer::from_file(&missing, &config).unwrap_err();
    assert!(error.to_string().contains("no_such_file.json"), "{error}");
}
