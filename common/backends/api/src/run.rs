//! The runtime's side of a backend.

use std::any::Any;
use std::ops::{ControlFlow, Range};

use roundhouse_engine::{BackendKind, Component, EngineFiles, Manifest, MemoryPlan};

use crate::{BackendError, ComponentModel, ImageTokens, KvBlock};

/// Loads engines.
pub trait Runtime: Send + Sync {
    /// Which backend.
    fn kind(&self) -> BackendKind;

    /// Whether this machine can run an engine, from its manifest alone: asked before anything is downloaded.
    ///
    /// # Errors
    /// [`BackendError::Incompatible`] names both sides.
    fn check(&self, manifest: &Manifest) -> Result<(), BackendError>;

    /// Loads an engine from verified local files. Weights are mapped, not copied, where the backend can.
    ///
    /// # Errors
    /// When a file is broken or the machine cannot run it.
    fn load(&self, engine: &EngineFiles) -> Result<Box<dyn Model>, BackendError>;
}

/// A loaded engine. Shared by all its sessions; `forward` is called by one thread at a time.
pub trait Model: Send + Sync {
    /// Columns of the logits.
    fn vocab_size(&self) -> usize;

    /// The memory it uses: measured where it can be, else planned.
    fn memory_plan(&self) -> MemoryPlan;

    /// How its caches take memory.
    fn cache_growth(&self) -> CacheGrowth;

    /// An empty cache for one sequence of at most `max_seq_len` tokens.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] beyond the engine's own `max_seq_len`.
    fn new_cache(&self, max_seq_len: usize) -> Result<Box<dyn Cache>, BackendError>;

