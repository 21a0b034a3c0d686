//! What a guide allows is what its grammar does, token by token.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test's helper is a failed test")]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use roundhouse_guided::{Accepted, GrammarCompiler, Guide, GuideError, TokenGuide};
use roundhouse_text::{TokenBytes, Tokenizer, TokenizerConfig};
use serde_json::{Value, json};

/// As a model with padded logits has it: more columns than the tokenizer has tokens.
const VOCAB_SIZE: usize = 512;

struct Vocabulary {
    compiler: GrammarCompiler,
    words: Vec<TokenBytes>,
    end: u32,
}

static VOCABULARIES: LazyLock<[Vocabulary; 2]> =
    LazyLock::new(|| [vocabulary("byte_level", "<|im_end|>"), vocabulary("byte_fallback", "</s>")]);

fn vocabulary(kind: &str, end: &str) -> Vocabulary {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../text/tests/golden");
    let config = TokenizerConfig::from_file(&folder.join(format!("{kind}.tokenizer_config.json"))).unwrap();
    let tokenizer = Tokenizer::from_file(&folder.join(format!("{kind}.tokenizer.json")), &config).unwrap();
    let tokenizer = Arc::new(tokenizer);
    let end = tokenizer.token_id(end).unwrap();
    let words = tokenizer.token_bytes().unwrap();
    let compiler = GrammarCompiler::new(tokenizer, VOCAB_SIZE, &[end]).unwrap();
    Vocabulary { compiler, words, end }
}

impl Vocabulary {
    fn text(&self, tokens: &[u32]) -> Vec<u8> {
        let bytes = |&token: &u32| match &self.words[token as usize] {
            TokenBytes::Text(bytes) => bytes.clone(),
            other => panic!("token {token} is {other:?}"),
        };
        tokens.iter().flat_map(bytes).collect()
    }
}

fn allowed(guide: &mut TokenGuide) -> Vec<u32> {
    let words = guide.allowed().unwrap();
    (0..VOCAB_SIZE as u32).filter(|&token| words[token as usize / 32] >> (token % 32) & 1 == 1).collect()
}

/// Some output that the guide allows, a token that `next` chooses each time; ends as soon as it may after `most` tokens.
fn output(
    vocabulary: &Vocabulary,
    guide: &mut TokenGuide,
    most: usize,
    next: &mut impl FnMut(usize) -> usize,
) -> String {
    let mut tokens = Vec::new();
    loop {
        let allowed = allowed(guide);
        if allowed.contains(&vocabulary.end) {
            assert!(guide.may_end());
            if tokens.len() >= most {
                break;
            }
        }
        let token = allowed[next(allowed.len())];
        if token == vocabulary.end {
            assert_eq!(guide.accept(token).unwrap(), Accepted::Complete);
            break;
        }
        tokens.push(token);
        if guide.accept(token).unwrap() == Accepted::Complete {
            break;
        }
    }
    assert!(guide.may_end());
    assert!(
        guide.allowed().is_err() && guide.accept(0).is_err(),
        "an output that is complete has no next token"
    );
    String::from_utf8(vocabulary.text(&tokens)).unwrap()
}

/// A small linear congruential generator: any choices, the same ones in every run.
fn choices(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    }
}

