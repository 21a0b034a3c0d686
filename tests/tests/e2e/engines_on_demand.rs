//! Many engines in one executor: loaded by the requests that name them, and unloaded for one another when idle.

use futures::future::join_all;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::{CompileEngineRequest, CompileOptions};
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{CreateSessionRequest, GenerateRequest, ListEnginesRequest};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::harness::{Compiler, Executor, eventually, reason, tiny_llama_request, tokens};
use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A compiler with an empty store, and its folder.
async fn compiler() -> (Compiler, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Compiler::start(folder.path()).await.unwrap(), folder)
}

/// Engines of one model, as many as there are lengths.
fn request(max_seq_len: u32) -> CompileEngineRequest {
    let request = tiny_llama_request("tiny-llama-3.1", Precision::Fp32, CacheKind::InPlace);
    let options = CompileOptions { max_seq_len: Some(max_seq_len), ..request.options.unwrap() };
    CompileEngineRequest { options: Some(options), ..request }
}

async fn loaded(executor: &Executor) -> Vec<String> {
    let engines = executor.client.clone().list_engines(ListEnginesRequest {}).await.unwrap().into_inner();
    engines.engines.into_iter().map(|engine| engine.engine_key).collect()
}

fn of(engine: &str, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { engine: Some(engine.to_owned()), ..request }
}

async fn in_session(executor: &Executor, session: &str, prompt: &[u32]) -> Vec<u32> {
    let request = GenerateRequest { session_id: Some(session.to_owned()), ..tokens(prompt, 8) };
    executor.generate(request).await.unwrap().token_ids
}

async fn session(executor: &Executor, engine: &str) -> String {
    let request = CreateSessionRequest { engine: Some(engine.to_owned()), ..CreateSessionRequest::default() };
    executor.client.clone().create_session(request).await.unwrap().into_inner().id
}

fn assert_status(status: &Status, code: Code, expected: &str) {
    assert_eq!((status.code(), reason(status).as_str()), (code, expected), "{status:?}");
}

#[tokio::test]
async fn the_first_requests_for_an_engine_load_it_once() {
    let (compiler, folder) = compiler().await;
    let model = request(256).model;
    let key = compiler.key(request(256)).await.unwrap();
    let store = folder.path().join("store");
    let start = |on_demand: bool| {
        Executor::start(&store, folder.path(), move |config| {
            config.load_on_demand = on_demand;
        })
    };
    let executor = start(false).await.unwrap();
    let status = executor.generate(of(&model, tokens(&[1, 2], 3))).await.unwrap_err();
    assert_status(&status, Code::NotFound, reasons::ENGINE_NOT_LOADED);

    let executor = start(true).await.unwrap();
    let expected = {
        let other = start(false).await.unwrap();
        other.load(&key).await.unwrap();
        other.generate(tokens(&[1, 2], 20)).await.unwrap().token_ids
    };
    let first = join_all((0..8).map(|index| {
        let name = if index % 2 == 0 { &model } else { &key };
        executor.generate(of(name, tokens(&[1, 2], 20)))
    }));
    for generated in first.await {
        assert_eq!(generated.unwrap().token_ids, expected);
    }
    assert_eq!(loaded(&executor).await, [key.as_str()]);
    assert!(executor.get_load().await.unwrap().engine_bytes_used > 0);

    let status = executor.generate(of("another/model", tokens(&[1], 1))).await.unwrap_err();
    assert_status(&status, Code::NotFound, reasons::ENGINE_NOT_LOADED);
    let status = executor.generate(of(&"0".repeat(64), tokens(&[1], 1))).await.unwrap_err();
    assert_status(&status, Code::NotFound, reasons::ENGINE_NOT_FOUND);

    // With two in the store, the one that is loaded is meant; without, neither.
    compiler.key(request(300)).await.unwrap();
    executor.generate(of(&model, tokens(&[1, 2], 3))).await.unwrap();
    let executor = start(true).await.unwrap();
    let status = executor.generate(of(&model, tokens(&[1, 2], 3))).await.unwrap_err();
    assert_status(&status, Code::InvalidArgument, reasons::ENGINE_NOT_LOADED);
}

