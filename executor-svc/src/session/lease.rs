//! The lease of a session's state by the generation that runs in it.

use std::sync::Arc;

use roundhouse_backend::Model;
use roundhouse_text::ChatMessage;

use super::{KvCache, Session, TurnEnd};
use crate::images::SequenceImage;
use crate::prefix_cache::{PinnedPrefix, SharedPrefix};

/// What a session holds between its generations.
pub struct SessionState {
    /// Its keys and values: of a prefix of `tokens`.
    pub cache: KvCache,
    /// Every token so far, prompts and outputs.
    pub tokens: Vec<u32>,
    /// The images among them, in order; its cache has them too.
    images: Vec<SequenceImage>,
    /// The conversation so far, where turns came as messages.
    pub messages: Vec<ChatMessage>,
    /// The ends of its turns.
    pub turns: Vec<TurnEnd>,
    /// What the generation that runs, or the last one, shares with others; `None` for nothing.
    pub shared: Option<SharedPrefix>,
    /// Blocks that are kept until its cache has taken them in: a fork's, of what it was forked from.
    pub pinned: Option<PinnedPrefix>,
    /// Whether its history is another than the stored one.
    pub is_changed: bool,
    /// What the turn that has not had a step yet replaced.
    replaced: Option<Replaced>,
}

/// A turn's prompt, as it goes on from a history.
pub struct Turn {
    /// Tokens of the history that stay.
    pub keep: usize,
    /// What comes after them.
    pub new_tokens: Vec<u32>,
    /// The images of the whole sequence.
    pub images: Vec<SequenceImage>,
    /// The messages of the whole conversation.
    pub messages: Vec<ChatMessage>,
    /// The most tokens that the cache keeps.
    pub cached: usize,
}

/// What a turn's prompt takes the place of.
struct Replaced {
    /// Tokens of the history that stay.
    keep: usize,
    /// Those that went.
    tokens: Vec<u32>,
    images: Vec<SequenceImage>,
    messages: Vec<ChatMessage>,
    turns: Vec<TurnEnd>,
    shared: Option<SharedPrefix>,
    is_changed: bool,
}

impl SessionState {
    /// Without any history.
    #[must_use]
    pub fn new(cache: KvCache) -> Self {
        Self {
            cache,
            tokens: Vec::new(),
            images: Vec::new(),
            messages: Vec::new(),
            turns: Vec::new(),
            shared: None,
            pinned: None,
            is_changed: false,
            replaced: None,
        }
    }

    /// The images among its tokens, in order.
    #[must_use]
    pub fn images(&self) -> &[SequenceImage] {
        &self.images
    }

    /// Puts other images among its tokens.
    pub(super) fn set_images(&mut self, images: Vec<SequenceImage>) {
        self.cache.set_images(images.iter().map(SequenceImage::placed).collect());
        self.images = images;
    }

    /// Puts a turn's prompt after the history. Until [`SessionState::confirm_turn`] the session can have its history back.
    pub fn begin_turn(&mut self, turn: Turn) {
        let Turn { keep, new_tokens, images, messages, cached } = turn;
        let keep = keep.min(self.tokens.len());
        let tokens = self.tokens.split_off(keep);
        let kept = self.turns.iter().copied().filter(|turn| turn.tokens <= keep).collect();
        self.replaced = Some(Replaced {
            keep,
            tokens,
            images: self.images.clone(),
            messages: std::mem::replace(&mut self.messages, messages),
            turns: std::mem::replace(&mut self.turns, kept),
            shared: self.shared.take(),
            is_changed: std::mem::replace(&mut self.is_changed, true),
        });
        self.tokens.extend(new_tokens);
        self.cache.truncate(cached);
        self.set_images(images);
    }

    /// Makes the turn part of the history for good.
    pub fn confirm_turn(&mut self) {
        self.replaced = None;
    }

    /// Takes back a turn that was not confirmed.
    pub(super) fn revert_turn(&mut self) {
        let Some(replaced) = self.replaced.take() else { return };
        self.cache.truncate(replaced.keep);
        self.tokens.truncate(replaced.keep);
        self.tokens.extend(replaced.tokens);
        self.set_images(replaced.images);
        self.messages = replaced.messages;
        self.turns = replaced.turns;
        self.shared = replaced.shared;
        self.is_changed = replaced.is_changed;
    }

    /// Notes where a turn ended.
    pub(super) fn end_turn(&mut self) {
        let end = TurnEnd { tokens: self.tokens.len(), messages: self.messages.len() };
        if self.turns.last() != Some(&end) {
            self.turns.push(end);
        }
    }

    /// Forgets all tokens from `len` on, those of an image that would be cut as well, and the messages of the turns that ended
    /// after it.
    pub fn truncate(&mut self, len: usize) {
        let cut = self.images.iter().find(|image| image.first < len && image.end() > len);
        let len = cut.map_or(len, |image| image.first);
        self.tokens.truncate(len);
        self.turns.retain(|turn| turn.tokens <= len);
        self.messages.truncate(self.turns.last().map_or(0, |turn| turn.messages));
        self.cache.truncate(len);
        let kept = self.images.iter().filter(|image| image.end() <= len).cloned();
        self.set_images(kept.collect());
        self.is_changed = true;
    }

    /// Takes what others have computed of its history into its cache; how many tokens that gained.
    pub fn refill(&mut self, model: &dyn Model) -> usize {
        let gained = match &mut self.shared {
            Some(shared) => shared.refill(&self.tokens, &mut self.cache, model),
            None => 0,
        };
        self.pinned = None;
        gained
    }

    /// Gives others the blocks that its cache has completed.
    pub fn share(&mut self) {
        if let Some(shared) = &mut self.shared {
            shared.share(&self.tokens, &mut self.cache);
        }
    }
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
