//! A streamed text is the text decoded at once.

use std::sync::LazyLock;

use crate::common;
use proptest::prelude::*;
use roundhouse_text::{Detokenizer, Tokenizer};

static TOKENIZERS: LazyLock<Vec<Tokenizer>> =
    LazyLock::new(|| common::KINDS.iter().map(|kind| common::tokenizer(kind)).collect());

fn stream(tokenizer: &Tokenizer, tokens: &[u32], skip_special_tokens: bool) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(skip_special_tokens);
    let mut pieces: Vec<String> =
        tokens.iter().map(|&token| detokenizer.push(tokenizer, token).unwrap()).collect();
    pieces.push(detokenizer.finish(tokenizer).unwrap());
    pieces
}

/// Any tokens, with runs of byte-fallback tokens and words more often than chance would make them.
fn tokens() -> impl Strategy<Value = Vec<u32>> {
    let part = prop_oneof![
        4 => proptest::collection::vec(0..490_u32, 1..6),
        2 => proptest::collection::vec(0..5_u32, 1..4),
        2 => proptest::collection::vec(3..259_u32, 1..9),
        1 => proptest::collection::vec(prop_oneof![Just(0xF0), Just(0x9F), Just(0x98), Just(0x80)], 1..9)
            .prop_map(|bytes| bytes.into_iter().map(|byte: u32| byte + 3).collect()),
    ];
    proptest::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn pieces_of_any_tokens_are_the_text_of_them_all(tokens in tokens(), skip in any::<bool>()) {
        for tokenizer in TOKENIZERS.iter() {
            prop_assert_eq!(stream(tokenizer, &tokens, skip).concat(), tokenizer.decode(&tokens, skip).unwrap());
        }
    }

    #[test]
    fn pieces_of_a_text_are_the_text(text in "[ a-zé😀你.,'▁\n]{0,40}", skip in any::<bool>()) {
        for tokenizer in TOKENIZERS.iter() {
            let tokens = tokenizer.encode(&text, true).unwrap();
            prop_assert_eq!(stream(tokenizer, &tokens, skip).concat(), tokenizer.decode(&tokens, skip).unwrap());
        }
        let byte_level = &TOKENIZERS[0];
        let tokens = byte_level.encode(&text, false).unwrap();
        prop_assert_eq!(stream(byte_level, &tokens, false).concat(), text);
    }
}

#[test]
fn a_character_over_several_tokens_comes_whole() {
    let tokenizer = common::tokenizer("byte_level");
    let tokens = tokenizer.encode("😀 ok", false).unwrap();
    let pieces = stream(&tokenizer, &tokens, true);
    assert_eq!(pieces.iter().find(|piece| !piece.is_empty()).unwrap(), "😀");
    assert!(pieces[0].is_empty(), "the tokenizer splits the character, or this tests nothing: {pieces:?}");
    assert_eq!(pieces.concat(), "😀 ok");
}

#[test]
fn byte_tokens_come_when_their_run_ends() {
    let tokenizer = common::tokenizer("byte_fallback");
    let tokens = tokenizer.encode("a😀b", false).unwrap();
    let bytes =
        tokens.iter().filter(|&&token| tokenizer.token_text(token).unwrap().starts_with("<0x")).count();
    assert_eq!(bytes, 4);
    let pieces: Vec<_> =
        stream(&tokenizer, &tokens, true).into_iter().filter(|piece| !piece.is_empty()).collect();
    assert_eq!(pieces, ["a", "😀b"]);
}

#[test]
fn an_unfinished_character_is_replaced_once_at_the_end() {
    let tokenizer = common::tokenizer("byte_level");
    let mut tokens = tokenizer.encode("ok 😀", false).unwrap();
    tokens.pop();
    let pieces = stream(&tokenizer, &tokens, true);
    assert_eq!(pieces.last().unwrap(), "\u{FFFD}");
    assert_eq!(pieces.concat(), "ok \u{FFFD}");
}

#[test]
fn sentence_piece_drops_the_space_at_the_beginning_only() {
    let tokenizer = common::tokenizer("byte_fallback");
    let tokens = tokenizer.encode("the cat sat on the mat", true).unwrap();
    assert_eq!(stream(&tokenizer, &tokens, true).concat(), "the cat sat on the mat");
    // After a skipped special token in the middle the space is still the text's own.
    let mut around = tokenizer.encode("the cat", false).unwrap();
    around.push(2);
    around.extend(tokenizer.encode("sat", false).unwrap());
    assert_eq!(stream(&tokenizer, &around, true).concat(), "the cat sat");
}

#[test]
fn a_detokenizer_begins_anew_after_its_end() {
    for tokenizer in TOKENIZERS.iter() {
        let tokens = tokenizer.encode("the cat", false).unwrap();
        let mut detokenizer = Detokenizer::new(true);
        let mut run = || {
            let mut text = String::new();
            for &token in &tokens {
                text.push_str(&detokenizer.push(tokenizer, token).unwrap());
            }
            text.push_str(&detokenizer.finish(tokenizer).unwrap());
            text
        };
        assert_eq!(run(), "the cat");
        assert_eq!(run(), "the cat");
    }
}

#[test]
fn held_back_tokens_do_not_grow_with_the_text() {
    // Each piece comes with its token, so nothing is decoded again but the previous one.
    for tokenizer in TOKENIZERS.iter() {
        let tokens = tokenizer.encode(&"the cat sat on the mat ".repeat(50), false).unwrap();
        let pieces = stream(tokenizer, &tokens, true);
        let longest = pieces.iter().map(String::len).max().unwrap();
        assert!(longest < 24, "{longest} bytes at once: {pieces:?}");
    }
}
