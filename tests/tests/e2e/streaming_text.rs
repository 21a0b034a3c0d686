//! The text of a stream: deltas that add up, whole characters, and every way to stop.

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::executor::{FinishReason, GenerateRequest, ResponseOptions, StoppingOptions};
use roundhouse_tests::golden::{self, GoldenPrompt};
use roundhouse_tests::harness::{LoadedEngine, prompt, shared, smollm2, tiny_llama_request, tokens};

async fn engine() -> LoadedEngine {
    smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap()
}

fn golden_prompt(name: &str) -> GoldenPrompt {
    golden::smollm2().unwrap().prompts.into_iter().find(|prompt| prompt.name == name).unwrap()
}

fn stopping(request: GenerateRequest, stopping: StoppingOptions) -> GenerateRequest {
    GenerateRequest { stopping: Some(stopping), ..request }
}

fn with_special_tokens(request: GenerateRequest) -> GenerateRequest {
    let response = ResponseOptions { skip_special_tokens: Some(false), ..ResponseOptions::default() };
    GenerateRequest { response: Some(response), ..request }
}

#[tokio::test]
async fn deltas_add_up_to_transformers_text() {
    let engine = engine().await;
    for golden in golden::smollm2().unwrap().prompts {
        if golden.prompt_token_ids.len() > 100 {
            continue;
        }
        let request = with_special_tokens(tokens(&golden.prompt_token_ids, 64));
        let generated = engine.generate(request).await.unwrap();
        assert_eq!(generated.text(), golden.output_text, "{}", golden.name);
        assert!(generated.deltas.len() > 32, "it is streamed: {}", generated.deltas.len());
    }
}

#[tokio::test]
async fn deltas_add_up_to_the_detokenized_output() {
    let engine = engine().await;
    for name in ["plain_short", "chat_numbers", "plain_mixed_scripts"] {
        let golden = golden_prompt(name);
        let generated = engine.generate(tokens(&golden.prompt_token_ids, 64)).await.unwrap();
        assert_eq!(generated.text(), engine.detokenize(&generated.token_ids, true).await.unwrap(), "{name}");
        assert!(!generated.text().contains("<|im_end|>"), "special tokens are left out: {name}");
    }
}

#[tokio::test]
async fn characters_of_several_tokens_come_whole() {
    let engine = engine().await;
    let request = prompt("Emojis: 🥳🎉🎂 🥳🎉🎂 🥳🎉🎂 🥳🎉🎂 🥳🎉🎂 🥳", 48);
    let generated = engine.generate(request).await.unwrap();
    let text = generated.text();
    assert!(text.contains('🎉'), "the prompt does not make the model write emojis any more: {text:?}");
    let (last, earlier) = generated.deltas.split_last().unwrap();
    assert!(!earlier.concat().contains(char::REPLACEMENT_CHARACTER), "{text:?}");
    // The limit on tokens may have cut the last character.
    assert!(!last.trim_end_matches(char::REPLACEMENT_CHARACTER).contains(char::REPLACEMENT_CHARACTER));
    // An emoji is several tokens here, so some messages carry a token and no text yet.
    assert!(generated.deltas.iter().any(String::is_empty), "{:?}", generated.deltas);
    assert_eq!(text, engine.detokenize(&generated.token_ids, true).await.unwrap());
}

#[tokio::test]
async fn a_stop_string_over_token_borders_ends_the_text_before_it() {
    let engine = engine().await;
    let golden = golden_prompt("plain_story");
    // " a wise and kind woman named Elara. …": in the middle of words, and of tokens.
    let text = &golden.output_text;
    let stop = "nd kind wo";
    let before = &text[..text.find(stop).unwrap()];
    let limits = StoppingOptions {
        max_tokens: Some(64),
        stop: vec!["never there".to_owned(), stop.to_owned()],
        ..StoppingOptions::default()
    };
    let generated = engine.generate(stopping(tokens(&golden.prompt_token_ids, 1), limits)).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::StopString);
    assert_eq!(generated.text(), before);
    let found = &generated.token_ids;
    assert_eq!(found[..], golden.output_token_ids[..found.len()]);
    // The token that completed it is the last one.
    let so_far = engine.detokenize(found, true).await.unwrap();
    let one_less = engine.detokenize(&found[..found.len() - 1], true).await.unwrap();
    assert!(so_far.contains(stop) && !one_less.contains(stop), "{so_far:?}");
}

