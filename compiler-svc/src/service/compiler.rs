//! `roundhouse.compiler.v1.Compiler`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use roundhouse_engine::EngineKey;
use roundhouse_hub::ModelSource;
use roundhouse_proto::compiler::compiler_server::Compiler;
use roundhouse_proto::compiler::{
    CompileEngineRequest, CompileEngineResponse, CompileEvent, DeleteEngineRequest, Engine, EngineFile,
    GetEngineFileRequest, GetEngineRequest, ListEnginesRequest, ListEnginesResponse,
    ListModelFamiliesRequest, ListModelFamiliesResponse, WatchCompileRequest, compile_event,
};
use roundhouse_proto::google::longrunning;
use roundhouse_rpc::{Failure, reason};
use roundhouse_store::ListRequest;
use roundhouse_telemetry::peak_memory_bytes;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};

use super::{CompilerService, failure, operations};
use crate::convert::{self, quantization, tensorrt};
use crate::jobs::{Cursor, Operation, Update};
use crate::metrics::CompilerMetrics;
use crate::pipeline::{CompileError, CompileRequest, Pipeline};
use crate::support::SUPPORT;

/// How long a caller that met a full queue should wait.
const QUEUE_RETRY: Duration = Duration::from_secs(10);
/// Events of a watched compilation on their way to a caller.
const WATCH_BUFFER: usize = 64;
/// The largest file of an engine that is given as a message.
const MAX_FILE_BYTES: u64 = 32 << 20;

