//! `roundhouse.executor.v1.Executor`.

use std::sync::Arc;
use std::time::Duration;

use roundhouse_engine::EngineKey;
use roundhouse_proto::executor::executor_server::Executor;
use roundhouse_proto::executor::{
    CancelRequest, CreateSessionRequest, DeleteSessionRequest, DetokenizeRequest, DetokenizeResponse,
    ForkSessionRequest, GenerateRequest, GenerateVlmRequest, GetLoadRequest, GetLoadResponse,
    GetSessionRequest, ListEnginesRequest, ListEnginesResponse, ListSessionsRequest, ListSessionsResponse,
    LoadEngineRequest, LoadEngineResponse, Session, TokenizeRequest, TokenizeResponse,
    TruncateSessionRequest, UnloadEngineRequest, tokenize_request,
};
use roundhouse_rpc::{Failure, deadline, reason};
use roundhouse_telemetry::{peak_memory_bytes, resident_memory_bytes};
use roundhouse_text::{RenderOptions, conversation_tokens};
use tonic::{Code, Request, Response, Status};

use super::caller::Caller;
use super::stream::GenerateStream;
use super::{ExecutorService, convert, failure, images};

#[tonic::async_trait]
impl Executor for ExecutorService {
    type GenerateStream = GenerateStream;
    type GenerateVlmStream = GenerateStream;

    async fn load_engine(
        &self,
        request: Request<LoadEngineRequest>,
    ) -> Result<Response<LoadEngineResponse>, Status> {
        let loaded = self.load(&request.into_inner().engine_key).await?;
        Ok(Response::new(LoadEngineResponse {
            engine: Some(convert::loaded_engine(&loaded.engine)),
            load_ms: u64::try_from(loaded.elapsed.as_millis()).unwrap_or(u64::MAX),
            downloaded_bytes: loaded.downloaded_bytes,
        }))
    }

    async fn unload_engine(&self, request: Request<UnloadEngineRequest>) -> Result<Response<()>, Status> {
        let text = request.into_inner().engine_key;
        let key = EngineKey::parse(&text).ok_or_else(|| failure::not_a_key(&text))?;
        self.sessions.remove_of_engine(&key);
        let engines = Arc::clone(&self.engines);
        let unloading = {
            let key = key.clone();
            // Dropping an engine joins its scheduler's thread.
            tokio::task::spawn_blocking(move || engines.unload(&key))
        };
        let unloaded = unloading
            .await
            .map_err(|error| Failure::new(Code::Internal, reason::INTERNAL, error.to_string()))?;
        if !unloaded {
            let message = format!("engine {key} is not loaded");
            return Err(Failure::new(Code::NotFound, reason::ENGINE_NOT_LOADED, message).into());
        }
        Ok(Response::new(()))
    }

    async fn list_engines(
        &self,
        _request: Request<ListEnginesRequest>,
    ) -> Result<Response<ListEnginesResponse>, Status> {
        let engines = self.engines.list().iter().map(|engine| convert::loaded_engine(engine)).collect();
        Ok(Response::new(ListEnginesResponse { engines }))
    }

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<GenerateStream>, Status> {
        let caller = Caller::of(request.metadata())?;
        Ok(Response::new(self.stream(caller, request.into_inner()).await?))
    }

    async fn generate_vlm(
        &self,
        request: Request<GenerateVlmRequest>,
    ) -> Result<Response<GenerateStream>, Status> {
        let caller = Caller::of(request.metadata())?;
        Ok(Response::new(self.stream(caller, images::as_messages(request.into_inner())).await?))
    }

    async fn create_session(
        &self,
        request: Request<CreateSessionRequest>,
    ) -> Result<Response<Session>, Status> {
        let caller = Caller::of(request.metadata())?;
        let session = self.make_session(&caller, request.into_inner()).await?;
        Ok(Response::new(convert::session(&session.info())))
    }

    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<Session>, Status> {
        let caller = Caller::of(request.metadata())?;
        let session = self.session(&caller, &request.into_inner().session_id).await?;
        Ok(Response::new(convert::session(&session.info())))
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let caller = Caller::of(request.metadata())?;
        let (sessions, next) = self.page_of_sessions(&caller, &request.into_inner())?;
        Ok(Response::new(ListSessionsResponse {
            sessions: sessions.iter().map(convert::session).collect(),
            next_page_token: next.map(|sequence| sequence.to_string()).unwrap_or_default(),
        }))
    }

    async fn fork_session(&self, request: Request<ForkSessionRequest>) -> Result<Response<Session>, Status> {
        let caller = Caller::of(request.metadata())?;
        let session = ExecutorService::fork_session(self, &caller, request.into_inner()).await?;
        Ok(Response::new(convert::session(&session.info())))
    }

    async fn truncate_session(
        &self,
        request: Request<TruncateSessionRequest>,
    ) -> Result<Response<Session>, Status> {
        let caller = Caller::of(request.metadata())?;
        let request = request.into_inner();
        let kept = request.num_tokens as usize;
        let session = ExecutorService::truncate_session(self, &caller, &request.session_id, kept).await?;
        Ok(Response::new(convert::session(&session.info())))
    }