#[tokio::test]
async fn text_that_only_begins_like_a_stop_string_is_not_lost() {
    let engine = engine().await;
    let golden = golden_prompt("plain_story");
    let limits = StoppingOptions {
        max_tokens: Some(12),
        stop: vec!["wise and kind man".to_owned()],
        ..StoppingOptions::default()
    };
    let generated = engine.generate(stopping(tokens(&golden.prompt_token_ids, 1), limits)).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::MaxTokens);
    assert_eq!(generated.text(), engine.detokenize(&golden.output_token_ids[..12], true).await.unwrap());
}

#[tokio::test]
async fn a_stop_token_ends_the_output() {
    let engine = engine().await;
    let golden = golden_prompt("plain_story");
    let stop = golden.output_token_ids[10];
    let first = golden.output_token_ids.iter().position(|&token| token == stop).unwrap();
    let limits =
        StoppingOptions { max_tokens: Some(64), stop_token_ids: vec![stop], ..StoppingOptions::default() };
    let generated = engine.generate(stopping(tokens(&golden.prompt_token_ids, 1), limits)).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::StopToken);
    assert_eq!(generated.token_ids, golden.output_token_ids[..=first]);
    assert_eq!(generated.text(), engine.detokenize(&golden.output_token_ids[..first], true).await.unwrap());
}

#[tokio::test]
async fn the_end_of_the_sequence_ends_the_output_unless_ignored() {
    let engine = engine().await;
    let golden = golden_prompt("plain_short");
    let end = golden.first_eos_step.unwrap();
    let limits = |ignore_eos| StoppingOptions {
        max_tokens: Some(64),
        ignore_eos: Some(ignore_eos),
        ..StoppingOptions::default()
    };
    let request = tokens(&golden.prompt_token_ids, 1);
    let generated = engine.generate(stopping(request.clone(), limits(false))).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::StopToken);
    assert_eq!(generated.token_ids, golden.output_token_ids[..=end]);
    assert_eq!(generated.text(), engine.detokenize(&golden.output_token_ids[..end], true).await.unwrap());

    let ignored = engine.generate(stopping(request, limits(true))).await.unwrap();
    assert_eq!(ignored.finish_reason, FinishReason::MaxTokens);
    assert_eq!(ignored.token_ids, golden.output_token_ids);
}

#[tokio::test]
async fn nothing_stops_before_min_tokens() {
    const AT_LEAST: usize = 40;
    let engine = engine().await;
    let golden = golden_prompt("plain_short");
    let end = golden.first_eos_step.unwrap();
    assert!(end < AT_LEAST);
    let limits = StoppingOptions {
        min_tokens: Some(AT_LEAST as u32),
        max_tokens: Some(64),
        // In the output long before.
        stop: vec!["Paris".to_owned()],
        ..StoppingOptions::default()
    };
    let generated = engine.generate(stopping(tokens(&golden.prompt_token_ids, 1), limits)).await.unwrap();
    let found = &generated.token_ids;
    assert!(found.len() > AT_LEAST, "{}", found.len());
    assert_eq!(found[..end], golden.output_token_ids[..end]);
    assert!(!found[..AT_LEAST].contains(&golden.output_token_ids[end]), "end of sequence before the minimum");
    assert!(generated.text().contains("Paris"));
}

#[tokio::test]
async fn max_tokens_ends_the_output_and_usage_counts_it() {
    let engine = engine().await;
    let golden = golden_prompt("chat_question");
    for count in [1, 5] {
        let request = tokens(&golden.prompt_token_ids, count);
        let request = GenerateRequest { bypass_prefix_cache: Some(true), ..request };
        let generated = engine.generate(request).await.unwrap();
        assert_eq!(generated.finish_reason, FinishReason::MaxTokens);
        assert_eq!(generated.token_ids, golden.output_token_ids[..count as usize]);
        let usage = generated.usage;
        assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.output_tokens), (44, 0, count));
        assert!(generated.timings.prefill_us > 0);
        assert_eq!(generated.timings.decode_us > 0, count > 1);
    }
}

#[tokio::test]
async fn the_end_of_the_cache_ends_the_output() {
    let shared = shared().await.unwrap();
    let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
    let key = shared.compiler.key(request).await.unwrap();
    let engine = shared.executor.engine(&key).await.unwrap();
    let limits = StoppingOptions { ignore_eos: Some(true), ..StoppingOptions::default() };
    let generated = engine.generate(stopping(tokens(&[5; 200], 1), limits)).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::CacheFull);
    // 256 positions, of which the prompt has 200.
    assert_eq!(generated.token_ids.len(), 56);
}

