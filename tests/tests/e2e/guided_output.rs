//! Structured output: what a request's guide says is what comes, from real models, greedy and sampled, alone and together.

use futures::future::join_all;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::executor::generate_request::Guided;
use roundhouse_proto::executor::{
    Choice, FinishReason, GenerateRequest, JsonObject, SamplingOptions, StoppingOptions,
};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::golden::Message;
use roundhouse_tests::harness::{Generated, LoadedEngine, chat, field, reason, smollm2, tokens};
use serde_json::{Value, json};
use tonic::Code;

async fn engine() -> LoadedEngine {
    smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap()
}

fn request(question: &str, guided: Guided) -> GenerateRequest {
    let message = Message { role: "user".to_owned(), content: question.to_owned() };
    let stopping = StoppingOptions { max_tokens: Some(200), ..StoppingOptions::default() };
    GenerateRequest { guided: Some(guided), stopping: Some(stopping), ..chat(&[message], 1) }
}

fn sampled(request: GenerateRequest, seed: u64) -> GenerateRequest {
    let sampling = SamplingOptions { temperature: Some(1.2), seed: Some(seed), ..SamplingOptions::default() };
    GenerateRequest { sampling: Some(sampling), ..request }
}

fn ended_by_itself(generated: &Generated) -> bool {
    matches!(generated.finish_reason, FinishReason::StopToken | FinishReason::GrammarComplete)
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 1, "maxLength": 20 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "hobbies": { "type": "array", "items": { "type": "string", "maxLength": 12 }, "maxItems": 2 },
            "mood": { "enum": ["happy", "sad", "très \"ému\""] }
        },
        "required": ["name", "age", "hobbies", "mood"],
        "additionalProperties": false
    })
}

#[tokio::test]
async fn json_of_a_schema_parses_and_validates_greedy_and_sampled_and_in_a_batch() {
    let engine = engine().await;
    let schema = person();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let subjects = ["a lighthouse keeper", "Marie Curie", "a \"quoted\" cat", "日本の桜"];
    let requests = subjects.iter().zip(0..).flat_map(|(subject, seed)| {
        let question = format!("Describe {subject} in JSON.");
        let greedy = request(&question, Guided::JsonSchema(schema.to_string()));
        [greedy.clone(), sampled(greedy, seed)]
    });
    let running = requests.map(|request| {
        let engine = &engine;
        async move { (request.clone(), engine.generate(request).await.unwrap()) }
    });
    for (request, generated) in join_all(running).await {
        let text = generated.text();
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        assert!(validator.is_valid(&value), "{text}");
        assert!(ended_by_itself(&generated), "{:?} {text:?}", generated.finish_reason);
        let alone = engine.generate(request).await.unwrap();
        assert_eq!((alone.token_ids, alone.deltas.concat()), (generated.token_ids, text));
    }
}

#[tokio::test]
async fn an_object_a_pattern_a_choice_and_a_grammar_are_kept_to() {
    let engine = engine().await;
    let texts = ["Paris", "London", "Rio de Janeiro"].map(str::to_owned);
    let choice = Guided::Choice(Choice { texts: texts.to_vec() });
    for seed in 0..4 {
        let question = "What is the capital of France?";
        let generated = engine.generate(sampled(request(question, choice.clone()), seed)).await.unwrap();
        assert!(texts.contains(&generated.text()), "{:?}", generated.text());
        assert!(ended_by_itself(&generated));
    }
    let greedy = engine.generate(request("What is the capital of France?", choice)).await.unwrap();
    assert!(texts.contains(&greedy.text()), "{:?}", greedy.text());

    let date = Guided::Regex(r"20[0-9]{2}-[01][0-9]".to_owned());
    let generated = engine.generate(request("When is it?", date)).await.unwrap();
    let text = generated.text();
    let (year, month) = text.split_once('-').unwrap();
    assert!(year.starts_with("20") && year.len() == 4 && month.len() == 2, "{text}");
    // Nothing can follow, so no token is spent on the end.
    assert_eq!(generated.finish_reason, FinishReason::GrammarComplete);

    let grammar = "start: \"<\" WORD (\", \" WORD){2} \">\"\nWORD: /[a-z]{1,8}/\n";
    let generated =
        engine.generate(request("Name three fruits.", Guided::Lark(grammar.to_owned()))).await.unwrap();
    let text = generated.text();
    let words = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).unwrap();
    assert_eq!(words.split(", ").count(), 3, "{text}");

    let object = request("Answer with JSON: {\"city\": \"Paris\"}", Guided::JsonObject(JsonObject {}));
    let generated = engine.generate(object).await.unwrap();
    let text = generated.text();
    if ended_by_itself(&generated) {
        assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
    } else {
        assert!(text.starts_with('{') && generated.finish_reason == FinishReason::MaxTokens, "{text}");
    }
}

