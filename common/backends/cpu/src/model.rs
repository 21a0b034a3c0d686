//! A loaded engine and its steps.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use roundhouse_backend::{
    BackendError, Cache, CacheGrowth, ComponentModel, GreedySequence, LogitsRequest, Model, NOT_FINITE,
    Sequence,
};
use roundhouse_cpu_kernels::{Isa, Reduction, ThreadPool, argmax};
use roundhouse_engine::{CacheKind, Component, Manifest, MemoryPlan, Precision};
use roundhouse_graph::Graph;
use roundhouse_weights::MappedWeights;

use crate::builder::{compile_plan, plan_memory};
use crate::cache::{CacheState, CacheTensor, CpuCache};
use crate::component::CpuComponent;
use crate::exec::{Active, Executor, Workspace};
use crate::limits::StepLimits;

/// A loaded engine.
pub(crate) struct CpuModel {
    /// Unlike any other model's of this process: caches carry it.
    id: u64,
    /// The engine's key: blocks carry it.
    engine: Arc<str>,
    executor: Executor,
    components: Vec<(Component, CpuComponent)>,
    limits: StepLimits,
    memory: MemoryPlan,
    /// Bytes that the constants and the workspace took after the last call, if more than planned.
    workspace_bytes: AtomicU64,
    /// One step at a time: all share the buffers.
    workspace: Mutex<Workspace>,
}

/// A part of a sequence's new tokens that runs in one step.
struct Piece {
    /// Which sequence of the batch.
    sequence: usize,
    /// Its first token among the sequence's new ones.
    first: usize,
    tokens: usize,
    /// How many of its last tokens' logits are wanted.
    rows: usize,
}

/// fp32 is the precision in which a request's logits are the same, bit for bit, alone and in any batch; the others are for
/// speed.
pub(crate) const fn reduction(precision: Precision) -> Reduction {
    match precision {
        Precision::Fp32 => Reduction::BatchInvariant,
        Precision::Fp16 | Precision::Bf16 => Reduction::Fastest,
    }
}

