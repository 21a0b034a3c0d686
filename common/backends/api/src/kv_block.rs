//! Keys and values of a part of a sequence, outside of any cache.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::BackendError;

/// The keys and values of consecutive positions of a sequence, all layers together (without a cache, the tokens), in
/// host memory. They depend on the tokens of the positions and on all tokens before them. Only caches of the engine that
/// it is of can take it in, whichever process loaded that.
#[derive(Clone, PartialEq, Eq)]
pub struct KvBlock {
    engine: Arc<str>,
    positions: Range<usize>,
    bytes: Vec<u8>,
}

impl KvBlock {
    /// A block of an engine, by its key. The layout of `bytes` is the backend's own.
    #[must_use]
    pub fn new(engine: Arc<str>, positions: Range<usize>, bytes: Vec<u8>) -> Self {
        Self { engine, positions, bytes }
    }

    /// The engine's key.
    #[must_use]
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// Which positions of the sequence.
    #[must_use]
    pub fn positions(&self) -> Range<usize> {
        self.positions.clone()
    }

    /// What the backend wrote.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether a cache of an engine that holds `length` of at most `capacity` tokens can go on with this block, if a
    /// block of as many positions has `bytes` bytes there.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] for another engine's block, one that does not begin where the cache ends, or
    /// one of another size; [`BackendError::CacheFull`].
    pub fn check_follows(
        &self,
        engine: &str,
        length: usize,
        capacity: usize,
        bytes: usize,
    ) -> Result<(), BackendError> {
        let invalid = |what: String| Err(BackendError::InvalidArgument(what));
        if *self.engine != *engine {
            return invalid(format!("{self:?} is no block of engine {engine}"));
        }
        if self.positions.start != length || self.positions.is_empty() {
            return invalid(format!("{self:?} does not go on from a cache of {length} tokens"));
        }
        if self.positions.end > capacity {
            return Err(BackendError::CacheFull { tokens: self.positions.len(), length, capacity });
        }
        if self.bytes.len() != bytes {
            return invalid(format!("{self:?}: expected {bytes} bytes"));
        }
        Ok(())
    }
}

/// The bytes are left out.
impl fmt::Debug for KvBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvBlock")
            .field("engine", &self.engine)
            .field("positions", &self.positions)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}
