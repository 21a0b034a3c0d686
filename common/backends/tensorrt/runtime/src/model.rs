//! A loaded engine and its steps, for any thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use roundhouse_backend::{BackendError, Cache, CacheGrowth, LogitsRequest, Model, Sequence};
use roundhouse_engine::{CacheKind, EngineOptions, MemoryPlan};
use roundhouse_tensorrt_network::Network;
use roundhouse_weights::MappedWeights;

use crate::cache::{CacheState, TensorRtCache};
use crate::device::{Device, EngineSource};
use crate::executor::{Executor, Step, StepLimits, StepRow};
use crate::grouping::{Group, Limits, Pending, Row, group};
use crate::host::Host;
use crate::owner::Owner;
use crate::signature::Signature;
use crate::slots::{Slot, Slots, TakenSlot};

/// Bytes of logits that are computed at once, unless one token of each row has more.
const LOGITS_BYTES: usize = 256 << 20;

/// An engine's files, read and checked.
pub(crate) struct EngineParts {
    pub(crate) plan: PathBuf,
    pub(crate) network: Network,
    pub(crate) signature: Signature,
    pub(crate) weights: Option<MappedWeights>,
    pub(crate) options: EngineOptions,
    pub(crate) memory_plan: MemoryPlan,
    pub(crate) kernel_cache: Option<PathBuf>,
}

/// A loaded engine.
pub(crate) struct TensorRtModel<D: Device> {
    /// Unlike any other model's of this process: caches carry it.
    id: u64,
    owner: Arc<Owner<Host<D>>>,
    signature: Arc<Signature>,
    limits: Limits,
    /// Longest sequence that a cache is given for.
    max_seq_len: usize,
    slots: Arc<Mutex<Slots>>,
    memory: MemoryPlan,
    /// One step at a time: lengths of caches are read before and written after it.
    step: Mutex<()>,
}

/// The logits of one sequence, in the order of its runs.
struct Place {
    /// Which sequence of the step.
    sequence: usize,
    /// Logits that its row gives.
    values: usize,
}

