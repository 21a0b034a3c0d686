//! What single tokens add to a text, put together, is the text that streams.

use crate::common;
use proptest::prelude::*;
use roundhouse_text::{Detokenizer, TextError, TokenBytes};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_bytes_of_any_tokens_are_what_they_add_to_a_text(
        tokens in proptest::collection::vec(0..490_u32, 0..20),
    ) {
        for kind in ["byte_level", "byte_fallback"] {
            let tokenizer = common::tokenizer(kind);
            let vocabulary = tokenizer.token_bytes().unwrap();
            let mut detokenizer = Detokenizer::new(true);
            for token in tokenizer.encode("a word", false).unwrap() {
                detokenizer.push(&tokenizer, token).unwrap();
            }
            let mut bytes = Vec::new();
            let mut shown = String::new();
            for &token in &tokens {
                if let Some(TokenBytes::Text(of_token)) = vocabulary.get(token as usize) {
                    bytes.extend(of_token);
                }
                shown.push_str(&detokenizer.push(&tokenizer, token).unwrap());
            }
            shown.push_str(&detokenizer.finish(&tokenizer).unwrap());
            // A run of byte tokens that is not UTF-8 is decoded in another way, and is in no text that a grammar allows.
            if let Ok(text) = String::from_utf8(bytes) {
                prop_assert_eq!(shown, text, "{}", kind);
            }
        }
    }
}

#[test]
fn special_tokens_add_nothing_and_every_byte_has_a_token() {
    for kind in ["byte_level", "byte_fallback"] {
        let tokenizer = common::tokenizer(kind);
        let vocabulary = tokenizer.token_bytes().unwrap();
        for &token in tokenizer.special_token_ids() {
            let name = tokenizer.token_text(token).unwrap();
            assert_eq!(vocabulary[token as usize], TokenBytes::Special(name));
        }
        for byte in 0..=u8::MAX {
            assert!(vocabulary.contains(&TokenBytes::Text(vec![byte])), "{kind} {byte:#x}");
        }
    }
}

#[test]
fn tokenizers_whose_tokens_depend_on_their_neighbours_say_so() {
    for kind in ["unigram", "word_piece"] {
        let error = common::tokenizer(kind).token_bytes().unwrap_err();
        assert!(matches!(error, TextError::NoTokenBytes { .. }), "{kind}: {error}");
    }
}