#[tokio::test]
async fn limits_and_stop_strings_hold_in_guided_output_too() {
    let engine = engine().await;
    let schema = Guided::JsonSchema(person().to_string());
    let limited = |stopping: StoppingOptions| GenerateRequest {
        stopping: Some(stopping),
        ..request("Describe a person in JSON.", schema.clone())
    };
    let whole = engine.generate(request("Describe a person in JSON.", schema.clone())).await.unwrap();
    let cut = StoppingOptions { max_tokens: Some(5), ..StoppingOptions::default() };
    let generated = engine.generate(limited(cut)).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::MaxTokens);
    assert_eq!(generated.token_ids, whole.token_ids[..5]);

    let stop = StoppingOptions {
        max_tokens: Some(200),
        stop: vec!["\"age\"".to_owned()],
        ..StoppingOptions::default()
    };
    let generated = engine.generate(limited(stop)).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::StopString);
    assert!(whole.text().starts_with(&generated.text()) && !generated.text().contains("age"));

    // More tokens than the grammar allows cannot be had: it ends where nothing may follow.
    let long = StoppingOptions { max_tokens: Some(200), min_tokens: Some(150), ..StoppingOptions::default() };
    let choice = Guided::Choice(Choice { texts: vec!["yes".to_owned(), "yes, of course".to_owned()] });
    let request = GenerateRequest { guided: Some(choice), ..limited(long) };
    let generated = engine.generate(request).await.unwrap();
    assert_eq!(generated.text(), "yes, of course");
    assert_eq!(generated.finish_reason, FinishReason::GrammarComplete);
}

#[tokio::test]
async fn several_outputs_of_a_guide_each_keep_to_it() {
    let engine = engine().await;
    let texts: Vec<String> = (0..50).map(|number| format!("number {number}")).collect();
    let request = request("Say a number.", Guided::Choice(Choice { texts: texts.clone() }));
    let sampling =
        SamplingOptions { n: Some(4), temperature: Some(2.0), seed: Some(3), ..SamplingOptions::default() };
    let outputs = engine.generate_all(GenerateRequest { sampling: Some(sampling), ..request }).await.unwrap();
    assert_eq!(outputs.len(), 4);
    assert!(outputs.iter().all(|output| texts.contains(&output.text())), "{outputs:?}");
}

#[tokio::test]
async fn a_guide_that_cannot_be_used_is_refused_with_its_reason() {
    let engine = engine().await;
    for (guided, name, expected) in [
        (Guided::JsonSchema("{".to_owned()), "json_schema", "not JSON"),
        (Guided::JsonSchema(r#"{"type": "strange"}"#.to_owned()), "json_schema", "strange"),
        (Guided::Regex("(".to_owned()), "regex", "regex"),
        (Guided::Choice(Choice { texts: Vec::new() }), "choice", "0 texts"),
        (Guided::Lark("start: missing".to_owned()), "lark", "missing"),
        (Guided::Lark(format!("start: {}", "(".repeat(50_000))), "lark", "brackets"),
    ] {
        let request = GenerateRequest { guided: Some(guided), stopping: None, ..tokens(&[1], 1) };
        // Refused by the call itself, not by a stream that it opened.
        let status = engine.stream(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!((reason(&status).as_str(), field(&status).as_str()), (reasons::INVALID_FIELD, name));
        assert!(status.message().contains(expected), "{status}");
    }
    let endless = GenerateRequest { guided: Some(Guided::Regex("a".to_owned())), ..tokens(&[1], 1) };
    let status = engine.stream(endless).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "stopping.ignore_eos"));
}

#[tokio::test]
async fn options_that_leave_no_token_end_the_stream_with_a_status_that_says_so() {
    let engine = engine().await;
    // With these no token of "yes" can be written, whatever its beginning.
    let bad_words = ["y", "ye", "yes"].map(str::to_owned).to_vec();
    let sampling = SamplingOptions { bad_words, ..SamplingOptions::default() };
    let guided = Guided::Regex("(yes){2}".to_owned());
    let request = GenerateRequest { sampling: Some(sampling), ..request("Say yes.", guided) };
    let status = engine.generate(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, reasons::NO_TOKEN_ALLOWED),
        "{status}"
    );
}
