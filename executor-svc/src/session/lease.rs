//! The lease of a session's state by the generation that runs in it.

use std::sync::Arc;

use roundhouse_text::ChatMessage;

use super::{KvCache, Session};

/// What a session holds between its generations.
pub struct SessionState {
    /// Its keys and values: of a prefix of `tokens`.
    pub cache: KvCache,
    /// Every token so far, prompts and outputs.
    pub tokens: Vec<u32>,
    /// The conversation so far, where turns came as messages.
    pub messages: Vec<ChatMessage>,
}

/// A [`SessionState`] for as long as a generation runs. Dropping it, however the generation ended, returns the state
/// to its session, or frees it when it belongs to none (any more).
pub struct Lease {
    state: Option<SessionState>,
    session: Option<Arc<Session>>,
}

impl Lease {
    /// Of a state that belongs to no session: it is freed when dropped.
    #[must_use]
    pub fn ephemeral(state: SessionState) -> Self {
        Self { state: Some(state), session: None }
    }

    pub(super) fn of_session(state: SessionState, session: Arc<Session>) -> Self {
        Self { state: Some(state), session: Some(session) }
    }

    /// The session, if the state belongs to one.
    #[must_use]
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.session.as_ref()
    }

    /// The state. It is there until the lease is dropped.
    pub fn state(&mut self) -> Option<&mut SessionState> {
        self.state.as_mut()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(state), Some(session)) = (self.state.take(), self.session.take()) {
            session.give_back(state);
        }
    }
}
