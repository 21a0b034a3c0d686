//! What a sequence keeps between steps.

use std::any::Any;

use roundhouse_backend::{BackendError, Cache};

use crate::slots::TakenSlot;

/// What a sequence keeps between steps: its place in the device's memory, or its tokens where the engine has no cache.
pub(crate) struct TensorRtCache {
    /// The model that it is of.
    pub(crate) model: u64,
    /// Tokens that it can hold.
    pub(crate) capacity: usize,
    /// Bytes of device memory that are its own.
    pub(crate) device_bytes: u64,
    pub(crate) state: CacheState,
}

pub(crate) enum CacheState {
    /// All tokens so far.
    Tokens(Vec<u32>),
    /// A slot, which knows its length.
    Slot(TakenSlot),
}

impl TensorRtCache {
    /// The cache as that of the model with this ID.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] when it is another's.
    pub(crate) fn of(model: u64, cache: &mut dyn Cache) -> Result<&mut Self, BackendError> {
        let own = cache.as_any_mut().downcast_mut::<Self>().filter(|cache| cache.model == model);
        own.ok_or_else(|| BackendError::InvalidArgument("the cache is another model's".to_owned()))
    }

    /// Appends tokens that the device has.
    pub(crate) fn append(&mut self, tokens: &[u32]) {
        match &mut self.state {
            CacheState::Tokens(all) => all.extend_from_slice(tokens),
            CacheState::Slot(slot) => slot.set_length(slot.length() + tokens.len()),
        }
    }
}

impl Cache for TensorRtCache {
    fn len(&self) -> usize {
        match &self.state {
            CacheState::Tokens(tokens) => tokens.len(),
            CacheState::Slot(slot) => slot.length(),
        }
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    /// No layer forgets: windows are masks over caches that hold every token.
    fn truncate(&mut self, len: usize) -> usize {
        match &mut self.state {
            CacheState::Tokens(tokens) => tokens.truncate(len),
            CacheState::Slot(slot) if len < slot.length() => slot.set_length(len),
            CacheState::Slot(_) => {}
        }
        self.len()
    }

    fn bytes(&self) -> u64 {
        match &self.state {
            CacheState::Tokens(tokens) => (tokens.capacity() * size_of::<u32>()) as u64,
            CacheState::Slot(_) => self.device_bytes,
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
