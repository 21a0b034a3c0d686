//! A tiny engine whose steps wait at a gate.

use std::sync::Arc;

use roundhouse_backend_cpu::{CpuOptions, CpuRuntime};
use roundhouse_engine::{CacheKind, ComputeCapabilities, Precision};
use roundhouse_executor::ExecutorConfig;
use roundhouse_executor::backends::Backends;
use roundhouse_proto::compiler::{CompileEngineRequest, CompileOptions};
use roundhouse_tests::harness::{Executor, Gate, GatedRuntime, LoadedEngine, shared, tiny_llama_request};

/// An executor of its own with one engine of so many places, and the gate of its steps.
pub(crate) async fn gated(
    places: u32,
    change: impl FnOnce(&mut ExecutorConfig),
) -> (Executor, LoadedEngine, Gate) {
    let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
    gated_engine(request, places, change).await
}

/// As [`gated`], of an engine of this request.
pub(crate) async fn gated_engine(
    request: CompileEngineRequest,
    places: u32,
    change: impl FnOnce(&mut ExecutorConfig),
) -> (Executor, LoadedEngine, Gate) {
    let shared = shared().await.unwrap();
    let options = CompileOptions { max_batch_size: Some(places), ..request.options.unwrap() };
    let request = CompileEngineRequest { options: Some(options), ..request };
    let key = shared.compiler.key(request).await.unwrap();
    let (runtime, gate) = GatedRuntime::new(Arc::new(CpuRuntime::new(CpuOptions { threads: Some(2) })));
    let backends = Backends::only(Arc::new(runtime), ComputeCapabilities::NONE);
    let executor = Executor::start_with(&shared.store(), &shared.folder, |_| backends, change).await.unwrap();
    let engine = executor.engine(&key).await.unwrap();
    (executor, engine, gate)
}