fn schemas() -> Vec<Value> {
    vec![
        json!({
            "type": "object",
            "properties": {
                "name": { "type": "string", "maxLength": 12 },
                "age": { "type": "integer", "minimum": 0, "maximum": 120 },
                "tags": { "type": "array", "items": { "enum": ["a", "bc", "é"] }, "maxItems": 3 },
                "address": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/address" }] }
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": false,
            "$defs": {
                "address": {
                    "type": "object",
                    "properties": { "zip": { "type": "string", "pattern": "^[0-9]{5}$" } },
                    "required": ["zip"],
                    "additionalProperties": false
                }
            }
        }),
        json!({ "type": "array", "items": { "type": "boolean" }, "minItems": 2, "maxItems": 4 }),
        json!({ "const": { "answer": 42 } }),
    ]
}

#[test]
fn every_output_of_a_schema_parses_and_validates() {
    for vocabulary in VOCABULARIES.iter() {
        for schema in schemas() {
            let validator = jsonschema::validator_for(&schema).unwrap();
            let mut guide = vocabulary.compiler.compile(&Guide::JsonSchema(schema.to_string())).unwrap();
            for seed in 0..20 {
                let text = output(vocabulary, &mut guide.fork().unwrap(), usize::MAX, &mut choices(seed));
                let value: Value = serde_json::from_str(&text).unwrap();
                assert!(validator.is_valid(&value), "{schema} {text}");
                // At most one space, or a line break with indentation, between any two parts.
                assert!(text.len() < 1000, "{text}");
            }
        }
    }
}

#[test]
fn an_object_of_any_kind_is_an_object() {
    for vocabulary in VOCABULARIES.iter() {
        let mut guide = vocabulary.compiler.compile(&Guide::JsonObject).unwrap();
        // A model that would never close anything is not one: the last allowed token is tried after some of them.
        let mut random = choices(5);
        let closing: Vec<u32> = (0..vocabulary.words.len() as u32)
            .filter(|&token| matches!(&vocabulary.words[token as usize], TokenBytes::Text(text) if text == b"}" || text == b"\""))
            .collect();
        let mut tokens = Vec::new();
        let mut guide = guide.fork().unwrap();
        while !guide.may_end() {
            let allowed = allowed(&mut guide);
            let close = closing.iter().copied().find(|token| tokens.len() > 30 && allowed.contains(token));
            let token = close.unwrap_or_else(|| allowed[random(allowed.len())]);
            tokens.push(token);
            if guide.accept(token).unwrap() == Accepted::Complete {
                break;
            }
            assert!(tokens.len() < 2000);
        }
        let text = String::from_utf8(vocabulary.text(&tokens)).unwrap();
        assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
    }
}

#[test]
fn a_choice_is_one_of_its_texts_whatever_characters_they_have() {
    let texts =
        ["yes", "yes, of course", "no/never", "a+b (c) [d] \\ \"q\" .*", "é😀\n", "{x}"].map(str::to_owned);
    for vocabulary in VOCABULARIES.iter() {
        let mut guide = vocabulary.compiler.compile(&Guide::Choice(texts.to_vec())).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..60 {
            let text = output(vocabulary, &mut guide.fork().unwrap(), usize::MAX, &mut choices(seed));
            assert!(texts.contains(&text), "{text:?}");
            seen.insert(text);
        }
        assert!(seen.len() >= 5, "{seen:?}");
    }
}

#[test]
fn a_token_is_allowed_exactly_where_its_bytes_go_on_in_the_language() {
    // (ab)*c: what may follow a prefix is written out.
    let language = ["", "ab", "abab", "ababab", "abababab"].map(|start| format!("{start}c"));
    let vocabulary = &VOCABULARIES[1];
    let mut guide = vocabulary.compiler.compile(&Guide::Regex("(ab)*c".to_owned())).unwrap();
    let mut text = String::new();
    for byte in *b"ababc" {
        let expected: Vec<u32> = (0..vocabulary.words.len() as u32)
            .filter(|&token| match &vocabulary.words[token as usize] {
                TokenBytes::Text(bytes) if !bytes.is_empty() => {
                    let extended = [text.as_bytes(), bytes].concat();
                    language.iter().any(|word| word.as_bytes().starts_with(&extended))
                }
                _ => false,
            })
            .collect();
        assert_eq!(allowed(&mut guide), expected, "after {text:?}");
        let single = TokenBytes::Text(vec![byte]);
        let token = expected.into_iter().find(|&token| vocabulary.words[token as usize] == single).unwrap();
        let accepted = guide.accept(token).unwrap();
        assert_eq!(accepted == Accepted::Complete, byte == b'c');
        text.push(char::from(byte));
    }
}

#[test]
fn a_grammar_of_rules_is_followed() {
    let grammar = r#"start: sum
sum: NUMBER ("+" NUMBER){1,3}
NUMBER: /[0-9]{1,2}/
"#;
    for vocabulary in VOCABULARIES.iter() {
        let mut guide = vocabulary.compiler.compile(&Guide::Lark(grammar.to_owned())).unwrap();
        for seed in 0..20 {
            let text = output(vocabulary, &mut guide.fork().unwrap(), usize::MAX, &mut choices(seed));
            let numbers: Vec<&str> = text.split('+').collect();
            assert!((2..=4).contains(&numbers.len()), "{text}");
            assert!(
                numbers.iter().all(|number| number.parse::<u8>().is_ok_and(|value| value < 100)),
                "{text}"
            );
        }
    }
}

#[test]
fn forks_go_their_own_ways() {
    let vocabulary = &VOCABULARIES[0];
    let mut first = vocabulary.compiler.compile(&Guide::Regex("[ab]{3}|c{9}".to_owned())).unwrap();
    let byte = |byte: u8| {
        let found = vocabulary.words.iter().position(|word| *word == TokenBytes::Text(vec![byte]));
        found.unwrap() as u32
    };
    let mut second = first.fork().unwrap();
    assert_eq!(first.accept(byte(b'a')).unwrap(), Accepted::Open);
    assert_eq!(second.accept(byte(b'c')).unwrap(), Accepted::Open);
    let mut third = second.fork().unwrap();
    assert!(!allowed(&mut first).contains(&byte(b'c')));
    assert!(!allowed(&mut second).contains(&byte(b'a')));
    assert_eq!(allowed(&mut third), allowed(&mut second));
}

#[test]
fn a_token_that_is_not_allowed_is_an_error_and_ends_the_guide() {
    let vocabulary = &VOCABULARIES[0];
    let mut guide = vocabulary.compiler.compile(&Guide::Regex("a+".to_owned())).unwrap();
    let wrong = vocabulary.words.iter().position(|word| *word == TokenBytes::Text(vec![b'b'])).unwrap();
    assert!(matches!(guide.accept(wrong as u32), Err(GuideError::Stuck { .. })));
    assert!(matches!(guide.allowed(), Err(GuideError::Stuck { .. })));
    assert!(!guide.may_end());
}

#[test]
fn what_is_no_grammar_is_refused_with_the_reason() {
    let vocabulary = &VOCABULARIES[0];
    let schema = |text: &str| Guide::JsonSchema(text.to_owned());
    for (guide, expected) in [
        (schema("{"), "not JSON"),
        (schema("[1]"), "not an object"),
        (schema(""), "0 bytes"),
        (schema(r#"{"type": "strange"}"#), "strange"),
        (schema(r##"{"$ref": "#/$defs/none"}"##), "none"),
        (schema(r#"{"$ref": "https://example.com/schema"}"#), "example.com"),
        (schema(r#"{"type": "string", "minLength": 5, "maxLength": 2}"#), ""),
        (Guide::Regex("(".to_owned()), "regex"),
        (Guide::Regex(String::new()), "0 bytes"),
        (Guide::Regex("x".repeat(70_000)), "65536"),
        (Guide::Choice(Vec::new()), "0 texts"),
        (Guide::Choice(vec!["x".to_owned(); 1025]), "1024"),
        (Guide::Lark("start: missing".to_owned()), "missing"),
        (Guide::Lark("rule: \"a\"".to_owned()), "start"),
    ] {
        let error = vocabulary.compiler.compile(&guide).err().unwrap_or_else(|| panic!("{guide:?}"));
        assert!(matches!(error, GuideError::Size { .. } | GuideError::Invalid { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains(expected) && message.contains(guide.kind()), "{message}");
        assert!(!message.contains('\n') && message.len() < 1000, "{message}");
    }
}

#[test]
fn hostile_grammars_end_soon_and_harm_nothing() {
    let nested =
        |open: &str, close: &str, depth: usize| format!("{}a{}", open.repeat(depth), close.repeat(depth));
    // As long as a grammar may be, each rule on the way to the next.
    let rules: String = (0..5300).map(|rule| format!("r{rule}:r{}\n", rule + 1)).collect();
    assert!((60_000..65_000).contains(&rules.len()), "{}", rules.len());
    let branches: String =
        (0..2000).map(|rule| format!("r{rule}: r{} | \"x\"\n", (rule + 1) % 2000)).collect();
    let hostile = [
        Guide::Regex(nested("(", ")", 30_000)),
        Guide::Regex(nested("(", ")", 90)),
        Guide::Regex("((a{1,1000}){1,1000}){1,1000}".to_owned()),
        Guide::Regex("(a|b|ab)*".repeat(2000)),
        Guide::Regex(".*a.{1000}".to_owned()),
        Guide::Lark(format!("start: {}", nested("(", ")", 30_000).replace('a', "\"a\""))),
        Guide::Lark(format!("start: {}", nested("(", ")", 90).replace('a', "\"a\""))),
        Guide::Lark(format!("start: r0\n{branches}")),
        Guide::Lark(format!("start: r0\n{rules}r5300: \"x\"")),
        Guide::Lark(format!("start: R0\n{}R5300: \"x\"", rules.replace('r', "R"))),
        Guide::Lark("start: start start | \"a\"".to_owned()),
        Guide::JsonSchema(format!("{}{{}}{}", r#"{"items":"#.repeat(120), "}".repeat(120))),
        Guide::JsonSchema(format!("{}{{}}{}", r#"{"items":"#.repeat(5000), "}".repeat(5000))),
        Guide::JsonSchema(r##"{"$ref": "#"}"##.to_owned()),
        Guide::JsonSchema(r#"{"type": "string", "minLength": 100000000}"#.to_owned()),
        Guide::JsonSchema(r#"{"type": "array", "minItems": 100000000}"#.to_owned()),
        Guide::JsonSchema(r#"{"type": "string", "pattern": "^(a+)+(b+)+(c|d){5000}$"}"#.to_owned()),
    ];
    let vocabulary = &VOCABULARIES[0];
    for guide in hostile {
        let begun = Instant::now();
        let what = format!("{guide:?}").chars().take(60).collect::<String>();
        // What is refused is refused soon; what is not can be followed, or says at some token that it cannot.
        let refused = match vocabulary.compiler.compile(&guide) {
            Ok(mut guide) => {
                let mut random = choices(1);
                for _ in 0..20 {
                    let Ok(words) = guide.allowed() else { break };
                    let tokens: Vec<u32> = (0..VOCAB_SIZE as u32)
                        .filter(|&token| words[token as usize / 32] >> (token % 32) & 1 == 1)
                        .collect();
                    let Ok(Accepted::Open) = guide.accept(tokens[random(tokens.len())]) else { break };
                }
                None
            }
            Err(error) => Some(error),
        };
        let took = begun.elapsed();
        println!("{took:?} {what} {refused:?}");
        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
    }
}
