//! Greedy tokens and log-probabilities of SmolLM2-135M-Instruct are Transformers', in every cache and precision, from
//! tokens, text and messages.

use futures::future::join_all;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::executor::{
    ChatMessage, ChatMessages, GenerateRequest, ResponseOptions, TokenizeRequest, tokenize_request,
};
use roundhouse_tests::golden::{self, GoldenPrompt, Message};
use roundhouse_tests::greedy::GreedyCheck;
use roundhouse_tests::harness::{LoadedEngine, chat, prompt, smollm2, tokens};

/// The largest error of one of a step's first logits in fp16: what Transformers' own fp16 differs from its fp32 by, over
/// the five largest logits of all golden steps.
const FP16_ERROR: f32 = 0.11;
/// The same in bf16.
const BF16_ERROR: f32 = 0.9;
/// Tokens that are generated where each takes long.
const FEW_TOKENS: usize = 24;
/// Both sides compute in fp32, in another order; logits are of the order of 10 and sums have up to 1,536 terms.
const LOGPROB_ERROR: f32 = 1e-3;

/// What is generated in a cache. The one that engines have by default: all golden prompts, to their end. The others run one
/// sequence after the other, over all positions that there are, and without a cache over all tokens again: the shortest
/// prompt and the longest, or the two shortest, and fewer tokens.
fn prompts(cache: CacheKind) -> Vec<GoldenPrompt> {
    let mut prompts = golden::smollm2().unwrap().prompts.clone();
    if cache == CacheKind::InPlace {
        return prompts;
    }
    prompts.sort_by_key(|prompt| prompt.prompt_token_ids.len());
    if cache == CacheKind::None {
        prompts.truncate(2);
    } else {
        prompts.drain(1..prompts.len() - 1);
    }
    for prompt in &mut prompts {
        prompt.output_token_ids.truncate(FEW_TOKENS);
        prompt.margins.truncate(FEW_TOKENS);
    }
    prompts
}

/// Golden prompts at once give Transformers' tokens.
async fn tokens_are_equal(cache: CacheKind) {
    let prompts = prompts(cache);
    let engine = smollm2(Precision::Fp32, cache).await.unwrap();
    let generate = |prompt: &GoldenPrompt| {
        let steps = u32::try_from(prompt.output_token_ids.len()).unwrap();
        engine.generate(tokens(&prompt.prompt_token_ids, steps))
    };
    let generated = join_all(prompts.iter().map(generate)).await;
    for (prompt, generated) in prompts.iter().zip(generated) {
        let generated = generated.unwrap();
        assert_eq!(generated.token_ids, prompt.output_token_ids, "{cache} {}", prompt.name);
        assert_eq!(generated.usage.prompt_tokens as usize, prompt.prompt_token_ids.len(), "{}", prompt.name);
    }
}

#[tokio::test]
async fn fp32_without_a_cache_gives_transformers_tokens() {
    tokens_are_equal(CacheKind::None).await;
}

#[tokio::test]
async fn fp32_static_v1_gives_transformers_tokens() {
    tokens_are_equal(CacheKind::StaticV1).await;
}

#[tokio::test]
async fn fp32_static_v2_gives_transformers_tokens() {
    tokens_are_equal(CacheKind::StaticV2).await;
}

#[tokio::test]
async fn fp32_in_place_gives_transformers_tokens() {
    tokens_are_equal(CacheKind::InPlace).await;
}

/// Golden prompts give Transformers' fp32 tokens wherever an error of `bound` in a logit cannot change the choice.
/// `required` is how many steps that has to be at least, over all prompts: the check is void where nothing is required.
async fn tokens_keep_the_margin_rule(precision: Precision, cache: CacheKind, bound: f32, required: usize) {
    let prompts = prompts(cache);
    let engine = smollm2(precision, cache).await.unwrap();
    let reports = join_all(prompts.iter().map(|prompt| check(&engine, prompt, bound))).await;
    let checked: usize = reports.iter().sum();
    assert!(checked >= required, "only {checked} steps had to be equal");
}

/// Generates, from the reference's tokens again after each allowed divergence. Returns the number of steps at which the
/// reference's token was required.
async fn check(engine: &LoadedEngine, prompt: &GoldenPrompt, bound: f32) -> usize {
    let mut check =
        GreedyCheck::new(&prompt.prompt_token_ids, &prompt.output_token_ids, &prompt.margins, bound).unwrap();
    while let Some((so_far, steps)) = check.next_run() {
        let generated = engine.generate(tokens(&so_far, u32::try_from(steps).unwrap())).await.unwrap();
        let observed = check.observe(&generated.token_ids);
        assert!(observed.is_ok(), "{}: {observed:?}", prompt.name);
    }
    check.report().required
}

