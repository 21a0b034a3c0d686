//! Engines: compiled once, shared where equal, found, deleted, and never half there.

use std::fs;

use prost::Message as _;
use roundhouse_engine::{CacheKind, Precision, blob_names};
use roundhouse_proto::compiler::{
    CompileEngineRequest, CompileEvent, CompileMetadata, DeleteEngineRequest, Engine, GetEngineRequest,
    ListEnginesRequest, ListModelFamiliesRequest, Stage, WatchCompileRequest, compile_event,
};
use roundhouse_proto::google::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest, Operation,
};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::harness::{
    Compiler, Executor, eventually, operation_result, reason, smollm2_request, tiny_llama_request, tokens,
};
use tempfile::TempDir;
use tonic::{Code, Status};

/// A compiler with an empty store.
async fn empty() -> (Compiler, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Compiler::start(folder.path()).await.unwrap(), folder)
}

fn tiny(cache: CacheKind) -> CompileEngineRequest {
    tiny_llama_request("tiny-llama-2", Precision::Fp32, cache)
}

async fn submit(compiler: &Compiler, request: CompileEngineRequest) -> Operation {
    compiler.client.clone().compile_engine(request).await.unwrap().into_inner()
}

async fn watch(compiler: &Compiler, operation: &str) -> Vec<CompileEvent> {
    let request = WatchCompileRequest { operation: operation.to_owned() };
    let mut stream = compiler.client.clone().watch_compile(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.unwrap() {
        events.push(event);
    }
    events
}

fn passes(events: &[CompileEvent]) -> Vec<String> {
    let pass = |event: &CompileEvent| match &event.event {
        Some(compile_event::Event::Pass(report)) => Some(report.pass.clone()),
        _ => None,
    };
    events.iter().filter_map(pass).collect()
}

fn stages(events: &[CompileEvent]) -> Vec<Stage> {
    let stage = |event: &CompileEvent| match &event.event {
        Some(compile_event::Event::Progress(progress)) => Some(progress.stage()),
        _ => None,
    };
    events.iter().filter_map(stage).collect()
}

async fn get(compiler: &Compiler, key: &str) -> Result<Engine, Status> {
    Ok(compiler.client.clone().get_engine(GetEngineRequest { key: key.to_owned() }).await?.into_inner())
}

async fn delete(compiler: &Compiler, key: &str) -> Result<(), Status> {
    compiler.client.clone().delete_engine(DeleteEngineRequest { key: key.to_owned() }).await.map(|_| ())
}

fn digest(engine: &Engine, name: &str) -> String {
    engine.blobs.iter().find(|blob| blob.name == name).unwrap().sha256.clone()
}

#[tokio::test]
async fn the_same_request_finds_the_engine_and_builds_nothing() {
    let (compiler, _folder) = empty().await;
    let first = compiler.compile(tiny(CacheKind::InPlace)).await.unwrap();
    assert!(!first.reused && first.compile_ms < 60_000);
    let engine = first.engine.unwrap();

    let operation = submit(&compiler, tiny(CacheKind::InPlace)).await;
    let name = operation.name.clone();
    let second = compiler.finish(operation).await.unwrap();
    assert!(second.reused);
    assert_eq!(second.engine.as_ref(), Some(&engine), "its time of creation included");
    let seen = stages(&watch(&compiler, &name).await);
    assert!(!seen.contains(&Stage::Build) && !seen.contains(&Stage::Upload), "{seen:?}");
}

#[tokio::test]
async fn force_builds_again_to_the_same_engine() {
    let (compiler, _folder) = empty().await;
    let first = compiler.compile(tiny(CacheKind::InPlace)).await.unwrap().engine.unwrap();
    let request = CompileEngineRequest { force: Some(true), ..tiny(CacheKind::InPlace) };
    let operation = submit(&compiler, request).await;
    let name = operation.name.clone();
    let second = compiler.finish(operation).await.unwrap();
    assert!(!second.reused);
    let second = second.engine.unwrap();
    // The build is deterministic: the same key, and the same bytes.
    assert_eq!((&second.key, &second.blobs), (&first.key, &first.blobs));
    let events = watch(&compiler, &name).await;
    let upload = events.iter().any(|event| match &event.event {
        Some(compile_event::Event::Progress(progress)) => progress.stage() == Stage::Upload,
        _ => false,
    });
    assert!(upload, "the stage that follows a build: {events:?}");
}

#[tokio::test]
async fn force_repairs_an_engine_whose_blob_is_gone() {
    let (compiler, folder) = empty().await;
    let engine = compiler.compile(tiny(CacheKind::InPlace)).await.unwrap().engine.unwrap();
    fs::remove_file(compiler.blob_path(&digest(&engine, blob_names::WEIGHTS))).unwrap();
    let executor = Executor::start(&compiler.store(), folder.path(), |_| {}).await.unwrap();
    let status = executor.load(&engine.key).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DataLoss, reasons::CORRUPT_ENGINE));
    assert!(status.message().contains(blob_names::WEIGHTS), "{status}");

    let request = CompileEngineRequest { force: Some(true), ..tiny(CacheKind::InPlace) };
    compiler.compile(request).await.unwrap();
    executor.load(&engine.key).await.unwrap();
}

