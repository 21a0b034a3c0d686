//! Chat templates render as in Transformers, and cannot be made to run for ever.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::common;
use roundhouse_text::{ChatMessage, ChatTemplate, MAX_TEMPLATE_BYTES, RenderOptions, TextError};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    now_unix_s: u64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<ChatMessage>,
    add_generation_prompt: bool,
    text: Option<String>,
    tokens: Option<Vec<u32>>,
    error: Option<String>,
    #[serde(default)]
    refused: bool,
}

fn template(source: &str) -> Result<ChatTemplate, TextError> {
    ChatTemplate::new(source, BTreeMap::new())
}

fn render(source: &str) -> Result<String, TextError> {
    let messages = [ChatMessage { role: "user".to_owned(), content: "Hi".into() }];
    let options = RenderOptions { add_generation_prompt: true, now: SystemTime::UNIX_EPOCH };
    template(source).unwrap().render(&messages, &options)
}

#[test]
fn renders_as_transformers_does() {
    let golden: Golden = common::golden("chat.json");
    let tokenizer = common::tokenizer("byte_level");
    let special_tokens = common::config("byte_level").special_tokens;
    let mut rendered = 0;
    let mut refused = 0;
    for case in golden.cases {
        let source = std::fs::read_to_string(common::golden_path("templates").join(&case.template)).unwrap();
        let template = ChatTemplate::new(&source, special_tokens.clone()).unwrap();
        let options = RenderOptions {
            add_generation_prompt: case.add_generation_prompt,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(golden.now_unix_s),
        };
        let result = template.render(&case.messages, &options);
        let context = format!("{} {:?}", case.template, case.messages);
        match (result, case.text, case.error) {
            (Ok(text), Some(expected), None) => {
                assert_eq!(text, expected, "{context}");
                if let Some(tokens) = case.tokens {
                    assert_eq!(tokenizer.encode(&text, false).unwrap(), tokens, "{context}");
                }
                rendered += 1;
            }
            (Err(TextError::RefusedByTemplate { message }), None, Some(expected)) if case.refused => {
                assert_eq!(message, expected, "{context}");
                refused += 1;
            }
            (Err(TextError::Template { .. }), None, Some(_)) if !case.refused => {}
            (result, expected, error) => {
                panic!("{context}: {result:?}, but Transformers: {expected:?} {error:?}")
            }
        }
    }
    assert!(rendered > 100 && refused > 20, "{rendered} rendered, {refused} refused");
}

#[test]
fn a_conversation_needs_a_message() {
    let options = RenderOptions { add_generation_prompt: true, now: SystemTime::UNIX_EPOCH };
    let result = template("x").unwrap().render(&[], &options);
    assert!(matches!(result, Err(TextError::EmptyConversation)));
}

#[test]
fn a_broken_template_is_found_when_it_is_compiled() {
    let error = template("line\n{% if %}").unwrap_err();
    assert!(matches!(error, TextError::TemplateSyntax { .. }));
    assert!(error.to_string().contains("line 2") || error.to_string().contains(":2"), "{error}");
    let long = " ".repeat(MAX_TEMPLATE_BYTES + 1);
    assert!(matches!(template(&long), Err(TextError::TemplateTooLong { .. })));
}

#[test]
fn a_failure_names_its_cause() {
    let error = render("{{ messages[0].content.no_such_method() }}").unwrap_err();
    assert!(matches!(error, TextError::Template { .. }), "{error:?}");
    assert!(error.to_string().contains("no_such_method"), "{error}");
}

#[test]
fn endless_work_is_ended() {
    let hostile = [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(9999) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ 'x' * 1000000000000 }}",
        "{% set ns = namespace(l=['x' * 1000]) %}{% for a in range(9999) %}{% set ns.l = ns.l + ns.l %}{{ ns.l | tojson }}{% endfor %}",
        "{{ range(9999) | map('string') | list | tojson }}".repeat(500).leak(),
        "{% set ns = namespace(l=['x']) %}{% for a in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
    ];
    for source in hostile {
        let result = render(source);
        assert!(matches!(result, Err(TextError::TemplateBudget)), "{source}: {result:?}");
    }
}

#[test]
fn endless_recursion_is_an_error() {
    assert!(render("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}").is_err());
}

#[test]
fn values_nested_as_deep_as_the_budget_allows_do_not_overflow_the_stack() {
    let step = format!("{{% set ns.l = {}ns.l{} %}}", "[".repeat(40), "]".repeat(40));
    let nested = |levels: usize| {
        let rounds = levels / 4000;
        format!(
            "{{% set ns = namespace(l=[]) %}}\
             {{% for a in range({rounds}) %}}{{% for b in range(100) %}}{step}{{% endfor %}}{{% endfor %}}"
        )
    };
    assert!(matches!(render(&nested(40_000)), Ok(text) if text.is_empty()));
    for last in [
        "",
        "{{ ns.l }}",
        "{{ ns.l | tojson }}",
        "{{ ns.l == [] }}",
        "{{ {ns.l: 1} }}",
        "{{ ns.l | string }}",
    ] {
        // Whether it is rendered or refused, the process lives.
        let _ = render(&(nested(80_000) + last));
        assert!(matches!(render(&(nested(400_000) + last)), Err(TextError::TemplateBudget)), "{last}");
    }
}

#[test]
fn a_long_conversation_is_rendered() {
    let source = std::fs::read_to_string(common::golden_path("templates/qwen.jinja")).unwrap();
    let messages: Vec<_> = (0..2000)
        .map(|turn| ChatMessage {
            role: if turn % 2 == 0 { "user" } else { "assistant" }.to_owned(),
            content: "word ".repeat(1000).into(),
        })
        .collect();
    let options = RenderOptions { add_generation_prompt: true, now: SystemTime::UNIX_EPOCH };
    assert!(template(&source).unwrap().render(&messages, &options).unwrap().len() > 10_000_000);
}
