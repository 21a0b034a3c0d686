//! Guessed tokens change nothing but the number of steps.

use futures::future::join_all;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::CompileOptions;
use roundhouse_proto::executor::generate_request::Guided;
use roundhouse_proto::executor::speculative::Method;
use roundhouse_proto::executor::{
    CreateSessionRequest, FinishReason, GenerateRequest, PromptLookup, ResponseOptions, SamplingOptions,
    Speculative, StoppingOptions,
};
use roundhouse_tests::golden;
use roundhouse_tests::harness::{
    Generated, LoadedEngine, compile_options, compile_request, field, prompt, shared, smollm2, tokens,
};
use tonic::Code;

/// A text that goes on as it was before, so that guesses are right.
const REPETITIVE: &str =
    "one two three four five six seven, one two three four five six seven, one two three";

async fn engine() -> LoadedEngine {
    smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap()
}

fn lookup(max_ngram: u32, num_draft_tokens: u32) -> Option<Speculative> {
    let lookup = PromptLookup { max_ngram: Some(max_ngram), num_draft_tokens: Some(num_draft_tokens) };
    Some(Speculative { method: Some(Method::PromptLookup(lookup)) })
}

fn with_logprobs(request: GenerateRequest) -> GenerateRequest {
    let response = ResponseOptions { logprobs: Some(3), ..ResponseOptions::default() };
    GenerateRequest { response: Some(response), ..request }
}

fn sampled(request: GenerateRequest, seed: u64) -> GenerateRequest {
    let sampling = SamplingOptions {
        temperature: Some(0.8),
        repetition_penalty: Some(1.05),
        seed: Some(seed),
        ..SamplingOptions::default()
    };
    GenerateRequest { sampling: Some(sampling), ..request }
}

/// Checks that a request gives the same with guesses as without, and how many of them were right.
async fn check(
    engine: &LoadedEngine,
    request: &GenerateRequest,
    speculative: Option<Speculative>,
) -> (u32, u32) {
    let without = engine.generate(request.clone()).await.unwrap();
    let with = engine.generate(GenerateRequest { speculative, ..request.clone() }).await.unwrap();
    assert_same(&with, &without);
    assert_eq!((without.usage.draft_tokens, without.usage.accepted_draft_tokens), (0, 0));
    let (drafted, accepted) = (with.usage.draft_tokens, with.usage.accepted_draft_tokens);
    assert!(accepted <= drafted);
    // A step makes one token and one more for each right guess.
    assert!(with.deltas.len() as u32 + accepted >= with.usage.output_tokens, "{:?}", with.usage);
    (drafted, accepted)
}

fn assert_same(with: &Generated, without: &Generated) {
    assert_eq!(with.token_ids, without.token_ids);
    assert_eq!(with.logprobs, without.logprobs);
    assert_eq!((with.text(), with.finish_reason), (without.text(), without.finish_reason));
}

#[tokio::test]
async fn guesses_change_no_token_and_no_log_probability() {
    let engine = engine().await;
    let repetitive = with_logprobs(prompt(REPETITIVE, 48));
    for (max_ngram, num_draft_tokens) in [(1, 1), (3, 5), (16, 16)] {
        let (drafted, accepted) = check(&engine, &repetitive, lookup(max_ngram, num_draft_tokens)).await;
        assert!(accepted >= 5, "{accepted} of {drafted} guesses were right");
    }
    let seeded = sampled(repetitive, 5);
    check(&engine, &seeded, lookup(2, 6)).await;
    let golden = golden::smollm2().unwrap();
    let short = golden.prompts.iter().filter(|prompt| prompt.prompt_token_ids.len() < 300);
    for golden in short.take(3) {
        let request = with_logprobs(tokens(&golden.prompt_token_ids, 24));
        check(&engine, &request, lookup(2, 4)).await;
        assert_eq!(engine.generate(request).await.unwrap().token_ids, golden.output_token_ids[..24]);
    }
}

