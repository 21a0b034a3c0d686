//! The way to the thread that runs an engine's generations.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use roundhouse_backend::Model;
use roundhouse_text::Tokenizer;

use super::latency::Latencies;
use super::step_clock::StepClock;
use super::worker::Worker;
use super::{PolicyLimits, Request};
use crate::metrics::EngineMetrics;
use crate::session::{KvCost, KvMemory, Sessions};

/// The bounds of a scheduler.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerConfig {
    /// What its policy keeps to.
    pub policy: PolicyLimits,
    /// Generations that run or wait at a time.
    pub max_generations: usize,
    /// How long a client may leave its stream unread.
    pub stall_timeout: Duration,
}

/// What a scheduler runs with.
#[derive(Clone)]
pub struct SchedulerParts {
    /// Computes the steps.
    pub model: Arc<dyn Model>,
    /// Turns tokens into text.
    pub tokenizer: Arc<Tokenizer>,
    /// What its sequences' keys and values cost.
    pub kv_cost: Arc<KvCost>,
    /// Where their memory comes from.
    pub memory: Arc<KvMemory>,
    /// Whose idle caches give theirs.
    pub sessions: Arc<Sessions>,
    /// What is counted and timed.
    pub metrics: EngineMetrics,
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

/// How busy a scheduler is, and how well it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Generations that were in the last step.
    pub running: usize,
    /// Generations that were not.
    pub waiting: usize,
    /// Generations whose cache was taken for others, since the start.
    pub preemptions: u64,
    /// The 99th percentile of what a step takes beside the model and the choice of tokens: checks, policy, memory,
    /// making the batch.
    pub overhead_p99: Duration,
    /// The 99th percentile of what a step takes from its logits to its messages.
    pub output_p99: Duration,
}

/// The way to the thread that runs an engine's generations. Dropping it ends them and the thread.
pub struct Scheduler {
    requests: Option<SyncSender<Submitted>>,
    shared: Arc<Shared>,
    limit: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A request on its way to the thread. Its wait begins here: the thread looks for new ones between steps only.
pub(super) struct Submitted {
    pub(super) request: Request,
    pub(super) at: Instant,
}

/// What the thread tells.
pub(super) struct Shared {
    /// Submitted and not ended.
    pub(super) generations: AtomicUsize,
    /// In the last step.
    pub(super) running: AtomicUsize,
    pub(super) preemptions: AtomicU64,
    pub(super) overhead: Latencies,
    pub(super) output: Latencies,
    pub(super) step: StepClock,
    /// Why there are no more steps.
    pub(super) lost: OnceLock<String>,
}

impl Scheduler {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(parts: SchedulerParts, config: SchedulerConfig) -> std::io::Result<Self> {
        let limit = config.max_generations.max(1);
        let (sender, requests) = sync_channel(limit);
        let shared = Arc::new(Shared {
            generations: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            preemptions: AtomicU64::new(0),
            overhead: Latencies::default(),
            output: Latencies::default(),
            step: StepClock::new(),
            lost: OnceLock::new(),
        });
        let worker = Worker::new(parts, config, requests, Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("scheduler".to_owned()).spawn(move || worker.run())?;
        Ok(Self { requests: Some(sender), shared, limit, thread: Mutex::new(Some(thread)) })
    }

    /// Hands over a request with its forks.
    ///
    /// # Errors
    /// [`SubmitError`]; the request is dropped, which returns what it held.
    pub fn submit(&self, request: Request) -> Result<(), SubmitError> {
        let requests = self.requests.as_ref().ok_or(SubmitError::Stopped)?;
        let generations = &self.shared.generations;
        let outputs = 1 + request.forks.len();
        let counted = generations.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count + outputs <= self.limit).then_some(count + outputs)
        });
        if counted.is_err() {
            return Err(SubmitError::Full { limit: self.limit });
        }
        requests.try_send(Submitted { request, at: Instant::now() }).map_err(|error| {
            generations.fetch_sub(outputs, Ordering::AcqRel);
            match error {
                TrySendError::Full(_) => SubmitError::Full { limit: self.limit },
                TrySendError::Disconnected(_) => SubmitError::Stopped,
            }
        })
    }

    /// How busy it is, and how well it does.
    #[must_use]
    pub fn load(&self) -> Load {
        let generations = self.shared.generations.load(Ordering::Acquire);
        let running = self.shared.running.load(Ordering::Acquire).min(generations);
        Load {
            running,
            waiting: generations - running,
            preemptions: self.shared.preemptions.load(Ordering::Acquire),
            overhead_p99: self.shared.overhead.quantile(0.99),
            output_p99: self.shared.output.quantile(0.99),
        }
    }

    /// How long the step that runs has run; `None` between steps.
    #[must_use]
    pub fn step_elapsed(&self) -> Option<Duration> {
        self.shared.step.elapsed()
    }

    /// Why no step succeeds any more: the device is lost.
    #[must_use]
    pub fn lost(&self) -> Option<&str> {
        self.shared.lost.get().map(String::as_str)
    }

    /// Whether the thread has ended, which it does only when the scheduler is dropped.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.lock().as_ref().is_some_and(JoinHandle::is_finished)
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
