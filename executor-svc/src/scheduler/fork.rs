//! Several outputs of one prompt: the first generation computes it, and the others begin with its keys and values.

use std::sync::Arc;

use roundhouse_backend::{BackendError, KvBlock, Model};

use super::Request;
use crate::session::KvCache;

/// The keys and values of all tokens of a prompt but the last, which each generation computes for its own first logits.
#[derive(Debug, Clone)]
pub struct PromptBlocks(Arc<Vec<KvBlock>>);

impl PromptBlocks {
    /// How many tokens' they are.
    pub(super) fn tokens(&self) -> usize {
        self.0.last().map_or(0, |block| block.positions().end)
    }

    /// Takes them into an empty cache; how many tokens that were. Where anything fails, the rest is left to be computed.
    pub(super) fn take_in(&self, cache: &mut KvCache, model: &dyn Model) -> usize {
        let tokens = self.tokens();
        if tokens == 0 || !cache.is_empty() || cache.reserve(tokens).is_err() {
            return 0;
        }
        let Ok(opened) = cache.open(model) else { return 0 };
        for block in self.0.iter() {
            if let Err(error) = opened.import(block) {
                tracing::debug!(%error, "a prompt's keys and values were not taken in");
                break;
            }
        }
        cache.len()
    }
}

/// The generations that wait for the prompt of another one, which holds this, and what they will begin with.
#[derive(Default)]
pub(super) struct Forks {
    waiting: Vec<Request>,
    blocks: Vec<KvBlock>,
    /// Whether something of the prompt cannot be had: then each computes it.
    is_missing: bool,
}

impl Forks {
    pub(super) fn new(waiting: Vec<Request>) -> Self {
        Self { waiting, ..Self::default() }
    }

    /// Copies what the cache has of the prompt since the last time, before layers with sliding windows let go of it.
    pub(super) fn collect(&mut self, prompt_tokens: usize, cache: &mut KvCache) {
        if self.waiting.is_empty() || self.is_missing {
            return;
        }
        let first = self.blocks.last().map_or(0, |block| block.positions().end);
        let end = cache.len().min(prompt_tokens.saturating_sub(1));
        let Some(computed) = cache.get().filter(|_| first < end) else { return };
        match computed.export(first..end) {
            Ok(block) => self.blocks.push(block),
            Err(error) => {
                let is_expected =
                    matches!(error, BackendError::Unsupported { .. } | BackendError::PositionsLost { .. });
                if !is_expected {
                    tracing::warn!(%error, "the outputs of a prompt compute it each");
                }
                self.is_missing = true;
                self.blocks.clear();
            }
        }
    }

    /// Those that waited, with what there is of the prompt.
    pub(super) fn release(&mut self) -> Vec<Request> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let blocks = PromptBlocks(Arc::new(std::mem::take(&mut self.blocks)));
        let mut released = std::mem::take(&mut self.waiting);
        released.iter_mut().for_each(|request| request.prompt_blocks = Some(blocks.clone()));
        released
    }
}
