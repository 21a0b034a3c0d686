//! Sessions of models with sliding windows: the caches of such layers stop growing, and a session that goes back beyond
//! what they hold computes its history again.

use std::fs;
use std::path::Path;

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::CompileOptions;
use roundhouse_proto::executor::{CreateSessionRequest, GenerateRequest, GetSessionRequest, Session};
use roundhouse_tests::golden::Message;
use roundhouse_tests::harness::{
    Executor, LoadedEngine, chat, compile_options, compile_request, shared, tokens,
};
use serde_json::{Value, json};

const MAX_SEQ_LEN: u32 = 2048;
/// Tokens that a sliding layer of the model holds: its window, and the new tokens of a step but one.
const HELD: u64 = 16 + 512 - 1;

/// A tiny Gemma 3, of three layers of which one is full, that is told to take long sequences.
async fn long_gemma(executor: &Executor) -> LoadedEngine {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tiny-gemma-3");
    for entry in fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(MAX_SEQ_LEN);
    fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let options = CompileOptions {
        max_seq_len: Some(MAX_SEQ_LEN),
        ..compile_options(Precision::Fp32, CacheKind::InPlace)
    };
    let request = compile_request(folder.path(), options);
    let key = shared().await.unwrap().compiler.key(request).await.unwrap();
    executor.engine(&key).await.unwrap()
}

async fn create(engine: &LoadedEngine, max_seq_len: u32) -> Session {
    let request = CreateSessionRequest {
        engine: Some(engine.key.clone()),
        max_seq_len: Some(max_seq_len),
        ..CreateSessionRequest::default()
    };
    engine.executor.client.clone().create_session(request).await.unwrap().into_inner()
}

fn in_session(session: &Session, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { session_id: Some(session.id.clone()), ..request }
}

/// Tokens of the vocabulary beside the special ones, in no order that repeats soon.
fn some_tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|index| 3 + index.wrapping_mul(2_654_435_761) % 280).collect()
}

#[tokio::test]
async fn the_memory_of_a_session_stops_growing_with_its_sliding_layers() {
    let executor = shared().await.unwrap().executor_alone(|_| {}).await.unwrap();
    let engine = long_gemma(&executor).await;
    let per_token = executor.load(&engine.key).await.unwrap().engine.unwrap().kv_bytes_per_token;
    let mut used = 0;
    for length in [100, 527, 528, 2000] {
        let session = create(&engine, length).await;
        let prompt = some_tokens(length as usize - 1);
        engine.generate(in_session(&session, tokens(&prompt, 1))).await.unwrap();
        let request = GetSessionRequest { session_id: session.id };
        let held = executor.client.clone().get_session(request).await.unwrap().into_inner().kv_bytes;
        let (all, sliding) = (u64::from(length), u64::from(length).min(HELD));
        assert_eq!(held, per_token / 3 * (all + 2 * sliding), "{length}");
        used += held;
        assert_eq!(executor.get_load().await.unwrap().kv_bytes_used, used, "{length}");
    }
}

#[tokio::test]
async fn turns_that_outgrow_the_window_answer_as_to_everything_at_once() {
    let executor =
        shared().await.unwrap().executor_alone(|config| config.prefix_cache_bytes = 0).await.unwrap();
    let engine = long_gemma(&executor).await;
    let session = create(&engine, MAX_SEQ_LEN).await;
    let mut history = Vec::new();
    for (turn, length) in [400, 3, 700, 1, 250].into_iter().enumerate() {
        let prompt = &some_tokens(2000)[history.len()..][..length];
        let cached = history.len().saturating_sub(1);
        history.extend_from_slice(prompt);
        let answer = engine.generate(in_session(&session, tokens(prompt, 8))).await.unwrap();
        assert_eq!(answer.usage.cached_tokens as usize, cached, "turn {turn}");
        let at_once = engine.generate(tokens(&history, 8)).await.unwrap();
        assert_eq!(answer.token_ids, at_once.token_ids, "turn {turn}");
        history.extend(&answer.token_ids);
    }
}

#[tokio::test]
async fn a_turn_that_goes_back_beyond_the_window_computes_its_history_again() {
    let executor =
        shared().await.unwrap().executor_alone(|config| config.prefix_cache_bytes = 0).await.unwrap();
    let engine = long_gemma(&executor).await;
    let content = some_tokens(300).iter().map(|token| format!("{token} ")).collect::<String>();
    let messages = [Message { role: "user".to_owned(), content }];
    let at_once = engine.generate(chat(&messages, 8)).await.unwrap();
    assert!(u64::from(at_once.usage.prompt_tokens) > HELD, "{:?}", at_once.usage);
    // The conversation's first token, and then so many others that have to go again. Few enough, the first one's keys are
    // still there.
    for (others, cached) in [(300, 1), (1500, 0)] {
        let session = create(&engine, MAX_SEQ_LEN).await;
        let history = [&[0], &some_tokens(others)[..]].concat();
        engine.generate(in_session(&session, tokens(&history, 1))).await.unwrap();
        let answer = engine.generate(in_session(&session, chat(&messages, 8))).await.unwrap();
        assert_eq!(answer.usage.prompt_tokens, at_once.usage.prompt_tokens, "{others}");
        assert_eq!(answer.usage.cached_tokens, cached, "{others}");
        assert_eq!(answer.token_ids, at_once.token_ids, "{others}");
    }
}