#[tokio::test]
async fn engines_are_found_listed_and_deleted() {
    let (compiler, _folder) = empty().await;
    let mut keys = Vec::new();
    for cache in [CacheKind::InPlace, CacheKind::StaticV2] {
        keys.push(compiler.key(tiny(cache)).await.unwrap());
    }
    let other = tiny_llama_request("tiny-llama-linear", Precision::Fp16, CacheKind::InPlace);
    let other_key = compiler.key(other.clone()).await.unwrap();
    let found = get(&compiler, &other_key).await.unwrap();
    assert_eq!((found.key.as_str(), found.model.as_str()), (other_key.as_str(), other.model.as_str()));
    assert_eq!(found.architecture, "LlamaForCausalLM");
    assert!(!found.target.is_empty() && !found.compiler_version.is_empty() && found.create_time.is_some());
    let options = found.options.clone().unwrap();
    // Every default filled in: the model's own limit, and eight sequences.
    assert_eq!(
        (options.max_seq_len, options.max_batch_size, options.all_logits),
        (Some(256), Some(8), Some(false))
    );
    for blob in &found.blobs {
        assert_eq!(fs::metadata(compiler.blob_path(&blob.sha256)).unwrap().len(), blob.size, "{}", blob.name);
    }

    let list = |model: Option<&str>, page_size, page_token| {
        let mut client = compiler.client.clone();
        let request = ListEnginesRequest { model: model.map(str::to_owned), page_size, page_token };
        async move { client.list_engines(request).await.unwrap().into_inner() }
    };
    let mut all = [keys.clone(), vec![other_key.clone()]].concat();
    all.sort();
    let mut listed = Vec::new();
    let mut page_token = None;
    loop {
        let page = list(None, Some(1), page_token).await;
        assert!(page.engines.len() <= 1);
        listed.extend(page.engines.into_iter().map(|engine| engine.key));
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = Some(page.next_page_token);
    }
    assert_eq!(listed, all);
    let of_other = list(Some(&other.model), None, None).await;
    assert_eq!(of_other.engines.iter().map(|engine| &engine.key).collect::<Vec<_>>(), [&other_key]);

    delete(&compiler, &other_key).await.unwrap();
    for status in
        [get(&compiler, &other_key).await.unwrap_err(), delete(&compiler, &other_key).await.unwrap_err()]
    {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, reasons::ENGINE_NOT_FOUND));
        assert!(status.message().contains(&other_key), "{status}");
    }
    // Its own graph and weights are gone; the tokenizer is also the other models'.
    for (name, stays) in
        [(blob_names::GRAPH, false), (blob_names::WEIGHTS, false), (blob_names::TOKENIZER, true)]
    {
        assert_eq!(compiler.blob_path(&digest(&found, name)).exists(), stays, "{name}");
    }
    keys.sort();
    let mut stored = compiler.stored_keys().unwrap();
    stored.sort();
    assert_eq!(stored, keys);
}

#[tokio::test]
async fn engines_of_one_checkpoint_share_its_weights_and_deletion_keeps_what_others_use() {
    let (compiler, folder) = empty().await;
    let first = compiler.compile(tiny(CacheKind::StaticV1)).await.unwrap().engine.unwrap();
    let second = compiler.compile(tiny(CacheKind::InPlace)).await.unwrap().engine.unwrap();
    assert_ne!(first.key, second.key);
    let weights = digest(&first, blob_names::WEIGHTS);
    assert_eq!(digest(&second, blob_names::WEIGHTS), weights);
    assert_ne!(digest(&first, blob_names::GRAPH), digest(&second, blob_names::GRAPH));

    delete(&compiler, &first.key).await.unwrap();
    assert!(!compiler.blob_path(&digest(&first, blob_names::GRAPH)).exists());
    let executor = Executor::start(&compiler.store(), folder.path(), |_| {}).await.unwrap();
    let engine = executor.engine(&second.key).await.unwrap();
    assert_eq!(engine.generate(tokens(&[5], 3)).await.unwrap().token_ids.len(), 3);
    drop(executor);

    delete(&compiler, &second.key).await.unwrap();
    assert!(!compiler.blob_path(&weights).exists());
}

