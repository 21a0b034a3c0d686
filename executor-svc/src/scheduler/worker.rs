//! The thread that runs an engine's generations: does what the policy says.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use roundhouse_backend::BackendError;

use super::generation::{Generation, Progress};
use super::handle::{SchedulerConfig, SchedulerParts, Shared, Submitted};
use super::output::{self, Output};
use super::{Candidate, GenerateError, Memory, Plan, Policy, Refusal, Share, Status, TenantId};
use crate::session::KvMemoryExhausted;

/// How often a scheduler none of whose generations can go on looks whether one can: their clients have no room, or
/// others have the memory.
const BLOCKED_POLL: Duration = Duration::from_millis(5);
/// Threads that choose tokens.
const MAX_OUTPUT_THREADS: usize = 8;

pub(super) struct Worker {
    pub(super) parts: SchedulerParts,
    pub(super) config: SchedulerConfig,
    pub(super) policy: Policy,
    requests: Receiver<Submitted>,
    pub(super) shared: Arc<Shared>,
    pub(super) active: Vec<Active>,
    /// Buffers for logits, one a sequence of a step.
    logits: Vec<Vec<f32>>,
    next_id: u64,
    output_threads: usize,
}

/// A generation, and what the policy wants to know of it.
pub(super) struct Active {
    pub(super) generation: Generation,
    id: u64,
    pub(super) tenant: TenantId,
    priority: i32,
    /// Since when it waits for its first step.
    queued: Instant,
    status: Status,
    pub(super) has_ended: bool,
}

/// What generations are told whose step panicked.
pub(super) fn abnormal_end() -> BackendError {
    BackendError::Device { backend: "scheduler", what: "the step ended abnormally".to_owned() }
}