type EventStream = Pin<Box<dyn Stream<Item = Result<CompileEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Compiler for CompilerService {
    type WatchCompileStream = EventStream;

    async fn compile_engine(
        &self,
        request: Request<CompileEngineRequest>,
    ) -> Result<Response<longrunning::Operation>, Status> {
        let message = request.into_inner();
        let request = self.compile_request(&message)?;
        // Two requests that ask for the same thing share an operation while it runs.
        let identity = format!("{request:?}");
        let (pipeline, metrics) = (Arc::clone(&self.pipeline), Arc::clone(&self.metrics));
        let runtime = tokio::runtime::Handle::current();
        let submitted = self
            .jobs
            .submit(identity, message.model, move |operation| {
                runtime.block_on(run(&pipeline, &metrics, &request, operation))
            })
            .map_err(|full| {
                Failure::new(Code::ResourceExhausted, reason::QUEUE_FULL, full.to_string())
                    .retry_after(QUEUE_RETRY)
            })?;
        tracing::info!(
            operation = submitted.operation.name(),
            shared = submitted.shared,
            "compilation requested"
        );
        Ok(Response::new(operations::message(&submitted.operation.snapshot())))
    }

    async fn watch_compile(
        &self,
        request: Request<WatchCompileRequest>,
    ) -> Result<Response<Self::WatchCompileStream>, Status> {
        let operation = self.operation(&request.into_inner().operation)?;
        let (sender, receiver) = tokio::sync::mpsc::channel(WATCH_BUFFER);
        tokio::spawn(async move {
            let mut cursor = Cursor::default();
            loop {
                let news = tokio::select! {
                    news = operation.follow(&mut cursor) => news,
                    () = sender.closed() => return,
                };
                for event in events(&operation, news) {
                    if sender.send(Ok(event.0)).await.is_err() || event.1 {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(|event| event))))
    }

    async fn list_engines(
        &self,
        request: Request<ListEnginesRequest>,
    ) -> Result<Response<ListEnginesResponse>, Status> {
        let request = request.into_inner();
        let page_size = usize::try_from(request.page_size.unwrap_or_default())
            .map_err(|_| Failure::invalid_field("page_size", "page_size is negative"))?;
        let page = self
            .pipeline
            .store()
            .list(ListRequest {
                page_size,
                page_token: request.page_token.as_deref(),
                model: request.model.as_deref(),
            })
            .await
            .map_err(|error| failure::of_store(&error))?;
        Ok(Response::new(ListEnginesResponse {
            engines: page.manifests.iter().map(convert::engine).collect(),
            next_page_token: page.next_page_token.unwrap_or_default(),
        }))
    }

    async fn get_engine(&self, request: Request<GetEngineRequest>) -> Result<Response<Engine>, Status> {
        let key = engine_key(&request.into_inner().key)?;
        let manifest =
            self.pipeline.store().get_manifest(&key).await.map_err(|error| failure::of_store(&error))?;
        Ok(Response::new(convert::engine(&manifest)))
    }

    async fn get_engine_file(
        &self,
        request: Request<GetEngineFileRequest>,
    ) -> Result<Response<EngineFile>, Status> {
        let GetEngineFileRequest { key, name } = request.into_inner();
        let reading = self.pipeline.store().read_file(&engine_key(&key)?, &name, MAX_FILE_BYTES).await;
        let content = reading.map_err(|error| failure::of_store(&error))?;
        Ok(Response::new(EngineFile { content }))
    }

    async fn delete_engine(&self, request: Request<DeleteEngineRequest>) -> Result<Response<()>, Status> {
        let key = engine_key(&request.into_inner().key)?;
        self.pipeline.store().delete(&key).await.map_err(|error| failure::of_store(&error))?;
        tracing::info!(%key, "engine deleted");
        Ok(Response::new(()))
    }

    async fn list_model_families(
        &self,
        _request: Request<ListModelFamiliesRequest>,
    ) -> Result<Response<ListModelFamiliesResponse>, Status> {
        let pipeline = Arc::clone(&self.pipeline);
        // It may load a library, which is no work for the runtime's threads.
        let asking = tokio::task::spawn_blocking(move || SUPPORT.families(pipeline.backends()));
        let families = asking.await.map_err(|error| {
            Failure::new(Code::Internal, reason::INTERNAL, format!("asking the backends: {error}"))
        })?;
        let families = families.iter().map(convert::support::family).collect();
        Ok(Response::new(ListModelFamiliesResponse { families }))
    }
}

impl CompilerService {
    fn compile_request(&self, message: &CompileEngineRequest) -> Result<CompileRequest, Failure> {
        // Found out at once rather than by the operation.
        ModelSource::parse(&message.model, message.revision.as_deref(), self.config.hub.local_paths)
            .map_err(|error| failure::of_hub(&error).at_field("model"))?;
        let options = message.options.clone().unwrap_or_default();
        let precision = convert::precision(options.precision)?;
        let backend = convert::backend(&options)?;
        Ok(CompileRequest {
            model: message.model.clone(),
            revision: message.revision.clone(),
            precision,
            cache: convert::cache(options.cache)?,
            backend,
            max_seq_len: options.max_seq_len,
            max_batch_size: options.max_batch_size,
            all_logits: options.all_logits.unwrap_or_default(),
            quantization: quantization::asked(options.quantization.as_ref())?,
            calibration: quantization::calibration(options.quantization.as_ref())?,
            targets: tensorrt::targets(&options.targets, backend)?,
            tensorrt: tensorrt::options(options.tensorrt.as_ref(), backend, precision)?,
            validate_only: message.validate_only.unwrap_or_default(),
            force: message.force.unwrap_or_default(),
        })
    }

    pub(super) fn operation(&self, name: &str) -> Result<Arc<Operation>, Failure> {
        self.jobs.get(name).ok_or_else(|| {
            Failure::new(Code::NotFound, reason::OPERATION_NOT_FOUND, format!("no operation {name:?}"))
        })
    }
}

fn engine_key(text: &str) -> Result<EngineKey, Failure> {
    EngineKey::parse(text).ok_or_else(|| {
        Failure::invalid_field("key", format!("{text:?} is no engine key: expected 64 hex digits"))
    })
}

/// Runs a compilation to the result of its operation.
async fn run(
    pipeline: &Pipeline,
    metrics: &CompilerMetrics,
    request: &CompileRequest,
    operation: &Arc<Operation>,
) -> Result<CompileEngineResponse, roundhouse_proto::google::rpc::Status> {
    let started = Instant::now();
    let compiled = pipeline.compile(request, operation).await;
    let result = match &compiled {
        Ok(compiled) if compiled.reused => "reused",
        Ok(_) => "built",
        Err(CompileError::Cancelled) => "cancelled",
        Err(_) => "failed",
    };
    metrics.note(result, started.elapsed());
    match compiled {
        Ok(compiled) => Ok(CompileEngineResponse {
            engine: Some(convert::engine(&compiled.manifest)),
            reused: compiled.reused,
            passes: compiled.manifest.passes.iter().map(convert::pass_report).collect(),
            memory_plan: Some(convert::memory_plan(&compiled.manifest.memory_plan)),
            compile_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            peak_memory_bytes: peak_memory_bytes(),
            ops: compiled.ops.iter().map(|(&op, &count)| (op.to_owned(), count)).collect(),
        }),
        Err(error) => {
            if !matches!(error, CompileError::Cancelled) {
                tracing::warn!(operation = operation.name(), %error, "compilation failed");
            }
            operation.log(format!("failed: {error}"));
            Err(operations::status(&Status::from(failure::of_compile(&error))))
        }
    }
}

/// The messages of what is new, each with whether it is the last.
fn events(operation: &Operation, news: crate::jobs::News) -> Vec<(CompileEvent, bool)> {
    let message =
        |time: SystemTime, event| CompileEvent { time: Some(convert::timestamp(time)), event: Some(event) };
    let mut events: Vec<_> = news
        .updates
        .into_iter()
        .map(|(time, update)| {
            let event = match update {
                Update::Pass(report) => compile_event::Event::Pass(report),
                Update::Log(line) => compile_event::Event::Log(line),
            };
            (message(time, event), false)
        })
        .collect();
    if let Some(progress) = news.progress {
        events.push((message(SystemTime::now(), compile_event::Event::Progress(progress)), false));
    }
    if news.ended {
        let done = operations::message(&operation.snapshot());
        events.push((message(SystemTime::now(), compile_event::Event::Done(done)), true));
    }
    events
}