#[tokio::test]
async fn equal_requests_that_run_at_a_time_are_one_operation() {
    let (compiler, _folder) = empty().await;
    // Keeps the only build slot, so that the others wait.
    let slow = submit(&compiler, smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap()).await;
    let first = submit(&compiler, tiny(CacheKind::InPlace)).await;
    let second = submit(&compiler, tiny(CacheKind::InPlace)).await;
    let other = submit(&compiler, tiny(CacheKind::StaticV1)).await;
    assert_eq!(first.name, second.name);
    assert_ne!(first.name, other.name);
    cancel(&compiler, &slow.name).await;
    let (first, second) = futures::join!(compiler.finish(first), compiler.finish(second));
    assert_eq!(first.unwrap(), second.unwrap());
    compiler.finish(other).await.unwrap();
    assert_eq!(compiler.stored_keys().unwrap().len(), 2);
}

async fn cancel(compiler: &Compiler, name: &str) {
    let request = CancelOperationRequest { name: name.to_owned() };
    compiler.operations.clone().cancel_operation(request).await.unwrap();
}

#[tokio::test]
async fn a_cancelled_build_ends_with_cancelled_and_leaves_nothing() {
    let (compiler, _folder) = empty().await;
    let operation = submit(&compiler, smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap()).await;
    let waiting = submit(&compiler, tiny(CacheKind::InPlace)).await;
    // One that waits for its turn ends without having had it.
    cancel(&compiler, &waiting.name).await;
    let status = compiler.finish(waiting).await.unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);

    let request = WatchCompileRequest { operation: operation.name.clone() };
    let mut events = compiler.client.clone().watch_compile(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        if matches!(&event.event, Some(compile_event::Event::Progress(progress)) if progress.stage() == Stage::Build)
        {
            cancel(&compiler, &operation.name).await;
        }
        last = event.event;
    }
    let Some(compile_event::Event::Done(done)) = last else {
        unreachable!("the last event is the end: {last:?}")
    };
    assert_eq!((&done.name, done.done), (&operation.name, true));
    assert_eq!(operation_result(&done).unwrap_err().code(), Code::Cancelled);
    assert_eq!(compiler.stored_keys().unwrap(), [""; 0]);
    eventually("the build's folder to be removed", async || Ok(compiler.builds()?.is_empty().then_some(())))
        .await
        .unwrap();
    // Nothing is in the way of the next one.
    compiler.compile(tiny(CacheKind::InPlace)).await.unwrap();
}

#[tokio::test]
async fn watching_shows_every_pass_and_the_end_also_afterwards() {
    let (compiler, _folder) = empty().await;
    let operation = submit(&compiler, tiny(CacheKind::StaticV2)).await;
    let live = watch(&compiler, &operation.name).await;
    let response = compiler.finish(operation.clone()).await.unwrap();
    let replayed = watch(&compiler, &operation.name).await;
    let expected: Vec<_> = response.passes.iter().map(|report| report.pass.clone()).collect();
    assert!(expected.iter().any(|pass| pass == "static_cache_v2"), "{expected:?}");
    for events in [&live, &replayed] {
        assert_eq!(passes(events), expected);
        let Some(compile_event::Event::Done(done)) = &events.last().unwrap().event else { unreachable!() };
        assert_eq!(operation_result(done).unwrap(), response);
        assert!(events.iter().all(|event| event.time.is_some()));
        assert!(events.iter().any(|event| matches!(event.event, Some(compile_event::Event::Log(_)))));
    }
    let seen = stages(&live);
    assert!(seen.is_sorted(), "{seen:?}");

    let metadata = CompileMetadata::decode(done_metadata(&live).as_slice()).unwrap();
    assert_eq!(metadata.engine_key, response.engine.unwrap().key);
    assert!(metadata.create_time.is_some() && metadata.end_time.is_some());
}

