//! The sessions of an executor: made, found, expired.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use roundhouse_engine::EngineKey;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Lease, SessionState};

/// A conversation with its cache.
pub struct Session {
    id: String,
    engine: EngineKey,
    capacity: usize,
    idle_timeout: Duration,
    created: SystemTime,
    sequence: u64,
    /// Cancelled when the session is deleted: ends the generation that runs in it.
    deleted: CancellationToken,
    slot: Mutex<Slot>,
}

struct Slot {
    /// `None` while leased.
    state: Option<SessionState>,
    /// Tokens when it was last here.
    num_tokens: usize,
    /// Bytes of its cache when it was last here.
    kv_bytes: u64,
    last_used: Instant,
}

/// What callers see of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Opaque.
    pub id: String,
    /// The engine.
    pub engine: EngineKey,
    /// Tokens in the history; of a busy one, when its generation began.
    pub num_tokens: usize,
    /// Tokens it can hold.
    pub capacity: usize,
    /// Bytes that its cache holds; of a busy one, when its generation began.
    pub kv_bytes: u64,
    /// Whether a generation runs in it.
    pub busy: bool,
    /// When it was made.
    pub created: SystemTime,
    /// When it expires unless used; of a busy one, as if its generation ended now.
    pub expires: SystemTime,
}

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
    /// No more may be made.
    #[error("there are {limit} sessions, which is the limit")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}

impl Session {
    /// Opaque and not to be guessed.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The engine it is for.
    #[must_use]
    pub fn engine(&self) -> &EngineKey {
        &self.engine
    }

    /// Cancelled when the session is deleted.
    #[must_use]
    pub fn deleted(&self) -> &CancellationToken {
        &self.deleted
    }

    /// Takes the state for a generation.
    ///
    /// # Errors
    /// [`SessionError::Busy`] when another one has it.
    pub fn lease(self: &Arc<Self>) -> Result<Lease, SessionError> {
        let mut slot = self.slot.lock();
        let mut state = slot.state.take().ok_or_else(|| SessionError::Busy { id: self.id.clone() })?;
        slot.num_tokens = state.tokens.len();
        slot.kv_bytes = state.cache.reserved();
        state.cache.set_idle(false);
        Ok(Lease::of_session(state, Arc::clone(self)))
    }

    pub(super) fn give_back(&self, mut state: SessionState) {
        let mut slot = self.slot.lock();
        slot.last_used = Instant::now();
        slot.num_tokens = state.tokens.len();
        slot.kv_bytes = state.cache.reserved();
        // A deleted session's memory is free as soon as its generation is over.
        if !self.deleted.is_cancelled() {
            state.cache.set_idle(true);
            slot.state = Some(state);
        }
    }

    /// Drops the cache, unless a generation runs in it; how many bytes that gave. The next generation computes the
    /// history again.
    fn drop_idle_cache(&self) -> u64 {
        let mut slot = self.slot.lock();
        slot.kv_bytes = if slot.state.is_some() { 0 } else { slot.kv_bytes };
        slot.state.as_mut().map_or(0, |state| state.cache.clear())
    }

    /// Since when no generation runs in it, and the bytes that its cache holds meanwhile; `None` while busy.
    fn idle_cache(&self) -> Option<(Instant, u64)> {
        let slot = self.slot.lock();
        slot.state.as_ref().map(|state| (slot.last_used, state.cache.reserved()))
    }

    /// What callers see of it.
    #[must_use]
    pub fn info(&self) -> SessionInfo {
        let slot = self.slot.lock();
        let busy = slot.state.is_none();
        let idle = if busy { Duration::ZERO } else { slot.last_used.elapsed() };
        SessionInfo {
            id: self.id.clone(),
            engine: self.engine.clone(),
            num_tokens: slot.num_tokens,
            capacity: self.capacity,
            kv_bytes: slot.kv_bytes,
            busy,
            created: self.created,
            expires: SystemTime::now() + self.idle_timeout.saturating_sub(idle),
        }
    }