    /// Runs one step over a batch: each sequence's new tokens are appended to its cache, and the logits that it asked
    /// for are written into it. Prefill chunks and decode steps of any lengths mix freely. On an error before anything
    /// ran no cache has changed. A step that fails on the way leaves caches at the lengths they had, or empty where
    /// it had written over what they need to go on.
    ///
    /// # Errors
    /// [`BackendError::CacheFull`] or [`BackendError::InvalidArgument`] (a token outside the vocabulary, no tokens,
    /// another model's cache) before anything ran; [`BackendError::Device`] when the device failed.
    fn forward(&self, batch: &mut [Sequence<'_>]) -> Result<(), BackendError>;

    /// One of the engine's components beside the language model; `None` where the engine has none of this name: the
    /// default.
    fn component(&self, component: Component) -> Option<&dyn ComponentModel> {
        let _ = component;
        None
    }

    /// Runs steps of one new token a sequence that find the next tokens where the logits are. A first step appends
    /// [`GreedySequence::token`]; each of up to `steps - 1` more the token found before. Fewer steps may run; equally many
    /// of all sequences do.
    ///
    /// `each` is given the tokens that a step found, one a sequence, as soon as they are known; the next step may run
    /// meanwhile. A token is the largest logit's, the lower one among equals, or [`NOT_FINITE`]. Where `each` breaks no
    /// more steps begin; the tokens of one that has begun are still handed over.
    ///
    /// The caches end with the tokens but for the last one found. A caller that would have stopped earlier truncates
    /// them.
    ///
    /// Returns false, and has done nothing, where the backend finds no tokens itself, or none for a batch like this: the
    /// default.
    ///
    /// # Errors
    /// As [`Model::forward`], where the caches have no room for `steps` tokens before anything ran.
    fn decode_greedily(
        &self,
        batch: &mut [GreedySequence<'_>],
        steps: usize,
        each: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<bool, BackendError> {
        let _ = (batch, steps, each);
        Ok(false)
    }
}

/// How a cache takes memory as its tokens come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheGrowth {
    /// For the tokens that it has: memory of the system, which gives it when it is first touched.
    ByToken,
    /// For more positions than it needs, which are powers of two and those half as large again, so that sequences of about
    /// the same length use the same sizes: at least `first`, at most `most`.
    BySize {
        /// Positions of the smallest size.
        first: usize,
        /// Positions of the largest one.
        most: usize,
    },
    /// For so many positions at once, whatever its sequence needs.
    Whole(usize),
}

impl CacheGrowth {
    /// The positions that a cache of so many tokens has memory for.
    #[must_use]
    pub fn positions(self, tokens: usize) -> usize {
        match self {
            Self::ByToken => tokens,
            Self::Whole(positions) => positions,
            Self::BySize { first, most } => {
                let power = tokens.max(first).next_power_of_two();
                let between = power / 4 * 3;
                let size = if tokens <= between && between >= first { between } else { power };
                size.min(most.max(tokens))
            }
        }
    }
}

/// The keys and values (or, without a cache, the tokens) of one sequence.
pub trait Cache: Send {
    /// Tokens in it.
    fn len(&self) -> usize;

    /// Whether it holds none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens it can hold.
    fn capacity(&self) -> usize;

    /// Forgets all tokens from `len` on. Longer than [`Cache::len`] changes nothing.
    ///
    /// Returns the length reached, which is [`Cache::len`] from then on: `len` (or the length before, if shorter), or 0
    /// where a layer with a sliding window no longer holds the tokens before `len` that the next one sees. Then all
    /// tokens must be computed again.
    fn truncate(&mut self, len: usize) -> usize;

    /// Bytes that it holds for its [`Cache::capacity`].
    fn bytes(&self) -> u64;

    /// Copies the keys and values of some of its positions, at least one, into host memory.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] for positions that it never held, [`BackendError::PositionsLost`] where a layer
    /// with a sliding window has let go of some, [`BackendError::Unsupported`] where the backend cannot, whatever the
    /// positions: the default.
    fn export(&self, positions: Range<usize>) -> Result<KvBlock, BackendError> {
        let _ = positions;
        Err(BackendError::Unsupported { backend: "engine's", what: "copying keys and values".to_owned() })
    }

    /// Appends a block that begins where the cache ends: the cache then goes on, bit for bit, as the one that the block
    /// was exported from, if what was before it is the same too. On an error it has not changed.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] for another engine's block or one that does not begin at [`Cache::len`],
    /// [`BackendError::CacheFull`], [`BackendError::Unsupported`] as [`Cache::export`].
    fn import(&mut self, block: &KvBlock) -> Result<(), BackendError> {
        let _ = block;
        Err(BackendError::Unsupported { backend: "engine's", what: "copying keys and values".to_owned() })
    }

    /// Says that tokens to come are an image's: a step takes their embeddings and positions from it, and what comes after
    /// it goes on behind the image's positions. Images are placed in order, each before its first token is computed, and
    /// are forgotten where [`Cache::truncate`] cuts before them.
    ///
    /// # Errors
    /// As [`crate::SequenceImages::place`]; [`BackendError::Unsupported`] where the engine's model takes no images: the
    /// default.
    fn place_image(&mut self, image: ImageTokens) -> Result<(), BackendError> {
        let _ = image;
        Err(BackendError::Unsupported {
            backend: "engine's",
            what: "images among a sequence's tokens".to_owned(),
        })
    }

    /// For the backend to find its own type.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// Which logits a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsRequest {
    /// None: a prefill chunk that is not the last.
    None,
    /// The last new token's: `[1, vocab_size]`.
    Last,
    /// Every new token's: `[tokens, vocab_size]`.
    All,
}

/// What [`Model::decode_greedily`] finds where a logit is NaN or infinite.
pub const NOT_FINITE: u32 = u32::MAX;

/// One sequence's part of [`Model::decode_greedily`].
pub struct GreedySequence<'a> {
    /// Its cache.
    pub cache: &'a mut dyn Cache,
    /// Its new token.
    pub token: u32,
}

/// One sequence's part of a step.
pub struct Sequence<'a> {
    /// Its cache; the new tokens' positions go on from its length.
    pub cache: &'a mut dyn Cache,
    /// The new tokens, at least one.
    pub tokens: &'a [u32],
    /// Which logits to compute.
    pub request: LogitsRequest,
    /// Where they go, row-major, fp32; overwritten by `forward`.
    pub logits: &'a mut Vec<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_by_half_at_most_up_to_the_largest_size() {
        let growth = CacheGrowth::BySize { first: 256, most: 1000 };
        assert_eq!(
            [1, 256, 257, 384, 385, 512, 513, 769, 1000].map(|tokens| growth.positions(tokens)),
            [256, 256, 384, 384, 512, 512, 768, 1000, 1000]
        );
        let few = CacheGrowth::BySize { first: 256, most: 100 };
        assert_eq!([1, 100].map(|tokens| few.positions(tokens)), [100, 100]);
        assert_eq!(CacheGrowth::ByToken.positions(7), 7);
        assert_eq!(CacheGrowth::Whole(100).positions(7), 100);
    }
}