fn done_metadata(events: &[CompileEvent]) -> Vec<u8> {
    match &events.last().unwrap().event {
        Some(compile_event::Event::Done(done)) => done.metadata.clone().unwrap().value,
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn validate_only_says_what_would_be_built_and_builds_nothing() {
    let (compiler, _folder) = empty().await;
    let request = CompileEngineRequest { validate_only: Some(true), ..tiny(CacheKind::StaticV1) };
    let validated = compiler.compile(request).await.unwrap();
    assert!(!validated.reused);
    let would_be = validated.engine.unwrap();
    assert_eq!((&would_be.blobs, would_be.create_time), (&vec![], None));
    assert!(validated.passes.iter().any(|report| report.pass == "static_cache_v1"), "{:?}", validated.passes);
    let plan = validated.memory_plan.unwrap();
    assert!(plan.weight_bytes > 0 && plan.kv_bytes_per_token > 0 && plan.workspace_bytes > 0, "{plan:?}");
    // Two layers of keys and values, two heads of 16 each, fp32.
    assert_eq!(plan.kv_bytes_per_token, 2 * 2 * 2 * 16 * 4);
    assert_eq!(compiler.stored_keys().unwrap(), [""; 0]);
    assert!(!compiler.store().join("blobs").exists());
    assert_eq!(compiler.builds().unwrap(), [""; 0]);

    let built = compiler.compile(tiny(CacheKind::StaticV1)).await.unwrap();
    assert_eq!(built.engine.unwrap().key, would_be.key);
    assert_eq!(built.passes, validated.passes);
}

#[tokio::test]
async fn a_corrupt_blob_is_found_before_it_runs_and_named() {
    let (compiler, folder) = empty().await;
    let engine = compiler.compile(tiny(CacheKind::InPlace)).await.unwrap().engine.unwrap();
    let executor = Executor::start(&compiler.store(), folder.path(), |_| {}).await.unwrap();
    for name in [blob_names::WEIGHTS, blob_names::TOKENIZER, blob_names::GRAPH] {
        let path = compiler.blob_path(&digest(&engine, name));
        let right = fs::read(&path).unwrap();
        let mut wrong = right.clone();
        let middle = wrong.len() / 2;
        wrong[middle] ^= 1;
        for wrong in [&wrong[..], &right[..middle]] {
            fs::write(&path, wrong).unwrap();
            let status = executor.load(&engine.key).await.unwrap_err();
            assert_eq!((status.code(), reason(&status).as_str()), (Code::DataLoss, reasons::CORRUPT_ENGINE));
            assert!(status.message().contains(name), "{status}");
        }
        fs::write(&path, right).unwrap();
    }
    executor.load(&engine.key).await.unwrap();
}

#[tokio::test]
async fn operations_are_found_listed_and_forgotten() {
    let (compiler, _folder) = empty().await;
    let mut operations = compiler.operations.clone();
    let first = submit(&compiler, tiny(CacheKind::InPlace)).await;
    compiler.finish(first.clone()).await.unwrap();
    let slow = submit(&compiler, smollm2_request(Precision::Fp32, CacheKind::InPlace).unwrap()).await;

    let found = operations.get_operation(GetOperationRequest { name: first.name.clone() }).await.unwrap();
    assert!(found.into_inner().done);
    for (filter, expected) in [
        ("", vec![&slow.name, &first.name]),
        ("done=true", vec![&first.name]),
        ("done=false", vec![&slow.name]),
    ] {
        let request = ListOperationsRequest { filter: filter.to_owned(), ..ListOperationsRequest::default() };
        let listed = operations.list_operations(request).await.unwrap().into_inner().operations;
        assert_eq!(listed.iter().map(|operation| &operation.name).collect::<Vec<_>>(), expected, "{filter}");
    }

    let status =
        operations.delete_operation(DeleteOperationRequest { name: slow.name.clone() }).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, reasons::OPERATION_RUNNING)
    );
    cancel(&compiler, &slow.name).await;
    assert_eq!(compiler.finish(slow).await.unwrap_err().code(), Code::Cancelled);

    operations.delete_operation(DeleteOperationRequest { name: first.name.clone() }).await.unwrap();
    let status =
        operations.get_operation(GetOperationRequest { name: first.name.clone() }).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, reasons::OPERATION_NOT_FOUND));
    assert!(status.message().contains(&first.name), "{status}");
}

#[tokio::test]
async fn the_model_families_are_listed() {
    let (compiler, _folder) = empty().await;
    let families = compiler.client.clone().list_model_families(ListModelFamiliesRequest {}).await.unwrap();
    let families = families.into_inner().families;
    let llama = families.iter().find(|family| family.architecture == "LlamaForCausalLM").unwrap();
    assert_eq!(llama.model_type, "llama");
    assert_eq!((llama.precisions.len(), llama.caches.len()), (3, 4));
    assert!(!llama.backends.is_empty());
    assert!(llama.support.iter().map(|support| support.backend()).eq(llama.backends()));
    for precision in llama.support.iter().flat_map(|support| &support.precisions) {
        assert_eq!(precision.caches.len(), 4, "{precision:?}");
    }
}