    /// How long until it expires; `None` while busy.
    fn remaining(&self, now: Instant) -> Option<Duration> {
        let slot = self.slot.lock();
        slot.state.as_ref()?;
        Some(self.idle_timeout.saturating_sub(now.saturating_duration_since(slot.last_used)))
    }

    fn delete(&self) {
        self.deleted.cancel();
        self.slot.lock().state = None;
    }
}

/// All sessions of an executor.
pub struct Sessions {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next_sequence: u64,
    by_id: BTreeMap<String, Arc<Session>>,
}

impl Sessions {
    /// At most `limit` sessions.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, inner: Mutex::new(Inner::default()) }
    }

    /// Adds a session around a fresh state.
    ///
    /// # Errors
    /// [`SessionError::TooMany`].
    pub fn create(
        &self,
        engine: EngineKey,
        mut state: SessionState,
        idle_timeout: Duration,
    ) -> Result<Arc<Session>, SessionError> {
        state.cache.set_idle(true);
        let mut inner = self.inner.lock();
        if inner.by_id.len() >= self.limit {
            return Err(SessionError::TooMany { limit: self.limit });
        }
        let sequence = inner.next_sequence;
        inner.next_sequence += 1;
        let session = Arc::new(Session {
            // 122 random bits from the system's generator.
            id: Uuid::new_v4().simple().to_string(),
            engine,
            capacity: state.cache.capacity(),
            idle_timeout,
            created: SystemTime::now(),
            sequence,
            deleted: CancellationToken::new(),
            slot: Mutex::new(Slot {
                num_tokens: state.tokens.len(),
                kv_bytes: state.cache.reserved(),
                state: Some(state),
                last_used: Instant::now(),
            }),
        });
        inner.by_id.insert(session.id.clone(), Arc::clone(&session));
        Ok(session)
    }

    /// The session of this ID.
    ///
    /// # Errors
    /// [`SessionError::NotFound`].
    pub fn get(&self, id: &str) -> Result<Arc<Session>, SessionError> {
        let found = self.inner.lock().by_id.get(id).map(Arc::clone);
        found.ok_or_else(|| SessionError::NotFound { id: id.to_owned() })
    }

    /// Ends a session and the generation that runs in it.
    ///
    /// # Errors
    /// [`SessionError::NotFound`].
    pub fn delete(&self, id: &str) -> Result<(), SessionError> {
        let removed = self.inner.lock().by_id.remove(id);
        let session = removed.ok_or_else(|| SessionError::NotFound { id: id.to_owned() })?;
        session.delete();
        Ok(())
    }

    /// Ends every session of an engine.
    pub fn delete_of_engine(&self, engine: &EngineKey) {
        self.remove_where(|session| session.engine == *engine);
    }

    /// Up to `limit` sessions, oldest first, after the one whose sequence number is `after`; with the number to go on
    /// from if there are more.
    #[must_use]
    pub fn list(&self, after: Option<u64>, limit: usize) -> (Vec<SessionInfo>, Option<u64>) {
        let mut sessions: Vec<_> = self.inner.lock().by_id.values().map(Arc::clone).collect();
        sessions.retain(|session| after.is_none_or(|after| session.sequence > after));
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

    /// Ends the sessions that have been idle for their timeout, and says when the next one would be.
    pub fn expire(&self, now: Instant) -> Option<Duration> {
        self.remove_where(|session| session.remaining(now) == Some(Duration::ZERO));
        self.inner.lock().by_id.values().filter_map(|session| session.remaining(now)).min()
    }

    fn remove_where(&self, condition: impl Fn(&Session) -> bool) {
        let mut inner = self.inner.lock();
        inner.by_id.retain(|_, session| {
            let remove = condition(session);
            if remove {
                session.delete();
            }
            !remove
        });
    }
}
