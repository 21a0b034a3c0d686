//! A session in memory.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use roundhouse_engine::EngineKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::record::{millis, unix_ms};
use super::{ArchiveError, Lease, SessionArchive, SessionError, SessionRecord, SessionState};

/// A conversation with its cache.
pub struct Session {
    pub(super) id: String,
    pub(super) terms: SessionTerms,
    pub(super) capacity: usize,
    pub(super) created: SystemTime,
    pub(super) sequence: u64,
    /// What it is known by in the records that it writes.
    pub(super) writer: String,
    /// Cancelled when the session is deleted: ends the generation that runs in it.
    pub(super) deleted: CancellationToken,
    pub(super) slot: Mutex<Slot>,
    pub(super) phase: watch::Sender<Phase>,
    /// Where it is stored at the end of each turn, if anywhere.
    pub(super) archive: Option<Arc<SessionArchive>>,
}

/// What a session is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionTerms {
    /// Whose it is.
    pub tenant: String,
    /// The engine.
    pub engine: EngineKey,
    /// How long it lives without a request.
    pub idle_timeout: Duration,
    /// When it ends however it is used.
    pub end: Option<SystemTime>,
}

pub(super) struct Slot {
    /// `None` while leased or being stored.
    pub(super) state: Option<SessionState>,
    /// Tokens when it was last here.
    pub(super) num_tokens: usize,
    /// Bytes of its cache when it was last here.
    pub(super) kv_bytes: u64,
    pub(super) last_used: Instant,
    /// Its stored version; 0 for none.
    pub(super) version: u64,
}

/// What goes on in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing.
    Idle,
    /// A generation runs, or its end is being stored.
    Busy,
    /// Another executor has gone on with it: it is of no use here.
    Overtaken,
    /// Another executor has deleted it.
    Deleted,
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

impl Session {
    /// Opaque and not to be guessed.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it is made for.
    #[must_use]
    pub fn terms(&self) -> &SessionTerms {
        &self.terms
    }

    /// The engine it is for.
    #[must_use]
    pub fn engine(&self) -> &EngineKey {
        &self.terms.engine
    }

    /// Tokens that it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// When it was made, in whichever executor.
    #[must_use]
    pub fn created(&self) -> SystemTime {
        self.created
    }

    /// Cancelled when the session is deleted.
    #[must_use]
    pub fn deleted(&self) -> &CancellationToken {
        &self.deleted
    }

    /// Its stored version; 0 for none. `None` while busy.
    pub(super) fn version(&self) -> Option<u64> {
        let slot = self.slot.lock();
        slot.state.as_ref().map(|_| slot.version)
    }

