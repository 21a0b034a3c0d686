//! Greedy tokens of Gemma 3 270M, a GGUF file of mixed 4- to 8-bit formats, are Transformers' in fp32, also past its
//! window.

use futures::future::join_all;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::CompileOptions;
use roundhouse_proto::executor::{TokenizeRequest, tokenize_request};
use roundhouse_tests::golden::{self, GoldenPrompt};
use roundhouse_tests::greedy::GreedyCheck;
use roundhouse_tests::harness::{compile_options, compile_request, shared, tokens};

/// Both sides compute in fp32, in another order; logits are up to some 30.
const FP32_ERROR: f32 = 1e-3;

/// The longest golden prompt and its output.
const MAX_SEQ_LEN: u32 = 1408;

/// One test for both: its weights are a gigabyte in fp32, which is written and loaded once.
#[tokio::test]
async fn prompt_tokens_and_greedy_tokens_are_transformers() {
    let golden = golden::gemma3().unwrap();
    let shared = shared().await.unwrap();
    let options = CompileOptions {
        max_seq_len: Some(MAX_SEQ_LEN),
        ..compile_options(Precision::Fp32, CacheKind::InPlace)
    };
    let request = compile_request(&golden.checkpoint().unwrap(), options);
    let key = shared.compiler.key(request).await.unwrap();
    let engine = shared.executor.engine(&key).await.unwrap();
    for prompt in &golden.prompts {
        let request = TokenizeRequest {
            engine: Some(key.clone()),
            input: Some(tokenize_request::Input::Prompt(prompt.text.clone())),
            add_special_tokens: None,
        };
        let tokenized = engine.executor.client.clone().tokenize(request).await.unwrap().into_inner();
        assert_eq!(tokenized.token_ids, prompt.prompt_token_ids, "{}", prompt.name);
    }
    let window = 512;
    assert!(golden.prompts.iter().any(|prompt| prompt.prompt_token_ids.len() > 2 * window));
    let check = async |prompt: &GoldenPrompt| {
        let (ids, output) = (&prompt.prompt_token_ids, &prompt.output_token_ids);
        let mut check = GreedyCheck::new(ids, output, &prompt.margins, FP32_ERROR).unwrap();
        while let Some((so_far, steps)) = check.next_run() {
            let generated = engine.generate(tokens(&so_far, u32::try_from(steps).unwrap())).await.unwrap();
            let observed = check.observe(&generated.token_ids);
            assert!(observed.is_ok(), "{}: {observed:?}", prompt.name);
        }
        check.report().required
    };
    let required: usize = join_all(golden.prompts.iter().map(check)).await.into_iter().sum();
    // No margin of the golden file is as small as the error: every token had to be equal.
    assert_eq!(required, 8 * 64);
}
