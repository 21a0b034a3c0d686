//! The sessions of an executor: made, found, expired.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use roundhouse_engine::EngineKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::archive::Newer;
use super::live::{Phase, Slot};
use super::record::{time, unix_ms};
use super::{Session, SessionArchive, SessionInfo, SessionState, SessionTerms, StoredSession};

/// Why a session cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Unknown or expired.
    #[error("no session {id:?}: it never was, was deleted, or has expired")]
    NotFound {
        /// The ID given.
        id: String,
    },
    /// A generation runs in it.
    #[error("a generation is running in session {id:?}")]
    Busy {
        /// The session.
        id: String,
    },
    /// Another executor went on with it from the same turn, and was faster.
    #[error("session {id:?} went on in another executor: this turn is not part of it")]
    Overtaken {
        /// The session.
        id: String,
    },
    /// There is no such position in it.
    #[error("session {id:?} has {tokens} tokens, {len} were asked for")]
    Beyond {
        /// The session.
        id: String,
        /// The position asked for.
        len: usize,
        /// Its tokens.
        tokens: usize,
    },
    /// No more may be made.
    #[error("there are {limit} sessions, which is the limit")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}

/// Selects sessions.
#[derive(Debug, Clone, Copy)]
pub struct SessionFilter<'a> {
    /// Of this tenant.
    pub tenant: &'a str,
    /// Of this engine only.
    pub engine: Option<&'a EngineKey>,
    /// Only those in which a generation runs, or only the others.
    pub is_busy: Option<bool>,
}

/// All sessions of an executor.
pub struct Sessions {
    limit: usize,
    archive: Option<Arc<SessionArchive>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next_sequence: u64,
    by_id: BTreeMap<String, Arc<Session>>,
}

impl Sessions {
    /// At most `limit` sessions, stored in `archive` at the ends of their turns.
    #[must_use]
    pub fn new(limit: usize, archive: Option<Arc<SessionArchive>>) -> Self {
        Self { limit, archive, inner: Mutex::new(Inner::default()) }
    }

    /// Where they are stored.
    #[must_use]
    pub fn archive(&self) -> Option<&Arc<SessionArchive>> {
        self.archive.as_ref()
    }

    /// Adds a session around a fresh state.
    ///
    /// # Errors
    /// [`SessionError::TooMany`].
    pub fn create(&self, terms: SessionTerms, state: SessionState) -> Result<Arc<Session>, SessionError> {
        // 122 random bits from the system's generator.
        let id = Uuid::new_v4().simple().to_string();
        // As it is stored, so that it is the same wherever the session goes on.
        self.add(id, terms, time(unix_ms(SystemTime::now())), 0, state)
    }

    /// Adds a stored session around a state without a history; the one that is there already if it was faster.
    ///
    /// # Errors
    /// [`SessionError::TooMany`].
    pub fn restore(
        &self,
        id: &str,
        terms: SessionTerms,
        stored: StoredSession,
        mut state: SessionState,
    ) -> Result<Arc<Session>, SessionError> {
        state.tokens = stored.record.tokens;
        state.messages = stored.record.messages;
        state.turns = stored.record.turns;
        self.add(id.to_owned(), terms, time(stored.record.created_unix_ms), stored.version, state)
    }

    fn add(
        &self,
        id: String,
        terms: SessionTerms,
        created: SystemTime,
        version: u64,
        mut state: SessionState,
    ) -> Result<Arc<Session>, SessionError> {
        state.cache.set_idle(true);
        let mut inner = self.inner.lock();
        if let Some(session) = inner.by_id.get(&id) {
            return Ok(Arc::clone(session));
        }
        if inner.by_id.len() >= self.limit {
            return Err(SessionError::TooMany { limit: self.limit });
        }
        let sequence = inner.next_sequence;
        inner.next_sequence += 1;
        let session = Arc::new(Session {
            id,
            terms,
            capacity: state.cache.capacity(),
            created,
            sequence,
            writer: Uuid::new_v4().simple().to_string(),
            deleted: CancellationToken::new(),
            slot: Mutex::new(Slot {
                num_tokens: state.tokens.len(),
                kv_bytes: state.cache.reserved(),
                state: Some(state),
                last_used: Instant::now(),
                version,
            }),
            phase: watch::Sender::new(Phase::Idle),
            archive: self.archive.clone(),
        });
        inner.by_id.insert(session.id.clone(), Arc::clone(&session));
        Ok(session)
    }

    /// A tenant's session of this ID.
    ///
    /// # Errors
    /// [`SessionError::NotFound`], for another tenant's as well.
    pub fn get(&self, tenant: &str, id: &str) -> Result<Arc<Session>, SessionError> {
        let mut inner = self.inner.lock();
        let found = inner.by_id.get(id).filter(|session| session.terms.tenant == tenant).map(Arc::clone);
        match found {
            Some(session) if session.is_lost() => inner.by_id.remove(id),
            found => found,
        }
        .filter(|session| !session.is_lost())
        .ok_or_else(|| SessionError::NotFound { id: id.to_owned() })
    }