#[tokio::test]
async fn fp16_in_place_gives_transformers_tokens_where_margins_allow() {
    tokens_keep_the_margin_rule(Precision::Fp16, CacheKind::InPlace, FP16_ERROR, 600).await;
}

#[tokio::test]
async fn fp16_static_v2_gives_transformers_tokens_where_margins_allow() {
    tokens_keep_the_margin_rule(Precision::Fp16, CacheKind::StaticV2, FP16_ERROR, 40).await;
}

#[tokio::test]
async fn bf16_in_place_gives_transformers_tokens_where_margins_allow() {
    tokens_keep_the_margin_rule(Precision::Bf16, CacheKind::InPlace, BF16_ERROR, 300).await;
}

#[tokio::test]
async fn bf16_static_v2_gives_transformers_tokens_where_margins_allow() {
    tokens_keep_the_margin_rule(Precision::Bf16, CacheKind::StaticV2, BF16_ERROR, 10).await;
}

#[tokio::test]
async fn log_probabilities_are_transformers() {
    let golden = golden::smollm2().unwrap();
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let generate = |prompt: &GoldenPrompt| {
        let response = ResponseOptions { logprobs: Some(golden::TOP as u32), ..ResponseOptions::default() };
        engine.generate(GenerateRequest { response: Some(response), ..tokens(&prompt.prompt_token_ids, 64) })
    };
    let generated = join_all(golden.prompts.iter().map(generate)).await;
    for (prompt, generated) in golden.prompts.iter().zip(generated) {
        let generated = generated.unwrap();
        assert_eq!(generated.logprobs.len(), prompt.output_token_ids.len());
        for (step, found) in generated.logprobs.iter().enumerate() {
            let expected = prompt.top_logits[step].map(|logit| logit - prompt.log_sum_exp[step]);
            let case = format!("{} step {step}", prompt.name);
            assert!((found.logprob - expected[0]).abs() <= LOGPROB_ERROR, "{case}: {found:?} {expected:?}");
            assert_eq!(found.top.len(), golden::TOP, "{case}");
            // The chosen token is the most probable one: generation is greedy.
            assert_eq!(found.top[0].token_id, generated.token_ids[step], "{case}");
            assert_eq!(found.top[0].logprob, found.logprob, "{case}");
            for (top, expected) in found.top.iter().zip(expected) {
                assert!((top.logprob - expected).abs() <= LOGPROB_ERROR, "{case}: {found:?} {expected}");
            }
        }
    }
}

#[tokio::test]
async fn templates_and_tokenizer_give_transformers_prompt_tokens() {
    let golden = golden::smollm2().unwrap();
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    for golden_prompt in &golden.prompts {
        let text = tokenize_request::Input::Prompt(golden_prompt.text.clone());
        let inputs = golden_prompt.messages.as_deref().map(messages).into_iter().chain([text]);
        for input in inputs {
            let request = TokenizeRequest {
                engine: Some(engine.key.clone()),
                input: Some(input.clone()),
                add_special_tokens: None,
            };
            let tokenized = engine.executor.client.clone().tokenize(request).await.unwrap().into_inner();
            assert_eq!(tokenized.token_ids, golden_prompt.prompt_token_ids, "{input:?}");
        }
    }
}

#[tokio::test]
async fn text_and_messages_generate_what_their_tokens_generate() {
    const STEPS: usize = 8;
    let golden = golden::smollm2().unwrap();
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let short = golden.prompts.iter().filter(|prompt| prompt.prompt_token_ids.len() < 100);
    let requests = short.flat_map(|golden_prompt| {
        let from_messages = golden_prompt.messages.as_deref().map(|messages| chat(messages, STEPS as u32));
        let from_text = prompt(&golden_prompt.text, STEPS as u32);
        [Some(from_text), from_messages].into_iter().flatten().map(move |request| (golden_prompt, request))
    });
    let generate = |(golden_prompt, request): (_, GenerateRequest)| {
        let engine = &engine;
        async move { (golden_prompt, engine.generate(request).await.unwrap()) }
    };
    let generated: Vec<(&GoldenPrompt, _)> = join_all(requests.map(generate)).await;
    assert!(generated.len() > golden.prompts.len());
    for (golden_prompt, generated) in generated {
        assert_eq!(generated.token_ids, golden_prompt.output_token_ids[..STEPS], "{}", golden_prompt.name);
        assert_eq!(generated.usage.prompt_tokens as usize, golden_prompt.prompt_token_ids.len());
    }
}

fn messages(messages: &[Message]) -> tokenize_request::Input {
    let messages = messages
        .iter()
        .map(|message| ChatMessage {
            role: message.role.clone(),
            content: message.content.clone(),
            ..ChatMessage::default()
        })
        .collect();
    tokenize_request::Input::Messages(ChatMessages { messages, add_generation_prompt: None })
}