    /// Whether other executors have made it useless here.
    pub(super) fn is_lost(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Overtaken | Phase::Deleted)
    }

    fn busy(&self) -> SessionError {
        SessionError::Busy { id: self.id.clone() }
    }

    /// Takes the state for a generation.
    ///
    /// # Errors
    /// [`SessionError::Busy`] when another one has it.
    pub fn lease(self: &Arc<Self>) -> Result<Lease, SessionError> {
        let mut slot = self.slot.lock();
        let mut state = slot.state.take().ok_or_else(|| self.busy())?;
        slot.num_tokens = state.tokens.len();
        slot.kv_bytes = state.cache.reserved();
        state.cache.set_idle(false);
        self.phase.send_replace(Phase::Busy);
        Ok(Lease::of_session(state, Arc::clone(self)))
    }

    pub(super) fn give_back(self: &Arc<Self>, mut state: SessionState) {
        state.revert_turn();
        let mut slot = self.slot.lock();
        slot.last_used = Instant::now();
        slot.num_tokens = state.tokens.len();
        slot.kv_bytes = state.cache.reserved();
        // A deleted session's memory is free as soon as its generation is over.
        if self.deleted.is_cancelled() {
            self.phase.send_replace(Phase::Idle);
            return;
        }
        state.cache.set_idle(true);
        let is_changed = std::mem::take(&mut state.is_changed);
        if is_changed {
            state.end_turn();
        }
        match &self.archive {
            Some(archive) if is_changed => {
                let (session, version, record) = (Arc::clone(self), slot.version, self.record(&state));
                archive.spawn(async move { session.store(state, version, record).await });
            }
            _ => {
                slot.state = Some(state);
                self.phase.send_replace(Phase::Idle);
            }
        }
    }

    async fn store(self: Arc<Self>, mut state: SessionState, version: u64, record: SessionRecord) {
        let Some(archive) = &self.archive else { return };
        let stored = archive.save(&self.id, version, record).await;
        let mut slot = self.slot.lock();
        let phase = match stored {
            Ok(version) => {
                slot.version = version;
                Phase::Idle
            }
            Err(ArchiveError::Overtaken { .. }) => Phase::Overtaken,
            Err(ArchiveError::Deleted { .. }) => Phase::Deleted,
            // It goes on here, and its next turn is stored with this one.
            Err(error) => {
                tracing::error!(session = self.id, %error, "a turn is not stored");
                state.is_changed = true;
                Phase::Idle
            }
        };
        if phase == Phase::Idle && !self.deleted.is_cancelled() {
            slot.state = Some(state);
        }
        self.phase.send_replace(phase);
    }

    fn record(&self, state: &SessionState) -> SessionRecord {
        SessionRecord {
            format: SessionRecord::FORMAT,
            writer: self.writer.clone(),
            tenant: self.terms.tenant.clone(),
            engine: self.terms.engine.to_string(),
            max_seq_len: self.capacity,
            idle_timeout_ms: millis(self.terms.idle_timeout),
            end_unix_ms: self.terms.end.map(unix_ms),
            created_unix_ms: unix_ms(self.created),
            used_unix_ms: unix_ms(SystemTime::now()),
            tokens: state.tokens.clone(),
            messages: state.messages.clone(),
            turns: state.turns.clone(),
        }
    }

    /// Waits until no generation runs in it and the last one's end is stored.
    ///
    /// # Errors
    /// [`SessionError::Overtaken`] when another executor went on with it, and this one's last turn is not part of it;
    /// [`SessionError::NotFound`] when another executor has deleted it.
    pub async fn settled(&self) -> Result<(), SessionError> {
        let mut phase = self.phase.subscribe();
        let phase = phase.wait_for(|phase| *phase != Phase::Busy).await.map(|phase| *phase);
        match phase {
            Ok(Phase::Overtaken) => Err(SessionError::Overtaken { id: self.id.clone() }),
            Ok(Phase::Deleted) => Err(SessionError::NotFound { id: self.id.clone() }),
            _ => Ok(()),
        }
    }

    /// Its history up to `len` tokens, or all of it, put into a state without one. What is shared of its keys and values is
    /// kept until the other one's cache has taken it in.
    ///
    /// # Errors
    /// [`SessionError::Busy`], [`SessionError::Beyond`].
    pub fn history(&self, len: Option<usize>, mut copy: SessionState) -> Result<SessionState, SessionError> {
        let slot = self.slot.lock();
        let state = slot.state.as_ref().ok_or_else(|| self.busy())?;
        let len = self.check_position(len.unwrap_or(state.tokens.len()), state.tokens.len())?;
        copy.tokens.clone_from(&state.tokens);
        copy.set_images(state.images().to_vec());
        copy.messages.clone_from(&state.messages);
        copy.turns.clone_from(&state.turns);
        copy.truncate(len);
        copy.pinned = state.shared.as_ref().and_then(|shared| shared.pin(&copy.tokens));
        Ok(copy)
    }

    /// Forgets all tokens from `len` on.
    ///
    /// # Errors
    /// [`SessionError::Busy`], [`SessionError::Beyond`].
    pub fn truncate(self: &Arc<Self>, len: usize) -> Result<(), SessionError> {
        let mut lease = self.lease()?;
        let Some(state) = lease.state() else { return Err(self.busy()) };
        let len = self.check_position(len, state.tokens.len())?;
        state.truncate(len);
        Ok(())
    }

    fn check_position(&self, len: usize, tokens: usize) -> Result<usize, SessionError> {
        match len <= tokens {
            true => Ok(len),
            false => Err(SessionError::Beyond { id: self.id.clone(), len, tokens }),
        }
    }

    /// Stores it as it is, though nothing ran in it yet.
    ///
    /// # Errors
    /// [`SessionError::Busy`].
    pub fn store_now(self: &Arc<Self>) -> Result<(), SessionError> {
        if let Some(state) = self.lease()?.state() {
            state.is_changed = true;
        }
        Ok(())
    }

    /// Drops the cache, unless a generation runs in it; how many bytes that gave. The next generation computes the
    /// history again, or takes what is shared of it.
    pub(super) fn drop_idle_cache(&self) -> u64 {
        let mut slot = self.slot.lock();
        slot.kv_bytes = if slot.state.is_some() { 0 } else { slot.kv_bytes };
        slot.state.as_mut().map_or(0, |state| state.cache.clear())
    }

    /// Since when no generation runs in it, and the bytes that its cache holds meanwhile; `None` while busy.
    pub(super) fn idle_cache(&self) -> Option<(Instant, u64)> {
        let slot = self.slot.lock();
        slot.state.as_ref().map(|state| (slot.last_used, state.cache.reserved()))
    }

    /// What callers see of it.
    #[must_use]
    pub fn info(&self) -> SessionInfo {
        let slot = self.slot.lock();
        let busy = slot.state.is_none();
        let idle = if busy { Duration::ZERO } else { slot.last_used.elapsed() };
        let expires = SystemTime::now() + self.terms.idle_timeout.saturating_sub(idle);
        SessionInfo {
            id: self.id.clone(),
            engine: self.terms.engine.clone(),
            num_tokens: slot.num_tokens,
            capacity: self.capacity,
            kv_bytes: slot.kv_bytes,
            busy,
            created: self.created,
            expires: self.terms.end.map_or(expires, |end| expires.min(end)),
        }
    }

    /// How long until it expires; `None` while busy.
    pub(super) fn remaining(&self, now: Instant) -> Option<Duration> {
        let slot = self.slot.lock();
        slot.state.as_ref()?;
        let idle = self.terms.idle_timeout.saturating_sub(now.saturating_duration_since(slot.last_used));
        let end = self.terms.end.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        Some(end.map_or(idle, |end| idle.min(end)))
    }

    pub(super) fn delete(&self) {
        self.deleted.cancel();
        self.slot.lock().state = None;
    }
}
