//! The thread that runs an engine's generations.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use roundhouse_backend::{BackendError, Model, Sequence};
use roundhouse_text::Tokenizer;

use super::generation::{Generation, Progress};
use super::policy::{Candidate, Share, StepLimits, plan};
use super::{GenerateError, Request};

/// How often a scheduler whose clients all have no room looks whether one has.
const STALLED_POLL: Duration = Duration::from_millis(5);

/// The bounds of a scheduler.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerConfig {
    /// The bounds of a step.
    pub step: StepLimits,
    /// Generations that run or wait at a time.
    pub max_generations: usize,
    /// How long a client may leave its stream unread.
    pub stall_timeout: Duration,
}

/// A request that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many run and wait.
    #[error("{limit} generations are running or waiting, which is the limit")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// The engine is being unloaded.
    #[error("the engine is being unloaded")]
    Stopped,
}

/// How busy a scheduler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Generations that were in the last step.
    pub running: usize,
    /// Generations that were not.
    pub waiting: usize,
}

/// The way to the thread that runs an engine's generations. Dropping it ends them and the thread.
pub struct Scheduler {
    requests: Option<SyncSender<Request>>,
    counters: Arc<Counters>,
    limit: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Counters {
    /// Submitted and not ended.
    generations: AtomicUsize,
    /// In the last step.
    running: AtomicUsize,
}

impl Scheduler {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        model: Arc<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        config: SchedulerConfig,
    ) -> std::io::Result<Self> {
        let (sender, requests) = sync_channel(config.max_generations.max(1));
        let counters = Arc::new(Counters::default());
        let worker = Worker {
            model,
            tokenizer,
            config,
            requests,
            counters: Arc::clone(&counters),
            active: Vec::new(),
            logits: Vec::new(),
            first: 0,
        };
        let thread = std::thread::Builder::new().name("scheduler".to_owned()).spawn(move || worker.run())?;
        Ok(Self {
            requests: Some(sender),
            counters,
            limit: config.max_generations.max(1),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Hands over a request.
    ///
    /// # Errors
    /// [`SubmitError`]; the request is dropped, which returns what it held.
    pub fn submit(&self, request: Request) -> Result<(), SubmitError> {
        let requests = self.requests.as_ref().ok_or(SubmitError::Stopped)?;
        let counted = self.counters.generations.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < self.limit).then_some(count + 1)
        });
        if counted.is_err() {
            return Err(SubmitError::Full { limit: self.limit });
        }
        requests.try_send(request).map_err(|error| {
            self.counters.generations.fetch_sub(1, Ordering::AcqRel);
            match error {
                TrySendError::Full(_) => SubmitError::Full { limit: self.limit },
                TrySendError::Disconnected(_) => SubmitError::Stopped,
            }
        })
    }

    /// How busy it is.
    #[must_use]
    pub fn load(&self) -> Load {
        let generations = self.counters.generations.load(Ordering::Acquire);
        let running = self.counters.running.load(Ordering::Acquire).min(generations);
        Load { running, waiting: generations - running }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the scheduler's thread had panicked");
        }
    }
}

struct Worker {
    model: Arc<dyn Model>,
    tokenizer: Arc<Tokenizer>,
    config: SchedulerConfig,
    requests: Receiver<Request>,
    counters: Arc<Counters>,
    active: Vec<Generation>,
    /// Buffers for logits, one a sequence of a step.
    logits: Vec<Vec<f32>>,
    /// Whose turn it is to be first.
    first: usize,
}

impl Worker {
    fn run(mut self) {
        while self.receive() {
            self.step();
        }
        self.retire(|generation| generation.fail(GenerateError::Unloaded));
    }