/// An executor that loads on demand and has room for two of three engines.
async fn room_for_two(compiler: &Compiler, folder: &TempDir) -> (Executor, [String; 3]) {
    let store = folder.path().join("store");
    let mut keys = [const { String::new() }; 3];
    let measuring = Executor::start(&store, folder.path(), |_| {}).await.unwrap();
    let mut largest = 0;
    for (key, max_seq_len) in keys.iter_mut().zip([512, 510, 508]) {
        *key = compiler.key(request(max_seq_len)).await.unwrap();
        let engine = measuring.load(key).await.unwrap().engine.unwrap();
        largest = largest.max(engine.weight_bytes + engine.workspace_bytes);
    }
    let executor = Executor::start(&store, folder.path(), |config| {
        config.load_on_demand = true;
        config.engine_memory_bytes = Some(largest * 5 / 2);
    });
    (executor.await.unwrap(), keys)
}

#[tokio::test]
async fn the_least_recently_used_engine_makes_room_and_its_session_goes_on() {
    let (compiler, folder) = compiler().await;
    let (executor, [a, b, c]) = room_for_two(&compiler, &folder).await;
    let undisturbed = Executor::start(&folder.path().join("store"), folder.path(), |_| {}).await.unwrap();
    undisturbed.load(&a).await.unwrap();
    let other = session(&undisturbed, &a).await;
    let expected =
        [in_session(&undisturbed, &other, &[5, 6, 7]).await, in_session(&undisturbed, &other, &[9]).await];

    let of_a = session(&executor, &a).await;
    assert_eq!(in_session(&executor, &of_a, &[5, 6, 7]).await, expected[0]);
    executor.generate(of(&b, tokens(&[1], 2))).await.unwrap();
    assert_eq!(loaded(&executor).await, [a.clone(), b.clone()]);
    executor.generate(of(&c, tokens(&[1], 2))).await.unwrap();
    assert_eq!(loaded(&executor).await, [b.clone(), c.clone()]);
    // The session's next turn loads its engine, for which the other one goes that was not used since.
    assert_eq!(in_session(&executor, &of_a, &[9]).await, expected[1]);
    assert_eq!(loaded(&executor).await, [c, a]);
    let load = executor.get_load().await.unwrap();
    assert!(load.engine_bytes_used <= load.engine_bytes_total.unwrap(), "{load:?}");
}

#[tokio::test]
async fn an_engine_in_use_stays() {
    let (compiler, folder) = compiler().await;
    let (executor, [a, b, c]) = room_for_two(&compiler, &folder).await;
    // Generations that wait for clients that do not read.
    let mut unread = Vec::new();
    for key in [&a, &b] {
        let endpoint = executor.node().unwrap().endpoint().unwrap();
        let channel = endpoint.initial_stream_window_size(1024).connect().await.unwrap();
        let stream = ExecutorClient::new(channel).generate(of(key, tokens(&[5, 6, 7], 450))).await.unwrap();
        unread.push(stream.into_inner());
    }
    let status = executor.generate(of(&c, tokens(&[1], 2))).await.unwrap_err();
    assert_status(&status, Code::ResourceExhausted, reasons::ENGINE_MEMORY_EXHAUSTED);
    assert!(status.get_error_details().retry_info().is_some());
    assert_eq!(loaded(&executor).await, [a.clone(), b.clone()]);

    // The second one's client goes.
    unread.pop();
    eventually("an engine to be idle", async || match executor.generate(of(&c, tokens(&[1], 2))).await {
        Ok(_) => Ok(Some(())),
        Err(status) if status.code() == Code::ResourceExhausted => Ok(None),
        Err(status) => Err(status.into()),
    })
    .await
    .unwrap();
    assert_eq!(loaded(&executor).await, [a, c]);
}
