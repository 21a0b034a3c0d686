//! Sessions of callers: from memory or from where they are stored, made, forked, cut and deleted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use roundhouse_engine::EngineKey;
use roundhouse_proto::executor::{CreateSessionRequest, ForkSessionRequest, ListSessionsRequest};
use roundhouse_rpc::Failure;

use super::caller::Caller;
use super::{ExecutorService, failure};
use crate::session::{Session, SessionFilter, SessionInfo, SessionTerms};

const DEFAULT_PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1000;

impl ExecutorService {
    /// A caller's session: the one in memory, unless another executor went on with it, or the stored one, whose engine is
    /// loaded for it.
    pub(super) async fn session(&self, caller: &Caller, id: &str) -> Result<Arc<Session>, Failure> {
        let missing = match self.sessions.get_current(&caller.tenant, id).await {
            Ok(session) => return Ok(session),
            Err(error) => failure::of_session(&error),
        };
        let Some(archive) = self.sessions.archive() else { return Err(missing) };
        let stored = archive.find(id).await.map_err(|error| failure::of_archive(&error))?;
        let Some(stored) = stored.filter(|stored| stored.record.tenant == caller.tenant) else {
            return Err(missing);
        };
        let record = &stored.record;
        let engine = record.engine(id).map_err(|error| failure::of_archive(&error.into()))?;
        let loaded = self.engines.load(&engine).await.map_err(|error| failure::of_load(&error))?.engine;
        let terms = SessionTerms {
            tenant: record.tenant.clone(),
            engine,
            idle_timeout: Duration::from_millis(record.idle_timeout_ms),
            end: record.end(),
        };
        let state =
            loaded.new_state(record.max_seq_len, &self.memory).map_err(|error| failure::of_memory(&error))?;
        tracing::info!(session = id, tokens = record.tokens.len(), "session restored");
        let restored = self.sessions.restore(id, terms, stored, state);
        restored.map_err(|error| failure::of_session(&error))
    }

    pub(super) async fn make_session(
        &self,
        caller: &Caller,
        request: CreateSessionRequest,
    ) -> Result<Arc<Session>, Failure> {
        let engine = self.engine(request.engine.as_deref(), caller.deadline).await?;
        let limit = engine.max_seq_len();
        let max_seq_len = request.max_seq_len.map_or(limit, |tokens| tokens as usize);
        if max_seq_len < 2 || max_seq_len > limit {
            let message = format!("max_seq_len is {max_seq_len}: the engine allows 2 to {limit}");
            return Err(Failure::invalid_field("max_seq_len", message));
        }
        let terms = SessionTerms {
            tenant: caller.tenant.clone(),
            engine: engine.manifest().key.clone(),
            idle_timeout: positive("idle_timeout", request.idle_timeout)?
                .unwrap_or(self.config.session_idle_timeout),
            end: end("ttl", request.ttl)?,
        };
        let state =
            engine.new_state(max_seq_len, &self.memory).map_err(|error| failure::of_memory(&error))?;
        let created = self.sessions.create(terms, state).map_err(|error| failure::of_session(&error))?;
        self.store(created).await
    }

    pub(super) async fn fork_session(
        &self,
        caller: &Caller,
        request: ForkSessionRequest,
    ) -> Result<Arc<Session>, Failure> {
        let session = self.session(caller, &request.session_id).await?;
        let loaded = self.engines.load(session.engine()).await;
        let engine = loaded.map_err(|error| failure::of_load(&error))?.engine;
        let terms = SessionTerms {
            idle_timeout: positive("idle_timeout", request.idle_timeout)?
                .unwrap_or(session.terms().idle_timeout),
            end: end("ttl", request.ttl)?.or(session.terms().end),
            ..session.terms().clone()
        };
        let state =
            engine.new_state(session.capacity(), &self.memory).map_err(|error| failure::of_memory(&error))?;
        let copied = session.history(request.num_tokens.map(|tokens| tokens as usize), state);
        let copied = copied.map_err(|error| failure::of_session(&error))?;
        let forked = self.sessions.create(terms, copied).map_err(|error| failure::of_session(&error))?;
        self.store(forked).await
    }

    pub(super) async fn truncate_session(
        &self,
        caller: &Caller,
        id: &str,
        num_tokens: usize,
    ) -> Result<Arc<Session>, Failure> {
        let session = self.session(caller, id).await?;
        session.truncate(num_tokens).map_err(|error| failure::of_session(&error))?;
        session.settled().await.map_err(|error| failure::of_session(&error))?;
        Ok(session)
    }

    /// Ends a session here and where it is stored.
    pub(super) async fn end_session(&self, caller: &Caller, id: &str) -> Result<(), Failure> {
        let deleted = self.sessions.delete(&caller.tenant, id);
        let Some(archive) = self.sessions.archive() else {
            return deleted.map(drop).map_err(|error| failure::of_session(&error));
        };
        match deleted {
            // What it has to store is stored before it is deleted there, not after.
            Ok(session) => drop(session.settled().await),
            Err(missing) => {
                let stored = archive.find(id).await.map_err(|error| failure::of_archive(&error))?;
                if stored.is_none_or(|stored| stored.record.tenant != caller.tenant) {
                    return Err(failure::of_session(&missing));
                }
            }
        }
        archive.delete(id).await.map_err(|error| failure::of_archive(&error))
    }

    pub(super) fn page_of_sessions(
        &self,
        caller: &Caller,
        request: &ListSessionsRequest,
    ) -> Result<(Vec<SessionInfo>, Option<u64>), Failure> {
        let page_size = match usize::try_from(request.page_size.unwrap_or_default()) {
            Ok(0) => DEFAULT_PAGE_SIZE,
            Ok(size) => size.min(MAX_PAGE_SIZE),
            Err(_) => return Err(Failure::invalid_field("page_size", "page_size is negative")),
        };
        let after =
            request.page_token.as_deref().filter(|token| !token.is_empty()).map(str::parse).transpose();
        let after = after
            .map_err(|_| Failure::invalid_field("page_token", "page_token is not one of this service"))?;
        let engine = request
            .engine_key
            .as_deref()
            .map(|text| EngineKey::parse(text).ok_or_else(|| failure::not_a_key(text)));
        let engine = engine.transpose()?;
        let filter = SessionFilter { tenant: &caller.tenant, engine: engine.as_ref(), is_busy: request.busy };
        Ok(self.sessions.list(&filter, after, page_size))
    }

    /// Stores a new session, so that another executor finds it before its first turn.
    async fn store(&self, session: Arc<Session>) -> Result<Arc<Session>, Failure> {
        if self.sessions.archive().is_some() {
            session.store_now().map_err(|error| failure::of_session(&error))?;
            session.settled().await.map_err(|error| failure::of_session(&error))?;
        }
        Ok(session)
    }
}

fn positive(field: &str, given: Option<prost_types::Duration>) -> Result<Option<Duration>, Failure> {
    match given.map(Duration::try_from) {
        None => Ok(None),
        Some(Ok(duration)) if duration > Duration::ZERO => Ok(Some(duration)),
        Some(_) => Err(Failure::invalid_field(field, format!("{field} is not a positive duration"))),
    }
}

fn end(field: &str, given: Option<prost_types::Duration>) -> Result<Option<SystemTime>, Failure> {
    let Some(duration) = positive(field, given)? else { return Ok(None) };
    let end = SystemTime::now().checked_add(duration);
    end.map(Some).ok_or_else(|| Failure::invalid_field(field, format!("{field} ends after all time")))
}