#[tokio::test]
async fn guesses_hold_beside_other_requests_and_in_every_ending() {
    let engine = engine().await;
    let repetitive = prompt(REPETITIVE, 40);
    let stopped =
        |stopping: StoppingOptions| GenerateRequest { stopping: Some(stopping), ..repetitive.clone() };
    let requests = [
        repetitive.clone(),
        sampled(repetitive.clone(), 9),
        stopped(StoppingOptions { max_tokens: Some(17), ignore_eos: Some(true), ..Default::default() }),
        stopped(StoppingOptions {
            max_tokens: Some(40),
            stop: vec!["six se".to_owned()],
            ..Default::default()
        }),
        GenerateRequest {
            guided: Some(Guided::Regex("( [a-z]+,?){12}".to_owned())),
            ..stopped(StoppingOptions { max_tokens: Some(60), ..Default::default() })
        },
    ];
    let mut alone = Vec::new();
    for request in &requests {
        alone.push(engine.generate(request.clone()).await.unwrap());
    }
    assert_eq!(alone[3].finish_reason, FinishReason::StopString);
    let running = requests.iter().flat_map(|request| {
        [GenerateRequest { speculative: lookup(3, 7), ..request.clone() }, request.clone()]
    });
    let together = join_all(running.map(|request| engine.generate(request))).await;
    for (index, generated) in together.into_iter().enumerate() {
        assert_same(&generated.unwrap(), &alone[index / 2]);
    }
}

#[tokio::test]
async fn a_session_goes_on_as_if_nothing_had_been_guessed() {
    let engine = engine().await;
    let mut turns = Vec::new();
    for speculative in [None, lookup(3, 8)] {
        let create =
            CreateSessionRequest { engine: Some(engine.key.clone()), ..CreateSessionRequest::default() };
        let session = engine.executor.client.clone().create_session(create).await.unwrap().into_inner();
        let mut texts = Vec::new();
        for text in [REPETITIVE, " and again: one two"] {
            let request = GenerateRequest {
                session_id: Some(session.id.clone()),
                bypass_prefix_cache: Some(true),
                speculative,
                ..prompt(text, 21)
            };
            let generated = engine.generate(request).await.unwrap();
            texts.push((generated.token_ids, generated.usage.prompt_tokens, generated.usage.cached_tokens));
        }
        turns.push(texts);
    }
    assert_eq!(turns[0], turns[1]);
}

#[tokio::test]
async fn layers_that_keep_their_latest_tokens_forget_wrong_guesses() {
    let shared = shared().await.unwrap();
    for golden in golden::tiny_models_of("Gemma3ForCausalLM").unwrap() {
        let options = CompileOptions {
            max_seq_len: golden.max_seq_len,
            ..compile_options(Precision::Fp32, CacheKind::InPlace)
        };
        let key = shared.compiler.key(compile_request(&golden.checkpoint, options)).await.unwrap();
        let engine = shared.executor.engine(&key).await.unwrap();
        for case in &golden.cases {
            let steps = case.output_token_ids.len() as u32;
            // Of one token, so that there are guesses, most of them wrong.
            let request = with_logprobs(tokens(&case.prompt_token_ids, steps));
            check(&engine, &request, lookup(1, 6)).await;
        }
    }
}

#[tokio::test]
async fn what_cannot_be_guessed_is_refused() {
    let engine = engine().await;
    for (speculative, name) in [
        (lookup(0, 5), "speculative.prompt_lookup.max_ngram"),
        (lookup(17, 5), "speculative.prompt_lookup.max_ngram"),
        (lookup(3, 0), "speculative.prompt_lookup.num_draft_tokens"),
        (lookup(3, 17), "speculative.prompt_lookup.num_draft_tokens"),
    ] {
        let status = engine.stream(GenerateRequest { speculative, ..tokens(&[1], 1) }).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, name));
    }
    let copied = smollm2(Precision::Fp32, CacheKind::StaticV2).await.unwrap();
    let request = GenerateRequest { speculative: lookup(3, 5), ..tokens(&[1], 1) };
    let status = copied.stream(request).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "speculative"));
}
