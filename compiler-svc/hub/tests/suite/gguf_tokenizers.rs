//! Every tokenizer that is rebuilt from metadata loads and keeps text.

use tokenizers::Tokenizer;

use crate::gguf_file::open_gguf;
use crate::gguf_files::{Gguf, Value};

fn tokenizer(file: &Gguf) -> Tokenizer {
    let checkpoint = open_gguf(file).unwrap();
    Tokenizer::from_bytes(checkpoint.tokenizer_json.unwrap()).unwrap()
}

/// The splits that BPE gets, through a vocabulary without merges over them.
fn splits(pre: &str, text: &str) -> Vec<String> {
    let mut file = Gguf::tiny();
    file.set("tokenizer.ggml.pre", pre);
    let tokenizer = tokenizer(&file);
    let encoding = tokenizer.encode(text, false).unwrap();
    let mut splits: Vec<(Option<u32>, String)> = Vec::new();
    for (word, token) in encoding.get_word_ids().iter().zip(encoding.get_tokens()) {
        match splits.last_mut() {
            Some((last, split)) if last == word => split.push_str(token),
            _ => splits.push((*word, token.clone())),
        }
    }
    splits.into_iter().map(|(_, split)| split.replace('\u{120}', "_").replace('\u{10a}', "/")).collect()
}

#[test]
fn each_pre_tokenizer_splits_as_its_models_do() {
    let text = "Hello'Ve world  123\n\n 4567 foo";
    let cases = [
        (&["gpt-2", "default", "gpt2"][..], "Hello|'|Ve|_world|_|_123|//|_4567|_foo"),
        (&["smollm", "starcoder"], "Hello|'|Ve|_world|__|1|2|3|//_|4|5|6|7|_foo"),
        (&["llama-bpe", "llama3", "smaug-bpe"], "Hello|'Ve|_world|_|_|123|//|_|456|7|_foo"),
        (&["qwen2", "deepseek-r1-qwen"], "Hello|'Ve|_world|_|_|1|2|3|//|_|4|5|6|7|_foo"),
    ];
    for (names, expected) in cases {
        for name in names {
            assert_eq!(splits(name, text).join("|"), expected, "{name}");
        }
    }
}

#[test]
fn every_pre_tokenizer_keeps_text() {
    let text = "Hello'Ve \u{c5}ngstr\u{f6}m 1234 \u{1f600}\n\n  x<|end|>y";
    for pre in [
        "gpt-2",
        "smollm",
        "llama-bpe",
        "smaug-bpe",
        "qwen2",
        "tekken",
        "gpt-4o",
        "llama4",
        "pixtral",
        "dbrx",
    ] {
        let mut file = Gguf::tiny();
        file.set("tokenizer.ggml.pre", pre);
        let tokenizer = tokenizer(&file);
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text, "{pre}");
        assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), text.replace("<|end|>", ""), "{pre}");
        assert!(encoding.get_ids().contains(&258), "{pre}: a control token is one token");
    }
}

#[test]
fn qwen2_composes_text_first() {
    let mut file = Gguf::tiny();
    file.set("tokenizer.ggml.pre", "qwen2");
    let tokenizer = tokenizer(&file);
    let ids = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    assert_eq!(ids("e\u{301}"), ids("\u{e9}"));
}

#[test]
fn tokens_around_a_sequence_are_added_as_the_file_says() {
    let ids = |pairs: &[(&str, Value)]| {
        let mut file = Gguf::tiny();
        file.set("tokenizer.ggml.bos_token_id", Value::U32(258));
        file.set("tokenizer.ggml.eos_token_id", Value::U32(0));
        for (key, value) in pairs {
            file.set(&format!("tokenizer.ggml.{key}"), value.clone());
        }
        tokenizer(&file).encode("he", true).unwrap().get_ids().to_vec()
    };
    let (yes, no) = (Value::Bool(true), Value::Bool(false));
    assert_eq!(ids(&[]), [256]);
    assert_eq!(ids(&[("add_bos_token", yes.clone())]), [258, 256]);
    assert_eq!(ids(&[("add_bos_token", yes.clone()), ("add_eos_token", yes)]), [258, 256, 0]);
    assert_eq!(ids(&[("pre", "llama-bpe".into())]), [258, 256], "Llama 3 adds BOS unless told otherwise");
    assert_eq!(ids(&[("pre", "llama-bpe".into()), ("add_bos_token", no)]), [256]);
}

#[test]
fn user_defined_tokens_are_whole_but_not_special() {
    let mut file = Gguf::tiny();
    let mut types = vec![1; 259];
    types[258] = 4;
    file.set("tokenizer.ggml.token_type", Value::I32s(types));
    file.unset("tokenizer.ggml.eos_token_id");
    let tokenizer = tokenizer(&file);
    let encoding = tokenizer.encode("a<|end|>", false).unwrap();
    assert_eq!(encoding.get_ids().last(), Some(&258));
    assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), "a<|end|>");
}

#[test]
fn a_generation_ends_at_every_token_that_ends_a_turn() {
    let mut file = Gguf::tiny();
    file.set("tokenizer.ggml.eot_token_id", Value::U32(7));
    file.set("tokenizer.ggml.eom_token_id", Value::U32(258));
    let generation = open_gguf(&file).unwrap().generation_config.unwrap();
    assert_eq!(generation["eos_token_id"], serde_json::json!([258, 7]));
}