impl CpuModel {
    /// Loads an engine.
    pub(crate) fn load(
        manifest: &Manifest,
        graph: &Graph,
        weights: &Path,
        pool: Arc<ThreadPool>,
    ) -> Result<Self, BackendError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let plan = compile_plan(graph, &manifest.options)?;
        let weights = MappedWeights::open(weights, graph, manifest.key.as_str())?;
        let memory = plan_memory(graph, &plan, weights.file_bytes());
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            engine: manifest.key.as_str().into(),
            executor: Executor::new(plan, graph, weights, pool, reduction(manifest.options.precision))?,
            components: Vec::new(),
            limits: StepLimits::new(graph, &manifest.options),
            workspace_bytes: AtomicU64::new(memory.workspace_bytes),
            memory,
            workspace: Mutex::new(Workspace::default()),
        })
    }

    /// With components beside the language model.
    pub(crate) fn with_components(self, components: Vec<(Component, CpuComponent)>) -> Self {
        Self { components, ..self }
    }

    /// Checks a batch before anything runs.
    fn check(&self, batch: &mut [Sequence<'_>]) -> Result<(), BackendError> {
        let vocab_size = self.executor.input_vocab_size();
        for sequence in batch {
            let cache = own_cache(self.id, sequence.cache)?;
            let (tokens, length, capacity) = (sequence.tokens.len(), cache.begin(), cache.capacity);
            if tokens == 0 {
                return Err(BackendError::InvalidArgument("a sequence without new tokens".to_owned()));
            }
            if let Some(token) = sequence.tokens.iter().find(|&&token| token as usize >= vocab_size) {
                let what = format!("token {token} is outside of the vocabulary of {vocab_size}");
                return Err(BackendError::InvalidArgument(what));
            }
            if tokens > capacity - length {
                return Err(BackendError::CacheFull { tokens, length, capacity });
            }
        }
        Ok(())
    }

    /// All sequences' tokens in steps of many sequences.
    fn forward_packed(
        &self,
        batch: &mut [Sequence<'_>],
        workspace: &mut Workspace,
    ) -> Result<(), BackendError> {
        let mut limits = self.limits;
        limits.tokens = limits.tokens.max(batch.len());
        limits.rows = limits.rows.max(batch.len());
        for step in steps(batch, limits) {
            self.run(&step, batch, workspace)?;
        }
        Ok(())
    }

    /// One sequence after the other.
    fn forward_alone(
        &self,
        batch: &mut [Sequence<'_>],
        workspace: &mut Workspace,
    ) -> Result<(), BackendError> {
        let whole = self.executor.plan().signature.mode == CacheKind::None;
        for index in 0..batch.len() {
            let limits = match whole {
                true => StepLimits { tokens: usize::MAX, chunk: usize::MAX, rows: usize::MAX, ..self.limits },
                false => self.limits,
            };
            for mut step in steps(&batch[index..=index], limits) {
                step.iter_mut().for_each(|piece| piece.sequence = index);
                self.run(&step, batch, workspace)?;
            }
        }
        Ok(())
    }

    /// Runs the pieces of one step and takes their logits.
    fn run(
        &self,
        step: &[Piece],
        batch: &mut [Sequence<'_>],
        workspace: &mut Workspace,
    ) -> Result<(), BackendError> {
        let mut pieces = step.iter().peekable();
        let mut active = Vec::with_capacity(step.len());
        for (index, sequence) in batch.iter_mut().enumerate() {
            if let Some(piece) = pieces.next_if(|piece| piece.sequence == index) {
                let cache = own_cache(self.id, sequence.cache)?;
                let tokens = &sequence.tokens[piece.first..piece.first + piece.tokens];
                let past = cache.committed() + piece.first;
                active.push(Active { past, cache, tokens, rows: piece.rows });
            }
        }
        for Active { cache, past, tokens, .. } in &mut active {
            cache.writes(*past + tokens.len());
        }
        self.executor.run(&mut active, workspace)?;
        for (index, piece) in step.iter().enumerate() {
            batch[piece.sequence].logits.extend_from_slice(self.executor.logits(workspace, index));
        }
        Ok(())
    }
}

impl Model for CpuModel {
    fn vocab_size(&self) -> usize {
        self.executor.plan().signature.vocab_size
    }

    fn memory_plan(&self) -> MemoryPlan {
        let workspace_bytes = self.workspace_bytes.load(Ordering::Relaxed);
        let own = MemoryPlan { workspace_bytes, ..self.memory.clone() };
        let components = self.components.iter().map(|(_, component)| component.memory_plan());
        components.fold(own, MemoryPlan::with_component)
    }

    fn component(&self, component: Component) -> Option<&dyn ComponentModel> {
        let found = self.components.iter().find(|(name, _)| *name == component);
        found.map(|(_, model)| model as &dyn ComponentModel)
    }

    fn cache_growth(&self) -> CacheGrowth {
        match self.executor.plan().signature.mode {
            CacheKind::None | CacheKind::InPlace => CacheGrowth::ByToken,
            // Inputs of a graph of fixed shapes.
            CacheKind::StaticV1 | CacheKind::StaticV2 => CacheGrowth::Whole(self.limits.sequence),
        }
    }

    fn new_cache(&self, max_seq_len: usize) -> Result<Box<dyn Cache>, BackendError> {
        let signature = &self.executor.plan().signature;
        let longest = signature.cache.iter().map(|shape| shape.length).fold(self.limits.sequence, usize::min);
        if max_seq_len > longest {
            let what =
                format!("a cache for {max_seq_len} tokens: the engine was built for at most {longest}");
            return Err(BackendError::InvalidArgument(what));
        }
        let state = match signature.mode {
            CacheKind::None => CacheState::Tokens(Vec::with_capacity(max_seq_len)),
            mode => {
                // A static cache is an input of the graph, whose shape is fixed.
                let length = |fixed: usize| if mode == CacheKind::InPlace { max_seq_len } else { fixed };
                let tensors =
                    signature.cache.iter().map(|&shape| CacheTensor::new(shape, length(shape.length)));
                CacheState::Tensors(tensors.collect())
            }
        };
        let cache = CpuCache::new(self.id, Arc::clone(&self.engine), max_seq_len, state);
        Ok(Box::new(cache.with_images(signature.image_width)))
    }

    fn forward(&self, batch: &mut [Sequence<'_>]) -> Result<(), BackendError> {
        self.check(batch)?;
        let mut workspace = self.workspace.lock();
        for sequence in batch.iter_mut() {
            sequence.logits.clear();
        }
        match self.executor.plan().signature.mode {
            CacheKind::InPlace => self.forward_packed(batch, &mut workspace)?,
            _ => self.forward_alone(batch, &mut workspace)?,
        }
        let used = workspace.bytes() + self.executor.constant_bytes();
        self.workspace_bytes.fetch_max(used as u64, Ordering::Relaxed);
        for sequence in batch {
            own_cache(self.id, sequence.cache)?.commit(sequence.tokens);
        }
        Ok(())
    }

    fn decode_greedily(
        &self,
        batch: &mut [GreedySequence<'_>],
        steps: usize,
        each: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<bool, BackendError> {
        for sequence in batch.iter_mut() {
            let cache = own_cache(self.id, sequence.cache)?;
            let (length, capacity) = (cache.begin(), cache.capacity);
            if steps > capacity - length {
                return Err(BackendError::CacheFull { tokens: steps, length, capacity });
            }
        }
        let mut tokens: Vec<u32> = batch.iter().map(|sequence| sequence.token).collect();
        let mut logits = vec![Vec::new(); batch.len()];
        for _ in 0..steps {
            let parts = batch.iter_mut().zip(tokens.chunks(1)).zip(&mut logits);
            let mut step: Vec<Sequence<'_>> = parts
                .map(|((sequence, tokens), logits)| Sequence {
                    cache: &mut *sequence.cache,
                    tokens,
                    request: LogitsRequest::Last,
                    logits,
                })
                .collect();
            self.forward(&mut step)?;
            tokens = logits.iter().map(|logits| likeliest(logits)).collect();
            if each(&tokens).is_break() {
                break;
            }
            if tokens.contains(&NOT_FINITE) {
                // Nothing follows from it, and it is no token to go on with.
                break;
            }
        }
        Ok(true)
    }
}

/// The token of the largest logit.
fn likeliest(logits: &[f32]) -> u32 {
    if logits.iter().all(|logit| logit.is_finite()) {
        u32::try_from(argmax(Isa::detect(), logits)).unwrap_or(NOT_FINITE)
    } else {
        NOT_FINITE
    }
}

/// The cache as this model's.
fn own_cache(model: u64, cache: &mut dyn Cache) -> Result<&mut CpuCache, BackendError> {
    let own = cache.as_any_mut().downcast_mut::<CpuCache>().filter(|cache| cache.model == model);
    own.ok_or_else(|| BackendError::InvalidArgument("the cache is another model's".to_owned()))
}

/// Cuts a batch into steps within `limits`, each sequence's pieces in order and at most one a step.
fn steps(batch: &[Sequence<'_>], limits: StepLimits) -> Vec<Vec<Piece>> {
    let mut steps = Vec::new();
    let mut done = vec![0; batch.len()];
    loop {
        let mut step = Vec::new();
        let (mut free_tokens, mut free_rows) = (limits.tokens, limits.rows);
        for (index, sequence) in batch.iter().enumerate() {
            let first = done[index];
            let left = sequence.tokens.len() - first;
            let all = sequence.request == LogitsRequest::All;
            let tokens =
                left.min(limits.chunk).min(free_tokens).min(if all { free_rows } else { usize::MAX });
            let last = tokens == left;
            let rows = match sequence.request {
                LogitsRequest::None => 0,
                LogitsRequest::Last => usize::from(last),
                LogitsRequest::All => tokens,
            };
            if tokens == 0 || rows > free_rows {
                continue;
            }
            (free_tokens, free_rows) = (free_tokens - tokens, free_rows - rows);
            done[index] += tokens;
            step.push(Piece { sequence: index, first, tokens, rows });
        }
        if step.is_empty() {
            return steps;
        }
        steps.push(step);
    }
}