#[tokio::test]
async fn a_request_has_the_name_that_it_was_given_or_one_of_the_server() {
    let engine = engine().await;
    let request = GenerateRequest { request_id: Some("mine".to_owned()), ..tokens(&[1], 2) };
    assert_eq!(engine.generate(request).await.unwrap().request_id, "mine");
    let first = engine.generate(tokens(&[1], 2)).await.unwrap().request_id;
    let second = engine.generate(tokens(&[1], 2)).await.unwrap().request_id;
    assert!(!first.is_empty() && first != second);
}

#[tokio::test]
async fn what_ended_the_output_is_part_of_the_text_where_asked_for() {
    let engine = engine().await;
    let golden = golden_prompt("plain_story");
    let text = &golden.output_text;
    let stop = "nd kind wo";
    let limits = StoppingOptions {
        max_tokens: Some(64),
        stop: vec![stop.to_owned()],
        include_stop_in_output: Some(true),
        ..StoppingOptions::default()
    };
    let request = stopping(tokens(&golden.prompt_token_ids, 1), limits);
    let generated = engine.generate(request).await.unwrap();
    assert_eq!(generated.finish_reason, FinishReason::StopString);
    assert_eq!(generated.text(), text[..text.find(stop).unwrap() + stop.len()]);

    let last = golden.output_token_ids[4];
    let limits = |include| StoppingOptions {
        max_tokens: Some(64),
        stop_token_ids: vec![last],
        include_stop_in_output: Some(include),
        ..StoppingOptions::default()
    };
    let first = golden.output_token_ids.iter().position(|&token| token == last).unwrap();
    for (include, shown) in [(false, first), (true, first + 1)] {
        let request = stopping(tokens(&golden.prompt_token_ids, 1), limits(include));
        let generated = engine.generate(request).await.unwrap();
        assert_eq!(generated.finish_reason, FinishReason::StopToken);
        assert_eq!(generated.token_ids, golden.output_token_ids[..=first]);
        let expected = engine.detokenize(&golden.output_token_ids[..shown], true).await.unwrap();
        assert_eq!(generated.text(), expected, "{include}");
    }
}

#[tokio::test]
async fn a_prompt_comes_back_before_its_output_where_asked_for() {
    let engine = engine().await;
    let response = ResponseOptions { echo: Some(true), ..ResponseOptions::default() };
    let request = GenerateRequest { response: Some(response), ..prompt("Once upon a time", 4) };
    let echoed = engine.generate(request.clone()).await.unwrap();
    let echo = echoed.echo.unwrap();
    assert_eq!(echo.text, "Once upon a time");
    assert_eq!(engine.detokenize(&echo.token_ids, false).await.unwrap(), "Once upon a time");
    let without = engine.generate(GenerateRequest { response: None, ..request }).await.unwrap();
    assert_eq!((without.echo, &without.token_ids), (None, &echoed.token_ids));
    assert_eq!(without.usage.prompt_tokens as usize, echo.token_ids.len());
}

#[tokio::test]
async fn a_truncated_prompt_is_as_if_only_its_end_had_been_sent() {
    let engine = engine().await;
    let golden = golden_prompt("plain_story");
    let tokens_of_prompt = &golden.prompt_token_ids;
    let kept = &tokens_of_prompt[tokens_of_prompt.len() - 3..];
    let expected = engine.generate(tokens(kept, 8)).await.unwrap();
    for (limit, expected) in [(3, &expected.token_ids[..]), (100_000, &golden.output_token_ids[..8])] {
        let request = GenerateRequest { truncate_prompt_tokens: Some(limit), ..tokens(tokens_of_prompt, 8) };
        let generated = engine.generate(request).await.unwrap();
        assert_eq!(generated.token_ids, expected);
        assert_eq!(generated.usage.prompt_tokens, limit.min(tokens_of_prompt.len() as u32));
    }
    // One that would not fit, but for this.
    let request = GenerateRequest { truncate_prompt_tokens: Some(2), ..tokens(&[1; 3000], 1) };
    assert_eq!(engine.generate(request).await.unwrap().usage.prompt_tokens, 2);
    let request = GenerateRequest { truncate_prompt_tokens: Some(0), ..tokens(&[1], 1) };
    let status = engine.generate(request).await.unwrap_err();
    assert_eq!(roundhouse_tests::harness::field(&status), "truncate_prompt_tokens");
}