impl<D: Device> TensorRtModel<D> {
    /// Loads an engine onto the device that `owner` owns.
    pub(crate) fn load(owner: Arc<Owner<Host<D>>>, parts: EngineParts) -> Result<Self, BackendError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let signature = Arc::new(parts.signature.clone());
        let limits = limits(&signature);
        let steps = StepLimits { rows: limits.rows, seq: limits.seq, logits: limits.logits };
        let slots = Arc::new(Mutex::new(Slots::new(signature.rows_per_slab())));
        let option = usize::try_from(parts.options.max_seq_len).unwrap_or(usize::MAX);
        let max_seq_len = signature.max_seq_len.min(option);
        let (for_executor, for_slots) = (Arc::clone(&signature), Arc::clone(&slots));
        let memory = owner.call(move |host| {
            let mut memory = MemoryPlan::default();
            host.load(id, |device| {
                let source = EngineSource {
                    plan: &parts.plan,
                    network: &parts.network,
                    weights: parts.weights.as_ref(),
                    options: &parts.options,
                    kernel_cache: parts.kernel_cache.clone(),
                };
                let planned = &parts.memory_plan;
                let executor = Executor::load(device, &source, for_executor, steps, for_slots, planned)?;
                memory = executor.memory_plan();
                Ok(executor)
            })?;
            Ok::<_, crate::DeviceError>(memory)
        });
        let memory = memory.and_then(|memory| memory)?;
        Ok(Self { id, owner, signature, limits, max_seq_len, slots, memory, step: Mutex::new(()) })
    }

    /// Checks a batch before anything runs.
    fn check(&self, batch: &mut [Sequence<'_>]) -> Result<(), BackendError> {
        let vocab_size = self.signature.input_vocab_size;
        for sequence in batch {
            let cache = TensorRtCache::of(self.id, sequence.cache)?;
            let (tokens, length, capacity) = (sequence.tokens.len(), cache.len(), cache.capacity);
            if tokens == 0 {
                return Err(BackendError::InvalidArgument("a sequence without new tokens".to_owned()));
            }
            if let Some(token) = sequence.tokens.iter().find(|&&token| token as usize >= vocab_size) {
                let what = format!("token {token} is outside of the vocabulary of {vocab_size}");
                return Err(BackendError::InvalidArgument(what));
            }
            if tokens > capacity.saturating_sub(length) {
                return Err(BackendError::CacheFull { tokens, length, capacity });
            }
        }
        Ok(())
    }

    /// The runs of a step over cached sequences.
    fn cached_steps(&self, batch: &mut [Sequence<'_>]) -> Result<Vec<(Step, Vec<Place>)>, BackendError> {
        let mut pending = Vec::with_capacity(batch.len());
        for sequence in batch.iter_mut() {
            let cache = TensorRtCache::of(self.id, sequence.cache)?;
            let (slot, past) = match &cache.state {
                CacheState::Slot(taken) => (taken.slot(), taken.length()),
                CacheState::Tokens(tokens) => (Slot { slab: 0, row: 0 }, tokens.len()),
            };
            pending.push(Pending { slot, past, tokens: sequence.tokens.len(), request: sequence.request });
        }
        // A length that shrinks after this only leaves more room behind it.
        let groups = {
            let slots = self.slots.lock();
            group(&pending, |slot| slots.length(slot), &self.limits)
        };
        Ok(groups.into_iter().map(|group| self.step_of(group, batch)).collect())
    }

    fn step_of(&self, group: Group, batch: &[Sequence<'_>]) -> (Step, Vec<Place>) {
        let mut places = Vec::new();
        let rows = group.rows.into_iter().map(|row| match row {
            Row::Active { sequence, first, past, wanted } => {
                let tokens = batch[sequence].tokens[first..first + group.seq].to_vec();
                places.push(Place { sequence, values: wanted.len() * self.signature.vocab_size });
                StepRow { past, tokens, wanted }
            }
            Row::Idle { past } => StepRow { past, tokens: Vec::new(), wanted: 0..0 },
        });
        let rows = rows.collect();
        (Step { slab: group.slab, first_row: group.first_row, seq: group.seq, rows }, places)
    }

    /// The runs of a step over sequences without a cache: each computes the whole sequence again, for whichever logits
    /// are wanted.
    fn whole_steps(&self, batch: &mut [Sequence<'_>]) -> Result<Vec<(Step, Vec<Place>)>, BackendError> {
        let mut steps = Vec::new();
        for (index, sequence) in batch.iter_mut().enumerate() {
            let cache = TensorRtCache::of(self.id, sequence.cache)?;
            let CacheState::Tokens(past) = &cache.state else { continue };
            let all = [&past[..], sequence.tokens].concat();
            let mut run = |tokens: &[u32], first_wanted: usize| {
                let wanted = first_wanted..tokens.len();
                let values = wanted.len() * self.signature.vocab_size;
                let row = StepRow { past: 0, tokens: tokens.to_vec(), wanted };
                let step = Step { slab: 0, first_row: 0, seq: tokens.len(), rows: vec![row] };
                steps.push((step, vec![Place { sequence: index, values }]));
            };
            match sequence.request {
                LogitsRequest::None => {}
                LogitsRequest::Last => run(&all, all.len() - 1),
                LogitsRequest::All if self.signature.all_logits => run(&all, past.len()),
                LogitsRequest::All => {
                    (past.len() + 1..=all.len()).for_each(|length| run(&all[..length], length - 1));
                }
            }
        }
        Ok(steps)
    }

    /// Runs steps in order; the logits of each.
    fn run(&self, steps: Vec<Step>) -> Result<Vec<Vec<f32>>, BackendError> {
        let id = self.id;
        let work = move |host: &mut Host<D>| {
            host.with(id, |executor, device| steps.iter().map(|step| executor.run(device, step)).collect())
        };
        Ok(self.owner.call(work).and_then(|logits| logits)?)
    }
}

/// What is run at once.
fn limits(signature: &Signature) -> Limits {
    let (rows, seq) = match signature.cache {
        CacheKind::InPlace => (signature.rows_per_slab(), signature.max_seq()),
        CacheKind::None | CacheKind::StaticV1 | CacheKind::StaticV2 => (1, signature.max_seq()),
    };
    let logits = match (signature.all_logits, signature.cache) {
        (false, _) => rows,
        // The sequence cannot be cut.
        (true, CacheKind::None) => seq,
        (true, _) => {
            let row_bytes = signature.vocab_size.saturating_mul(signature.logits.size()).max(1);
            (LOGITS_BYTES / row_bytes).clamp(rows, rows.saturating_mul(seq).max(rows))
        }
    };
    Limits { rows, seq, length: signature.max_seq_len, all_logits: signature.all_logits, logits }
}

impl<D: Device> Model for TensorRtModel<D> {
    fn vocab_size(&self) -> usize {
        self.signature.vocab_size
    }

    fn memory_plan(&self) -> MemoryPlan {
        self.memory.clone()
    }

    fn cache_growth(&self) -> CacheGrowth {
        CacheGrowth::Whole(self.max_seq_len)
    }

    fn new_cache(&self, max_seq_len: usize) -> Result<Box<dyn Cache>, BackendError> {
        if max_seq_len > self.max_seq_len {
            let longest = self.max_seq_len;
            let what =
                format!("a cache for {max_seq_len} tokens: the engine was built for at most {longest}");
            return Err(BackendError::InvalidArgument(what));
        }
        let state = match self.signature.cache {
            CacheKind::None => CacheState::Tokens(Vec::with_capacity(max_seq_len)),
            CacheKind::StaticV1 | CacheKind::StaticV2 | CacheKind::InPlace => {
                let (taken, only) = TakenSlot::take(&self.slots);
                // Its neighbours' slab has memory, or gets it at their first step.
                if only {
                    let (id, slab) = (self.id, taken.slot().slab);
                    let open = move |host: &mut Host<D>| {
                        host.with(id, |executor, device| executor.open_slab(device, slab))
                    };
                    self.owner.call(open).and_then(|opened| opened)?;
                }
                CacheState::Slot(taken)
            }
        };
        let device_bytes = self.signature.row_bytes() as u64;
        Ok(Box::new(TensorRtCache { model: self.id, capacity: max_seq_len, device_bytes, state }))
    }

    fn forward(&self, batch: &mut [Sequence<'_>]) -> Result<(), BackendError> {
        let _one_at_a_time = self.step.lock();
        self.check(batch)?;
        let steps = match self.signature.cache {
            CacheKind::None => self.whole_steps(batch)?,
            CacheKind::StaticV1 | CacheKind::StaticV2 | CacheKind::InPlace => self.cached_steps(batch)?,
        };
        let (steps, places): (Vec<Step>, Vec<Vec<Place>>) = steps.into_iter().unzip();
        let logits = self.run(steps)?;
        for sequence in batch.iter_mut() {
            sequence.logits.clear();
        }
        for (logits, places) in logits.iter().zip(&places) {
            let mut rest = &logits[..];
            for place in places {
                let (own, later) = rest.split_at_checked(place.values).unwrap_or((rest, &[]));
                batch[place.sequence].logits.extend_from_slice(own);
                rest = later;
            }
        }
        for sequence in batch {
            TensorRtCache::of(self.id, sequence.cache)?.append(sequence.tokens);
        }
        Ok(())
    }
}

impl<D: Device> Drop for TensorRtModel<D> {
    fn drop(&mut self) {
        let id = self.id;
        if let Err(error) = self.owner.call(move |host| host.unload(id)) {
            tracing::warn!(%error, "an engine was not unloaded cleanly");
        }
    }
}
