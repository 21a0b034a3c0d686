//! One sequence's way to the prefix cache.

use std::sync::Arc;

use roundhouse_backend::{BackendError, Model};

use super::{BLOCK_TOKENS, BlockKey, PinnedPrefix, PrefixCache};
use crate::images::SequenceImage;
use crate::session::KvCache;

/// What a generation shares with others: its cache takes in the blocks that others computed, and what it computes is
/// taken from it block by block, as soon as a block is whole, while layers with sliding windows still hold it. The history
/// must only grow meanwhile.
pub struct SharedPrefix {
    cache: Arc<PrefixCache>,
    root: BlockKey,
    /// Those of the history, which tokens alone do not tell apart.
    images: Vec<SequenceImage>,
    /// Tokens to take in at most, where not all but the last.
    limit: Option<usize>,
    /// The names of the history's whole blocks, as far as they were needed.
    path: Vec<BlockKey>,
    /// The first blocks that need not be looked at again.
    shared: usize,
    has_looked: bool,
    /// Whether there is no point in going on: the backend copies nothing, or a block is missing that others follow.
    is_over: bool,
}

impl SharedPrefix {
    /// For a sequence with these images among those of `root`. The cache takes in all tokens but the last at most, or `limit`.
    #[must_use]
    pub fn new(
        cache: Arc<PrefixCache>,
        root: BlockKey,
        images: Vec<SequenceImage>,
        limit: Option<usize>,
    ) -> Self {
        let is_over = !cache.is_enabled();
        Self { cache, root, images, limit, path: Vec::new(), shared: 0, has_looked: false, is_over }
    }

    /// Brings the blocks of these tokens back from disk, where they are there. Reads files.
    pub fn prefetch(&self, tokens: &[u32]) {
        if !self.is_over {
            self.cache.fetch(&self.root.path(tokens, &self.images));
        }
    }

    /// Keeps what there is of the blocks of these tokens, for as long as the result lives.
    #[must_use]
    pub fn pin(&self, tokens: &[u32]) -> Option<PinnedPrefix> {
        self.cache.pin(self.root.path(tokens, &self.images))
    }

    /// Takes the longest prefix of `tokens` that there is into the sequence's cache, unless that has tokens and was looked
    /// at before; how many tokens it gained. Where anything fails the tokens are left to be computed.
    pub fn refill(&mut self, tokens: &[u32], cache: &mut KvCache, model: &dyn Model) -> usize {
        let is_first = !std::mem::replace(&mut self.has_looked, true);
        if self.is_over || !(is_first || cache.is_empty()) {
            return 0;
        }
        let held = cache.len();
        let gained = self.take_in(tokens, cache, model);
        if is_first {
            self.cache.count(tokens.len() - held.min(tokens.len()), gained);
        }
        gained
    }

    fn take_in(&mut self, tokens: &[u32], cache: &mut KvCache, model: &dyn Model) -> usize {
        let held = cache.len();
        let limit = self.limit.unwrap_or(usize::MAX).min(tokens.len().saturating_sub(1));
        let last = limit.div_ceil(BLOCK_TOKENS).min(tokens.len() / BLOCK_TOKENS);
        self.path = self.root.path(&tokens[..last * BLOCK_TOKENS], &self.images);
        let mut first = held / BLOCK_TOKENS;
        let mut blocks = self.cache.resident(self.path.get(first..).unwrap_or_default());
        let reach = |first: usize, blocks: usize| ((first + blocks) * BLOCK_TOKENS).min(limit);
        if reach(first, blocks.len()) <= held {
            return 0;
        }
        // A block begins where the cache ends.
        cache.truncate(first * BLOCK_TOKENS);
        if cache.len() < first * BLOCK_TOKENS {
            first = 0;
            blocks = self.cache.resident(&self.path);
        }
        if cache.reserve(reach(first, blocks.len()).max(held)).is_err() {
            return 0;
        }
        let Ok(opened) = cache.open(model) else { return 0 };
        for block in &blocks {
            if let Err(error) = opened.import(block) {
                self.is_over |= matches!(error, BackendError::Unsupported { .. });
                tracing::debug!(%error, "a block of the prefix cache was not taken in");
                break;
            }
        }
        cache.truncate(limit);
        cache.len().saturating_sub(held)
    }

    /// Gives the blocks that the sequence's cache has completed.
    pub fn share(&mut self, tokens: &[u32], cache: &mut KvCache) {
        let whole = cache.len().min(tokens.len()) / BLOCK_TOKENS;
        if self.is_over || whole <= self.shared {
            return;
        }
        while self.path.len() < whole {
            let first = self.path.len() * BLOCK_TOKENS;
            let last = self.path.last().copied().unwrap_or(self.root);
            self.path.push(last.child_with(first, &tokens[first..first + BLOCK_TOKENS], &self.images));
        }
        let Some(computed) = cache.get() else { return };
        for index in self.shared..whole {
            let (key, parent) = (self.path[index], index.checked_sub(1).map(|index| self.path[index]));
            if !self.cache.touch(key) {
                let first = index * BLOCK_TOKENS;
                let taken = match computed.export(first..first + BLOCK_TOKENS) {
                    Ok(block) => self.cache.insert(key, parent, Arc::new(block)),
                    Err(error) => {
                        tracing::debug!(%error, "a block is not shared");
                        false
                    }
                };
                if !taken {
                    self.is_over = true;
                    return;
                }
            }
            self.shared = index + 1;
        }
    }
}