    async fn delete_session(&self, request: Request<DeleteSessionRequest>) -> Result<Response<()>, Status> {
        let caller = Caller::of(request.metadata())?;
        self.end_session(&caller, &request.into_inner().session_id).await?;
        Ok(Response::new(()))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<()>, Status> {
        let caller = Caller::of(request.metadata())?;
        let request = request.into_inner();
        let session = self.requests.cancel(&caller.tenant, &request.request_id);
        if !request.keep_session.unwrap_or(true)
            && let Some(id) = session
        {
            // One that is gone already is what the caller wants.
            drop(self.end_session(&caller, &id).await);
        }
        Ok(Response::new(()))
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let deadline = deadline(request.metadata());
        let request = request.into_inner();
        let engine = self.engine(request.engine.as_deref(), deadline).await?;
        let encoding = tokio::task::spawn_blocking(move || match request.input {
            Some(tokenize_request::Input::Prompt(text)) => engine
                .tokenizer()
                .encode(&text, request.add_special_tokens.unwrap_or(true))
                .map_err(|error| failure::of_text(&error)),
            Some(tokenize_request::Input::Messages(messages)) => {
                let options = RenderOptions {
                    add_generation_prompt: messages.add_generation_prompt.unwrap_or(true),
                    now: engine.template_time(),
                };
                let messages = convert::messages(messages)?;
                if messages.iter().any(|message| message.content.images() > 0) {
                    let message = "a message has an image: only text is tokenised";
                    return Err(Failure::invalid_field("messages", message));
                }
                let render =
                    || conversation_tokens(engine.tokenizer(), engine.template()?, &messages, &options);
                render().map_err(|error| failure::of_text(&error))
            }
            None => Err(Failure::invalid_field("input", "the request has neither prompt nor messages")),
        });
        let encoded = encoding
            .await
            .map_err(|error| Failure::new(Code::Internal, reason::INTERNAL, error.to_string()))?;
        Ok(Response::new(TokenizeResponse { token_ids: encoded? }))
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let deadline = deadline(request.metadata());
        let request = request.into_inner();
        let engine = self.engine(request.engine.as_deref(), deadline).await?;
        let skip_special_tokens = request.skip_special_tokens.unwrap_or(true);
        let text = engine.tokenizer().decode(&request.token_ids, skip_special_tokens);
        Ok(Response::new(DetokenizeResponse { text: text.map_err(|error| failure::of_text(&error))? }))
    }

    async fn get_load(&self, _request: Request<GetLoadRequest>) -> Result<Response<GetLoadResponse>, Status> {
        let engines = self.engines.list();
        let (mut running, mut waiting, mut preemptions) = (0, 0, 0);
        let (mut overhead, mut output) = (Duration::ZERO, Duration::ZERO);
        for engine in &engines {
            let load = engine.scheduler().load();
            running += load.running;
            waiting += load.waiting;
            preemptions += load.preemptions;
            overhead = overhead.max(load.overhead_p99);
            output = output.max(load.output_p99);
        }
        // Caches of the longest kind that would still fit, beside those that there are.
        let largest = engines.iter().map(|engine| engine.memory_plan().kv_bytes(engine.max_seq_len() as u64));
        let sessions = self.sessions.len();
        let prefixes = self.prefixes.usage();
        let images = self.images.cache().usage();
        let free = self.memory.total() - self.memory.used().min(self.memory.total());
        let more = largest.max().filter(|&bytes| bytes > 0).map_or(0, |bytes| free / bytes);
        Ok(Response::new(GetLoadResponse {
            running: convert::count(running),
            waiting: convert::count(waiting),
            sessions: convert::count(sessions),
            slots: convert::count(sessions + usize::try_from(more).unwrap_or(usize::MAX - sessions)),
            kv_bytes_used: self.memory.used(),
            kv_bytes_total: self.memory.total(),
            peak_memory_bytes: peak_memory_bytes(),
            prefix_cache_queried_tokens: prefixes.queried_tokens,
            prefix_cache_hit_tokens: prefixes.hit_tokens,
            prefix_cache_bytes_used: prefixes.memory_bytes,
            prefix_cache_bytes_total: prefixes.memory_bytes_total,
            prefix_cache_disk_bytes_used: prefixes.disk_bytes,
            image_cache_queries: images.queries,
            image_cache_hits: images.hits,
            image_cache_bytes_used: images.bytes,
            image_cache_bytes_total: images.bytes_total,
            kv_bytes_idle: self.memory.idle(),
            preemptions,
            scheduler_overhead_p99_us: convert::micros(overhead),
            output_p99_us: convert::micros(output),
            problems: self.problems(),
            runtimes: self.engines.backends().found().iter().filter_map(convert::runtime).collect(),
            resident_memory_bytes: resident_memory_bytes(),
            engine_bytes_used: self.engines.bytes(),
            engine_bytes_total: self.config.engine_memory_bytes,
        }))
    }
}
