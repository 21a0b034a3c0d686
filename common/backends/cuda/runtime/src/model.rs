//! A loaded engine and its steps.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use roundhouse_backend::{BackendError, Cache, CacheGrowth, GreedySequence, LogitsRequest, Model, Sequence};
use roundhouse_cuda_device::{Device, DeviceError};
use roundhouse_cuda_plan::{CacheLayout, StepLimits};
use roundhouse_engine::{CacheKind, MemoryPlan};

use crate::cache::CudaCache;
use crate::error;
use crate::executor::{Executor, MOST_TURNS};
use crate::pool::Pool;
use crate::step::Part;

/// Positions that a sequence has memory for at first.
const FIRST_POSITIONS: usize = 256;

/// A loaded engine.
pub(crate) struct CudaModel {
    /// Unlike any other model's of this process: caches carry it.
    id: u64,
    device: Arc<dyn Device>,
    vocab_size: usize,
    input_vocab_size: usize,
    whole: bool,
    limits: StepLimits,
    layout: Arc<CacheLayout>,
    memory: MemoryPlan,
    pool: Arc<Pool>,
    /// One step at a time: all share the buffers. Why there are no more steps, once the device is lost.
    executor: Mutex<(Executor, Option<DeviceError>)>,
}

/// A part of a sequence's tokens that runs in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// Which sequence of the batch.
    sequence: usize,
    /// Its first token among those that the call runs.
    first: usize,
    tokens: usize,
    /// How many of its last tokens' logits are wanted.
    rows: usize,
}

/// What a call runs of a sequence.
struct Work {
    /// Tokens before those.
    past: usize,
    /// Where its memory is, and for how many positions.
    memory: (u64, usize),
    tokens: Vec<u32>,
    /// The first of those whose logits are wanted.
    first_wanted: usize,
}