impl Worker {
    pub(super) fn new(
        parts: SchedulerParts,
        config: SchedulerConfig,
        requests: Receiver<Submitted>,
        shared: Arc<Shared>,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            policy: Policy::new(config.policy, Arc::clone(&parts.kv_cost)),
            parts,
            config,
            requests,
            shared,
            active: Vec::new(),
            logits: Vec::new(),
            next_id: 0,
            output_threads: processors.min(MAX_OUTPUT_THREADS),
        }
    }

    pub(super) fn run(mut self) {
        while self.receive() {
            self.step();
        }
        // Those that end release others.
        while !self.active.is_empty() {
            self.retire(|generation| generation.fail(GenerateError::Unloaded));
        }
    }

    /// Takes new requests; waits for one when there is nothing to do. False when there will be no more.
    fn receive(&mut self) -> bool {
        if self.active.is_empty() {
            self.shared.running.store(0, Ordering::Release);
            match self.requests.recv() {
                Ok(request) => self.take(request),
                Err(_closed) => return false,
            }
        }
        self.receive_now()
    }

    /// Takes the requests that are there. False when there will be no more.
    pub(super) fn receive_now(&mut self) -> bool {
        loop {
            match self.requests.try_recv() {
                Ok(request) => self.take(request),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self, submitted: Submitted) {
        let queued = submitted.at;
        self.take_queued(submitted, queued);
    }

    /// Takes a request that was submitted before, and could not begin until `queued`.
    fn take_queued(&mut self, submitted: Submitted, queued: Instant) {
        let Submitted { request, at } = submitted;
        self.active.push(Active {
            id: self.next_id,
            tenant: TenantId::of(&request.tenant),
            priority: request.priority,
            queued,
            status: Status::Queued,
            has_ended: false,
            generation: Generation::new(
                request,
                Arc::clone(&self.parts.tokenizer),
                at,
                self.parts.metrics.clone(),
            ),
        });
        self.next_id += 1;
    }

    fn step(&mut self) {
        let began = Instant::now();
        let shared = Arc::clone(&self.shared);
        let running_step = shared.step.begin(began);
        let stall_timeout = self.config.stall_timeout;
        self.retire(|generation| generation.check(began, stall_timeout));
        let plan = self.plan(began);
        self.make_room(&plan);
        let shares = self.reserve(&plan.shares);
        shared.running.store(shares.len(), Ordering::Release);
        if shares.is_empty() {
            drop(running_step);
            // What the plan has ended or dropped may be what others wait for.
            if plan.dropped.is_empty() && plan.refused.is_empty() && !self.active.is_empty() {
                self.wait();
            }
            return;
        }
        let prepared = Instant::now();
        if let Some(overhead) = self.decode_run(&shares, &running_step, prepared, prepared - began) {
            let answered = Instant::now();
            self.retire(|_| Progress::Running);
            return self.note_overhead(overhead + answered.elapsed());
        }
        let outcome = self.forward(&shares, prepared);
        let computed = Instant::now();
        match outcome {
            Ok(tokens) => {
                self.observe(tokens, computed - prepared);
                self.advance(&shares, computed);
            }
            Err(error) => self.fail(&shares, error),
        }
        let answered = Instant::now();
        self.retire(|_| Progress::Running);
        shared.output.note(answered - computed);
        self.note_overhead((prepared - began) + answered.elapsed());
    }

    /// Notes what a step of so many tokens took.
    pub(super) fn observe(&mut self, tokens: usize, took: Duration) {
        tracing::trace!(tokens, ?took, "a step");
        self.policy.observe(tokens, took);
        self.parts.metrics.step_time.note(took);
    }

    /// Notes what was done beside a step.
    pub(super) fn note_overhead(&self, overhead: Duration) {
        self.shared.overhead.note(overhead);
        self.parts.metrics.overhead.note(overhead);
    }

    fn plan(&mut self, now: Instant) -> Plan {
        let candidates: Vec<Candidate> = self.active.iter_mut().map(|active| active.candidate(now)).collect();
        let memory = &self.parts.memory;
        let (total, used) = (memory.total(), memory.used());
        let view = Memory { free: total.saturating_sub(used), idle: memory.idle(), total };
        self.policy.plan(&candidates, view)
    }

    /// Ends who is refused and drops the caches that others need the memory of. Keeps everyone's place.
    fn make_room(&mut self, plan: &Plan) {
        for &(index, refusal) in &plan.refused {
            let error = match refusal {
                Refusal::QueueTimeout => GenerateError::QueueTimeout(self.config.policy.queue_timeout),
                Refusal::TooLarge { wanted } => {
                    let (used, total) = (self.parts.memory.used(), self.parts.memory.total());
                    GenerateError::Memory(KvMemoryExhausted { wanted, used, total })
                }
            };
            let active = &mut self.active[index];
            active.has_ended = matches!(active.generation.fail(error), Progress::Ended);
        }
        if plan.drop_idle > 0 {
            let freed = self.parts.sessions.drop_idle_caches(plan.drop_idle);
            tracing::debug!(freed, wanted = plan.drop_idle, "dropped idle sessions' caches");
        }
        for &index in &plan.dropped {
            let active = &mut self.active[index];
            let bytes = active.generation.state().map_or(0, |state| state.cache.clear());
            tracing::debug!(request = active.generation.id(), bytes, "its cache was taken for others");
            if active.status == Status::Running {
                active.status = Status::Preempted;
                self.shared.preemptions.fetch_add(1, Ordering::AcqRel);
                self.parts.metrics.preemptions.inc();
            }
        }
    }

    /// Reserves the memory of a step; what it can have. Another engine can have been faster: then a sequence stays as it is
    /// until the next plan, which sees what is left.
    fn reserve(&mut self, shares: &[Share]) -> Vec<Share> {
        let mut reserved = Vec::with_capacity(shares.len());
        for &share in shares {
            let active = &mut self.active[share.index];
            let Some(state) = active.generation.state() else { continue };
            let has_memory = state.cache.reserve(share.reserve);
            match has_memory.map(|()| state.cache.open(&*self.parts.model).map(|_| ())) {
                Ok(Ok(())) => {
                    active.status = Status::Running;
                    let tokens = active.generation.refill(&*self.parts.model).min(share.tokens);
                    // Nothing is left of a prompt that is only scored and was computed before: the next check ends it.
                    if tokens > 0 && active.generation.reserve(tokens) {
                        reserved.push(Share { tokens, ..share });
                    }
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, request = active.generation.id(), "a cache could not be made");
                    let ended = active.generation.fail(GenerateError::Model(Arc::new(error)));
                    active.has_ended = matches!(ended, Progress::Ended);
                }
                Err(error) => tracing::debug!(%error, request = active.generation.id(), "no memory yet"),
            }
        }
        reserved
    }

    /// Nobody can go on: waits a little, or for a new request.
    fn wait(&mut self) {
        // That there will be no more requests is seen by the next `receive`.
        if let Ok(request) = self.requests.recv_timeout(BLOCKED_POLL) {
            self.take(request);
        }
    }

    /// Computes a step; how many tokens that were.
    fn forward(&mut self, shares: &[Share], now: Instant) -> Result<usize, BackendError> {
        self.logits.resize_with(self.logits.len().max(shares.len()), Vec::new);
        let chosen = by_place(shares, self.active.len());
        let mut batch = Vec::with_capacity(shares.len());
        let mut buffers = self.logits.iter_mut();
        // Guesses have rows of logits as scored prompts have.
        let mut draft_rows = self.config.policy.step.max_scored_tokens;
        for (active, tokens) in self.active.iter_mut().zip(chosen) {
            let Some((tokens, logits)) = tokens.zip(tokens.and_then(|_| buffers.next())) else { continue };
            let generation = &mut active.generation;
            generation.begin_step(now);
            batch.extend(generation.sequence(tokens, &mut draft_rows, logits));
        }
        let tokens = batch.iter().map(|sequence| sequence.tokens.len()).sum();
        // A fault of a kernel ends the generations of this step with an error, and no others.
        let step = catch_unwind(AssertUnwindSafe(|| self.parts.model.forward(&mut batch)));
        let step = step.unwrap_or_else(|_| Err(abnormal_end()));
        step.map(|()| tokens)
    }

    /// Takes the generations of a step on by its logits.
    fn advance(&mut self, shares: &[Share], now: Instant) {
        let chosen = by_place(shares, self.active.len());
        let mut buffers = self.logits.iter_mut();
        let outputs = self.active.iter_mut().zip(chosen).filter_map(|(active, tokens)| {
            let tokens = tokens?;
            let Active { generation, has_ended, .. } = active;
            Some(Output { generation, logits: buffers.next()?, tokens, has_ended })
        });
        output::advance(outputs.collect(), self.output_threads, now);
        // What the rows of a prompt took goes back, or each buffer would come to be as long as a whole chunk's.
        let row = self.parts.model.vocab_size();
        for buffer in &mut self.logits {
            buffer.clear();
            buffer.shrink_to(row);
        }
    }

    /// Ends the generations of a step that failed.
    pub(super) fn fail(&mut self, shares: &[Share], error: BackendError) {
        tracing::error!(%error, sequences = shares.len(), "a step failed");
        if let BackendError::DeviceLost { .. } = error {
            self.shared.lost.get_or_init(|| error.to_string());
        }
        let error = Arc::new(error);
        for share in shares {
            let active = &mut self.active[share.index];
            if !active.has_ended {
                let ended = active.generation.fail(GenerateError::Model(Arc::clone(&error)));
                active.has_ended = matches!(ended, Progress::Ended);
            }
        }
    }

    /// Drops every generation that has ended or that `decide` ends: its lease, its stream and its count. Takes those that
    /// have waited for another one's prompt until now.
    fn retire(&mut self, mut decide: impl FnMut(&mut Generation) -> Progress) {
        let before = self.active.len();
        let mut released = Vec::new();
        self.active.retain_mut(|active| {
            let generation = &mut active.generation;
            let has_ended = active.has_ended || matches!(decide(generation), Progress::Ended);
            let at = generation.submitted();
            released.extend(
                generation.release_forks(has_ended).into_iter().map(|request| Submitted { request, at }),
            );
            !has_ended
        });
        self.shared.generations.fetch_sub(before - self.active.len(), Ordering::AcqRel);
        released.into_iter().for_each(|submitted| self.take_queued(submitted, Instant::now()));
    }
}

impl Active {
    fn candidate(&mut self, now: Instant) -> Candidate {
        let generation = &mut self.generation;
        let (pending, ready, scored) =
            (generation.pending(), generation.has_room(now), generation.is_scored());
        let forked = generation.forked().min(pending.saturating_sub(1));
        let cache = generation.state().map(|state| &state.cache);
        let (cached, capacity, held) =
            cache.map_or((0, 0, 0), |cache| (cache.len(), cache.capacity(), cache.reserved()));
        Candidate {
            id: self.id,
            tenant: self.tenant,
            priority: self.priority,
            age: now.saturating_duration_since(self.queued),
            status: self.status,
            cached: cached + forked,
            pending: pending - forked,
            capacity,
            held,
            ready,
            scored,
        }
    }
}

/// The tokens of each place's share; `None` where there is none.
fn by_place(shares: &[Share], places: usize) -> Vec<Option<usize>> {
    let mut tokens = vec![None; places];
    for share in shares {
        tokens[share.index] = Some(share.tokens);
    }
    tokens
}
