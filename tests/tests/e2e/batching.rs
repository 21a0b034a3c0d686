//! Generations that run together give what each gives alone, and none of them waits for another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_executor::ExecutorConfig;
use roundhouse_proto::compiler::{CompileEngineRequest, CompileOptions};
use roundhouse_proto::executor::GenerateRequest;
use roundhouse_tests::golden;
use roundhouse_tests::harness::{
    Executor, Generated, LoadedEngine, eventually, shared, smollm2_request, tiny_llama_request, tokens,
};

async fn smollm2_alone(change: impl FnOnce(&mut ExecutorConfig)) -> (Executor, LoadedEngine) {
    let shared = shared().await.unwrap();
    let request = smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap();
    let key = shared.compiler.key(request).await.unwrap();
    let executor = shared.executor_alone(change).await.unwrap();
    let engine = executor.engine(&key).await.unwrap();
    (executor, engine)
}

#[tokio::test]
async fn concurrent_generations_give_the_tokens_that_each_gives_alone() {
    const STEPS: u32 = 24;
    let golden = golden::smollm2().unwrap();
    // Of very different lengths, so that the batch is ragged and they begin to decode at different times.
    let prompts: Vec<_> = golden.prompts.iter().step_by(2).map(|prompt| &prompt.prompt_token_ids).collect();
    let (executor, engine) = smollm2_alone(|_| {}).await;
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.push(engine.generate(tokens(prompt, STEPS)).await.unwrap().token_ids);
    }
    let together = join_all(prompts.iter().map(|prompt| engine.generate(tokens(prompt, STEPS))));
    let most_running = eventually("several generations in one step", async || {
        let running = executor.get_load().await?.running;
        Ok((running > 1).then_some(running))
    });
    let (together, most_running) = futures::join!(together, most_running);
    most_running.unwrap();
    let together: Vec<_> = together.into_iter().map(|generated| generated.unwrap().token_ids).collect();
    assert_eq!(together, alone);
}

#[tokio::test]
async fn a_long_prompt_does_not_stop_running_streams() {
    const STREAMS: usize = 3;
    /// Tokens that each stream gets while the prompt is read: it takes more steps than that.
    const PROGRESS: usize = 8;
    let golden = golden::smollm2().unwrap();
    let (_executor, engine) = smollm2_alone(|config| config.step_token_budget = 64).await;
    let counts: [Arc<AtomicUsize>; STREAMS] = Default::default();
    let mut readers = Vec::new();
    for (index, count) in counts.iter().enumerate() {
        let request = GenerateRequest {
            request_id: Some(format!("running-{index}")),
            ..tokens(&golden.prompts[index].prompt_token_ids, 1500)
        };
        let mut stream = engine.stream(request).await.unwrap();
        let first = stream.message().await.unwrap().unwrap();
        let count = Arc::clone(count);
        readers.push(tokio::spawn(async move {
            let mut messages = vec![first];
            while let Some(message) = stream.message().await.unwrap() {
                count.fetch_add(message.token_ids.len(), Ordering::Relaxed);
                messages.push(message);
            }
            Generated::read_after(messages, &mut stream).await.unwrap()
        }));
    }
    let so_far = || counts.each_ref().map(|count| count.load(Ordering::Relaxed));

    let long = golden.prompts.iter().max_by_key(|prompt| prompt.prompt_token_ids.len()).unwrap();
    let mut stream = engine.stream(tokens(&long.prompt_token_ids, 4)).await.unwrap();
    let submitted = so_far();
    let first = stream.message().await.unwrap().unwrap();
    let answered = so_far();
    for (before, after) in submitted.into_iter().zip(answered) {
        assert!(after >= before + PROGRESS, "{submitted:?} {answered:?}");
    }
    let generated = Generated::read_after(vec![first], &mut stream).await.unwrap();
    assert_eq!(generated.token_ids, long.output_token_ids[..4]);
    for (index, reader) in readers.into_iter().enumerate() {
        engine.executor.cancel(&format!("running-{index}")).await.unwrap();
        let generated = reader.await.unwrap();
        let expected = &golden.prompts[index].output_token_ids;
        let common = generated.token_ids.len().min(expected.len());
        assert_eq!(generated.token_ids[..common], expected[..common]);
    }
}

#[tokio::test]
async fn more_generations_than_places_take_turns() {
    const PLACES: u32 = 2;
    const GENERATIONS: u32 = 7;
    let shared = shared().await.unwrap();
    let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
    let options = CompileOptions { max_batch_size: Some(PLACES), ..request.options.unwrap() };
    let request = CompileEngineRequest { options: Some(options), ..request };
    let key = shared.compiler.key(request).await.unwrap();
    let executor = shared.executor_alone(|_| {}).await.unwrap();
    let engine = executor.engine(&key).await.unwrap();
    let prompt = |index: u32| [10 + index, 20, 30 + index];
    let mut alone = Vec::new();
    for index in 0..GENERATIONS {
        alone.push(engine.generate(tokens(&prompt(index), 100)).await.unwrap().token_ids);
    }
    let generate = |index| {
        let engine = &engine;
        async move { engine.generate(tokens(&prompt(index), 100)).await.unwrap().token_ids }
    };
    assert_eq!(join_all((0..GENERATIONS).map(generate)).await, alone);
    executor.becomes_idle().await.unwrap();
}
