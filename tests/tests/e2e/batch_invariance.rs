//! On the CPU in fp32 a request gives the same tokens and log-probabilities, to the last bit, alone and in any batch,
//! however its prompt is cut into chunks.

use futures::future::join_all;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::{Backend, CompileEngineRequest, CompileOptions};
use roundhouse_proto::executor::{GenerateRequest, ResponseOptions, SamplingOptions, TokenLogprobs};
use roundhouse_tests::golden;
use roundhouse_tests::harness::{
    LoadedEngine, Shared, compile_options, compile_request, eventually, shared, smollm2_request, tokens,
};
use roundhouse_tests::support::{Cell, cells};

/// New tokens of a step: prompts whole, in chunks of any lengths, and token by token.
const STEP_TOKEN_BUDGETS: [usize; 3] = [512, 37, 4];

/// What must not depend on the others.
type Outcome = (Vec<u32>, Vec<TokenLogprobs>);

fn with_logprobs(request: GenerateRequest, seed: u64) -> GenerateRequest {
    // Every second one is sampled: its tokens then depend on all bits of the logits, and not on the largest alone.
    let temperature = if seed % 2 == 0 { 0.0 } else { 1.0 };
    let sampling = SamplingOptions {
        temperature: Some(temperature),
        seed: Some(seed),
        repetition_penalty: Some(1.1),
        ..SamplingOptions::default()
    };
    let response = ResponseOptions { logprobs: Some(5), ..ResponseOptions::default() };
    GenerateRequest { sampling: Some(sampling), response: Some(response), ..request }
}

async fn generate(engine: &LoadedEngine, request: GenerateRequest) -> Outcome {
    let generated = engine.generate(request).await.unwrap();
    (generated.token_ids, generated.logprobs)
}

/// Runs requests alone in one executor, and together in others with chunks of other lengths.
async fn check(shared: &Shared, what: &str, compilation: CompileEngineRequest, requests: &[GenerateRequest]) {
    let key = shared.compiler.key(compilation).await.unwrap();
    let executor = shared.executor_alone(|_| {}).await.unwrap();
    let engine = executor.engine(&key).await.unwrap();
    let mut alone = Vec::new();
    for request in requests {
        alone.push(generate(&engine, request.clone()).await);
    }
    for budget in STEP_TOKEN_BUDGETS {
        let executor = shared.executor_alone(|config| config.step_token_budget = budget).await.unwrap();
        let engine = executor.engine(&key).await.unwrap();
        let together = join_all(requests.iter().map(|request| generate(&engine, request.clone())));
        let several = eventually("several generations in one step", async || {
            Ok((executor.get_load().await?.running > 1).then_some(()))
        });
        let (together, several) = futures::join!(together, several);
        several.unwrap();
        for (index, (together, alone)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(together, alone, "{what}: request {index}, {budget} tokens a step");
        }
    }
}

#[tokio::test]
async fn a_real_models_logits_do_not_depend_on_the_batch() {
    const STEPS: u32 = 12;
    let shared = shared().await.unwrap();
    let golden = golden::smollm2().unwrap();
    let requests: Vec<GenerateRequest> = golden
        .prompts
        .iter()
        .filter(|prompt| prompt.prompt_token_ids.len() < 300)
        .zip(0..)
        .map(|(prompt, seed)| with_logprobs(tokens(&prompt.prompt_token_ids, STEPS), seed))
        .collect();
    assert!(requests.len() > 4);
    let compilation = smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap();
    check(&shared, "SmolLM2", compilation, &requests).await;
}

#[tokio::test]
async fn the_logits_of_every_family_do_not_depend_on_the_batch() {
    let shared = shared().await.unwrap();
    for Cell { golden, precision, cache } in cells(&shared, Backend::Cpu, &[Precision::Fp32]).await.unwrap() {
        if cache != CacheKind::InPlace {
            continue;
        }
        // Prompts of the golden cases and parts of them, so that the batch is ragged.
        let mut prompts: Vec<&[u32]> = Vec::new();
        for case in &golden.cases {
            let prompt = &case.prompt_token_ids[..];
            prompts.extend([
                prompt,
                &prompt[..prompt.len().div_ceil(2)],
                &prompt[..prompt.len().div_ceil(5)],
            ]);
        }
        let room = golden.max_seq_len.map_or(usize::MAX, |tokens| tokens as usize - 1);
        let requests: Vec<GenerateRequest> = prompts
            .into_iter()
            .zip(0..)
            .map(|(prompt, seed)| {
                let prompt = &prompt[..prompt.len().min(room)];
                let steps = (room + 1 - prompt.len()).min(40) as u32;
                with_logprobs(tokens(prompt, steps), seed)
            })
            .collect();
        let options = CompileOptions { max_seq_len: golden.max_seq_len, ..compile_options(precision, cache) };
        let what = golden.checkpoint.display().to_string();
        check(&shared, &what, compile_request(&golden.checkpoint, options), &requests).await;
    }
}