    /// As [`Sessions::get`], if it is what other executors left of it: one that they went on with is no longer here.
    ///
    /// # Errors
    /// [`SessionError::NotFound`].
    pub async fn get_current(&self, tenant: &str, id: &str) -> Result<Arc<Session>, SessionError> {
        let session = self.get(tenant, id)?;
        let (Some(archive), Some(version)) = (&self.archive, session.version()) else { return Ok(session) };
        match archive.newer(id, version, &session.writer).await {
            Ok(Newer::None) => Ok(session),
            Ok(Newer::Another | Newer::Deleted) => {
                self.forget(&session);
                Err(SessionError::NotFound { id: id.to_owned() })
            }
            // Should another one have gone on with it, the end of this turn finds out.
            Err(error) => {
                tracing::warn!(session = id, %error, "a session may be an old one");
                Ok(session)
            }
        }
    }

    /// Takes a session out of memory, unless another one has its place by now. A generation that runs in it goes on.
    fn forget(&self, session: &Arc<Session>) {
        let mut inner = self.inner.lock();
        if inner.by_id.get(&session.id).is_some_and(|found| Arc::ptr_eq(found, session)) {
            inner.by_id.remove(&session.id);
        }
    }

    /// Ends a tenant's session and the generation that runs in it.
    ///
    /// # Errors
    /// [`SessionError::NotFound`].
    pub fn delete(&self, tenant: &str, id: &str) -> Result<Arc<Session>, SessionError> {
        let session = self.get(tenant, id)?;
        self.forget(&session);
        session.delete();
        Ok(session)
    }

    /// Takes every session of an engine out of memory. Without an archive they end.
    pub fn remove_of_engine(&self, engine: &EngineKey) {
        let is_stored = self.archive.is_some();
        self.remove_where(
            |session| session.terms.engine == *engine,
            |session| {
                if !is_stored {
                    session.delete();
                }
            },
        );
    }

    /// Up to `limit` sessions that the filter lets pass, oldest first, after the one whose sequence number is `after`; with
    /// the number to go on from if there are more.
    #[must_use]
    pub fn list(
        &self,
        filter: &SessionFilter<'_>,
        after: Option<u64>,
        limit: usize,
    ) -> (Vec<SessionInfo>, Option<u64>) {
        let mut sessions: Vec<_> = self.inner.lock().by_id.values().map(Arc::clone).collect();
        sessions.retain(|session| {
            after.is_none_or(|after| session.sequence > after)
                && session.terms.tenant == filter.tenant
                && filter.engine.is_none_or(|engine| session.terms.engine == *engine)
                && filter.is_busy.is_none_or(|busy| session.version().is_none() == busy)
        });
        sessions.sort_by_key(|session| session.sequence);
        let more = sessions.len() > limit;
        sessions.truncate(limit);
        let next = sessions.last().filter(|_| more).map(|session| session.sequence);
        (sessions.iter().map(|session| session.info()).collect(), next)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().by_id.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops caches of sessions that no generation runs in, the least recently used ones first, until `bytes` are free;
    /// how many bytes that gave. Their histories stay.
    pub fn drop_idle_caches(&self, bytes: u64) -> u64 {
        let sessions: Vec<_> = self.inner.lock().by_id.values().map(Arc::clone).collect();
        let mut idle: Vec<_> = sessions
            .iter()
            .filter_map(|session| session.idle_cache().map(|(since, held)| (since, held, session)))
            .filter(|&(_, held, _)| held > 0)
            .collect();
        idle.sort_unstable_by_key(|&(since, ..)| since);
        let mut freed = 0;
        for (_, _, session) in idle {
            if freed >= bytes {
                break;
            }
            // One that is in use by now gives nothing.
            freed += session.drop_idle_cache();
        }
        freed
    }

    /// Drops the caches of an engine's sessions. Their histories stay.
    pub fn drop_caches_of(&self, engine: &EngineKey) {
        let sessions: Vec<_> = self.inner.lock().by_id.values().map(Arc::clone).collect();
        for session in sessions.iter().filter(|session| session.engine() == engine) {
            session.drop_idle_cache();
        }
    }

    /// Drops the caches of sessions that no generation has run in since then. Their histories stay.
    pub fn drop_caches_idle_since(&self, since: Instant) {
        let sessions: Vec<_> = self.inner.lock().by_id.values().map(Arc::clone).collect();
        for session in sessions {
            if session.idle_cache().is_some_and(|(used, held)| used <= since && held > 0) {
                session.drop_idle_cache();
            }
        }
    }

    /// Ends the sessions that have been idle for their timeout or are at their end, and says when the next one would be.
    pub fn expire(&self, now: Instant) -> Option<Duration> {
        self.remove_where(
            |session| session.remaining(now) == Some(Duration::ZERO),
            |session| {
                let version = session.version().unwrap_or_default();
                session.delete();
                if let Some(archive) = &self.archive {
                    archive.delete_expired(session.id.clone(), version, session.writer.clone());
                }
            },
        );
        self.inner.lock().by_id.values().filter_map(|session| session.remaining(now)).min()
    }

    fn remove_where(&self, condition: impl Fn(&Session) -> bool, end: impl Fn(&Session)) {
        let mut inner = self.inner.lock();
        inner.by_id.retain(|_, session| {
            let remove = condition(session);
            if remove {
                end(session);
            }
            !remove
        });
    }
}