impl CudaModel {
    pub(crate) fn new(device: Arc<dyn Device>, pool: Arc<Pool>, executor: Executor) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let plan = executor.plan();
        let planned = plan.memory(0);
        let memory = MemoryPlan {
            weight_bytes: executor.weight_bytes(),
            workspace_bytes: executor.workspace_bytes(),
            ..planned
        };
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            vocab_size: plan.vocab_size,
            input_vocab_size: plan.input_vocab_size,
            whole: plan.cache_kind == CacheKind::None,
            limits: plan.limits,
            layout: Arc::new(plan.cache.clone()),
            memory,
            pool,
            executor: Mutex::new((executor, None)),
            device,
        }
    }

    /// Checks a batch before anything runs.
    fn check(&self, batch: &mut [Sequence<'_>]) -> Result<(), BackendError> {
        for sequence in batch {
            let cache = CudaCache::of(self.id, sequence.cache)?;
            let (tokens, length, capacity) = (sequence.tokens.len(), cache.begin(), cache.capacity());
            if tokens == 0 {
                return Err(BackendError::InvalidArgument("a sequence without new tokens".to_owned()));
            }
            self.check_tokens(sequence.tokens)?;
            if tokens > capacity - length {
                return Err(BackendError::CacheFull { tokens, length, capacity });
            }
        }
        Ok(())
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), BackendError> {
        let outside = tokens.iter().find(|&&token| token as usize >= self.input_vocab_size);
        outside.map_or(Ok(()), |token| {
            let what = format!("token {token} is outside of the vocabulary of {}", self.input_vocab_size);
            Err(BackendError::InvalidArgument(what))
        })
    }

    /// Runs steps that find the next tokens themselves.
    fn run_greedily(
        &self,
        executor: &mut Executor,
        batch: &mut [GreedySequence<'_>],
        steps: usize,
        each: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<(), DeviceError> {
        let mut places = Vec::with_capacity(batch.len());
        for sequence in batch.iter_mut() {
            let Ok(cache) = CudaCache::of(self.id, sequence.cache) else { continue };
            let past = cache.committed();
            cache.reserve(&*self.device, past + steps)?;
            let (kv, capacity) = cache.memory();
            places.push((kv, capacity, past, sequence.token));
        }
        let parts = places.iter().map(|(kv, capacity, past, token)| Part {
            kv: *kv,
            capacity: *capacity,
            past: *past,
            tokens: std::slice::from_ref(token),
            rows: 1,
        });
        let parts: Vec<Part<'_>> = parts.collect();
        let outcome = executor.greedy(&parts, steps, each);
        for (sequence, (_, _, past, _)) in batch.iter_mut().zip(&places) {
            let Ok(cache) = CudaCache::of(self.id, sequence.cache) else { continue };
            // Where it failed, any of them may have been written.
            cache.writes(past + outcome.as_ref().unwrap_or(&steps));
            cache.extend(*outcome.as_ref().unwrap_or(&0));
        }
        outcome.map(|_| ())
    }

    /// What runs of each sequence. Without a cache that is all of its tokens.
    fn work(&self, batch: &mut [Sequence<'_>], own_cache: (u64, usize)) -> Result<Vec<Work>, DeviceError> {
        let mut work = Vec::with_capacity(batch.len());
        for sequence in batch.iter_mut() {
            let Ok(cache) = CudaCache::of(self.id, sequence.cache) else { continue };
            let new = sequence.tokens.len();
            let (past, memory, tokens) = if self.whole {
                (0, own_cache, [cache.tokens(), sequence.tokens].concat())
            } else {
                let past = cache.committed();
                cache.reserve(&*self.device, past + new)?;
                (past, cache.memory(), sequence.tokens.to_vec())
            };
            let first_wanted = match sequence.request {
                LogitsRequest::None => tokens.len(),
                LogitsRequest::Last => tokens.len() - 1,
                LogitsRequest::All => tokens.len() - new,
            };
            work.push(Work { past, memory, tokens, first_wanted });
        }
        Ok(work)
    }

    /// Runs all of it and fills the logits.
    fn run(&self, executor: &mut Executor, batch: &mut [Sequence<'_>]) -> Result<(), DeviceError> {
        let work = self.work(batch, executor.own_cache())?;
        for sequence in batch.iter_mut() {
            sequence.logits.clear();
        }
        // Without a cache all share one memory, one after the other.
        let groups: Vec<std::ops::Range<usize>> = match self.whole {
            true => (0..work.len()).map(|index| index..index + 1).collect(),
            false => std::iter::once(0..work.len()).collect(),
        };
        for group in groups {
            for step in steps(&work, group, self.limits) {
                for piece in &step {
                    if let Ok(cache) = CudaCache::of(self.id, batch[piece.sequence].cache) {
                        cache.writes(work[piece.sequence].past + piece.first + piece.tokens);
                    }
                }
                let part = |piece: &Piece| {
                    let work = &work[piece.sequence];
                    let tokens = &work.tokens[piece.first..piece.first + piece.tokens];
                    let ((kv, capacity), past) = (work.memory, work.past + piece.first);
                    Part { kv, capacity, past, tokens, rows: piece.rows }
                };
                let parts: Vec<Part<'_>> = step.iter().map(part).collect();
                let mut pieces = step.iter().peekable();
                let logits = batch.iter_mut().enumerate().filter_map(|(index, sequence)| {
                    pieces.next_if(|piece| piece.sequence == index).map(|_| &mut *sequence.logits)
                });
                let mut logits: Vec<&mut Vec<f32>> = logits.collect();
                executor.run(&parts, &mut logits)?;
            }
        }
        Ok(())
    }
}

/// Cuts work into steps within `limits`, each sequence's pieces in order and at most one a step.
fn steps(work: &[Work], group: std::ops::Range<usize>, limits: StepLimits) -> Vec<Vec<Piece>> {
    let mut steps = Vec::new();
    let mut done = vec![0; work.len()];
    loop {
        let mut step = Vec::new();
        let (mut free_tokens, mut free_rows) = (limits.tokens, limits.rows);
        for sequence in group.clone() {
            let (first, work) = (done[sequence], &work[sequence]);
            // Wanted rows go as far as there is room for them.
            let unwanted = work.first_wanted.saturating_sub(first);
            let left = work.tokens.len() - first;
            let tokens = left.min(limits.chunk).min(free_tokens).min(unwanted + free_rows);
            if tokens == 0 {
                continue;
            }
            let rows = (first + tokens).saturating_sub(work.first_wanted.max(first));
            (free_tokens, free_rows) = (free_tokens - tokens, free_rows - rows);
            done[sequence] += tokens;
            step.push(Piece { sequence, first, tokens, rows });
        }
        if step.is_empty() {
            return steps;
        }
        steps.push(step);
    }
}

impl Drop for CudaModel {
    fn drop(&mut self) {
        // The sizes of its sequences may be no other engine's.
        self.pool.give_back();
    }
}

impl Model for CudaModel {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn memory_plan(&self) -> MemoryPlan {
        self.memory.clone()
    }

    fn cache_growth(&self) -> CacheGrowth {
        match self.whole {
            true => CacheGrowth::ByToken,
            false => CacheGrowth::BySize { first: FIRST_POSITIONS, most: self.limits.sequence },
        }
    }

    fn new_cache(&self, max_seq_len: usize) -> Result<Box<dyn Cache>, BackendError> {
        let longest = self.limits.sequence;
        if max_seq_len > longest {
            let what =
                format!("a cache for {max_seq_len} tokens: the engine was built for at most {longest}");
            return Err(BackendError::InvalidArgument(what));
        }
        let layout = Arc::clone(&self.layout);
        Ok(Box::new(match self.whole {
            true => CudaCache::of_tokens(self.id, max_seq_len, layout),
            false => {
                let pool = Arc::clone(&self.pool);
                CudaCache::new(self.id, max_seq_len, layout, self.cache_growth(), pool)
            }
        }))
    }

    fn forward(&self, batch: &mut [Sequence<'_>]) -> Result<(), BackendError> {
        let (executor, lost) = &mut *self.executor.lock();
        if let Some(why) = lost {
            return Err(error::device(why));
        }
        self.check(batch)?;
        if let Err(failure) = self.run(executor, batch) {
            if matches!(failure, DeviceError::Lost(_)) {
                *lost = Some(failure.clone());
            }
            return Err(error::device(&failure));
        }
        for sequence in batch {
            CudaCache::of(self.id, sequence.cache)?.commit(sequence.tokens);
        }
        Ok(())
    }

    fn decode_greedily(
        &self,
        batch: &mut [GreedySequence<'_>],
        steps: usize,
        each: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<bool, BackendError> {
        let (executor, lost) = &mut *self.executor.lock();
        if let Some(why) = lost {
            return Err(error::device(why));
        }
        if self.whole || batch.is_empty() || batch.len() > executor.most_greedy_sequences() {
            return Ok(false);
        }
        let steps = steps.clamp(1, MOST_TURNS);
        for sequence in batch.iter_mut() {
            self.check_tokens(&[sequence.token])?;
            let cache = CudaCache::of(self.id, sequence.cache)?;
            let (length, capacity) = (cache.begin(), cache.capacity());
            if steps > capacity - length {
                return Err(BackendError::CacheFull { tokens: steps, length, capacity });
            }
        }
        self.run_greedily(executor, batch, steps, each).map_err(|failure| {
            if matches!(failure, DeviceError::Lost(_)) {
                *lost = Some(failure.clone());
            }
            error::device(&failure)
        })?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(tokens: usize, wanted: usize) -> Work {
        Work { past: 0, memory: (0, 0), tokens: vec![0; tokens], first_wanted: tokens - wanted }
    }

    fn limits(tokens: usize, rows: usize) -> StepLimits {
        StepLimits { tokens, chunk: tokens, rows, sequences: 4, sequence: 100 }
    }

    #[test]
    fn long_prompts_run_in_pieces_beside_decode_steps() {
        let piece = |sequence, first, tokens, rows| Piece { sequence, first, tokens, rows };
        let found = steps(&[work(1, 1), work(20, 1), work(1, 1)], 0..3, limits(8, 8));
        let expected = [
            vec![piece(0, 0, 1, 1), piece(1, 0, 7, 0)],
            vec![piece(1, 7, 8, 0)],
            vec![piece(1, 15, 5, 1), piece(2, 0, 1, 1)],
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn wanted_rows_are_cut_where_there_is_no_room_for_more() {
        let piece = |first, tokens, rows| Piece { sequence: 1, first, tokens, rows };
        let found = steps(&[work(5, 1), work(10, 7)], 1..2, limits(8, 3));
        assert_eq!(found, [vec![piece(0, 6, 3)], vec![piece(6, 3, 3)], vec![piece(9, 1, 1)]]);
    }
}