    /// Takes new requests; waits for one when there is nothing to do. False when there will be no more.
    fn receive(&mut self) -> bool {
        if self.active.is_empty() {
            self.counters.running.store(0, Ordering::Release);
            match self.requests.recv() {
                Ok(request) => self.admit(request),
                Err(_closed) => return false,
            }
        }
        loop {
            match self.requests.try_recv() {
                Ok(request) => self.admit(request),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn admit(&mut self, request: Request) {
        self.active.push(Generation::new(request, Arc::clone(&self.tokenizer)));
    }

    fn step(&mut self) {
        let now = Instant::now();
        let stall_timeout = self.config.stall_timeout;
        self.retire(|generation| generation.check(now, stall_timeout));
        let candidates: Vec<Candidate> = self
            .active
            .iter_mut()
            .map(|generation| Candidate {
                pending: generation.pending(),
                ready: generation.has_room(now),
                scored: generation.is_scored(),
            })
            .collect();
        let shares = plan(&candidates, self.first, self.config.step);
        self.counters.running.store(shares.len(), Ordering::Release);
        self.first = self.first.wrapping_add(shares.len()) % self.active.len().max(1);
        if shares.is_empty() {
            if !self.active.is_empty() {
                self.wait_for_room();
            }
            return;
        }
        match self.forward(&shares) {
            Ok(()) => self.advance(&shares),
            Err(error) => {
                tracing::error!(%error, sequences = shares.len(), "a step failed");
                let error = Arc::new(error);
                let mut failed = vec![false; self.active.len()];
                shares.iter().for_each(|share| failed[share.index] = true);
                let mut failed = failed.into_iter();
                self.retire(|generation| match failed.next() {
                    Some(true) => generation.fail(GenerateError::Model(Arc::clone(&error))),
                    _ => Progress::Running,
                });
            }
        }
    }

    /// Every client has no room: waits a little, or for a new request.
    fn wait_for_room(&mut self) {
        match self.requests.recv_timeout(STALLED_POLL) {
            Ok(request) => self.admit(request),
            Err(RecvTimeoutError::Timeout) => {}
            // Nothing to wait for: the next `receive` sees it too.
            Err(RecvTimeoutError::Disconnected) => {}
        }
    }

    fn forward(&mut self, shares: &[Share]) -> Result<(), BackendError> {
        let now = Instant::now();
        let mut chosen: Vec<Option<usize>> = vec![None; self.active.len()];
        for share in shares {
            chosen[share.index] = Some(share.tokens);
        }
        self.logits.resize_with(self.logits.len().max(shares.len()), Vec::new);
        let mut batch = Vec::with_capacity(shares.len());
        let mut buffers = self.logits.iter_mut();
        for (generation, tokens) in self.active.iter_mut().zip(chosen) {
            let (Some(tokens), Some(logits)) = (tokens, tokens.and_then(|_| buffers.next())) else {
                continue;
            };
            generation.begin_step(now);
            let request = generation.logits_request(tokens);
            let Some(state) = generation.state() else { continue };
            let cached = state.cache.len();
            batch.push(Sequence {
                tokens: &state.tokens[cached..cached + tokens],
                cache: state.cache.as_mut(),
                request,
                logits,
            });
        }
        // A fault of a kernel ends the generations of this step with an error, and no others.
        let step = catch_unwind(AssertUnwindSafe(|| self.model.forward(&mut batch)));
        step.unwrap_or_else(|_| {
            Err(BackendError::Device { backend: "scheduler", what: "the step ended abnormally".to_owned() })
        })
    }

    fn advance(&mut self, shares: &[Share]) {
        let now = Instant::now();
        let mut chosen: Vec<Option<usize>> = vec![None; self.active.len()];
        for share in shares {
            chosen[share.index] = Some(share.tokens);
        }
        let mut logits = std::mem::take(&mut self.logits);
        let mut buffers = logits.iter_mut();
        let mut parts = chosen.into_iter();
        self.retire(|generation| {
            let Some(Some(tokens)) = parts.next() else { return Progress::Running };
            let Some(buffer) = buffers.next() else { return Progress::Running };
            generation.advance(buffer, tokens, now)
        });
        // What the rows of a prompt took goes back, or each buffer would come to be as long as a whole chunk's.
        let row = self.model.vocab_size();
        for buffer in &mut logits {
            buffer.clear();
            buffer.shrink_to(row);
        }
        self.logits = logits;
    }

    /// Drops every generation that `decide` ends: its lease, its stream and its count.
    fn retire(&mut self, mut decide: impl FnMut(&mut Generation) -> Progress) {
        let before = self.active.len();
        self.active.retain_mut(|generation| matches!(decide(generation), Progress::Running));
        self.counters.generations.fetch_sub(before - self.active.len(), Ordering::AcqRel);
    }
}
