//! Threads that compute masks while the model computes logits.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, available_parallelism};

use llguidance::Matcher;
use parking_lot::Mutex;
use toktrie::SimpleVob;

/// Threads at most: a mask takes far less time than a step of the model.
const MAX_THREADS: usize = 4;
/// Masks that wait at most; one more is computed by who asks for it.
const QUEUE: usize = 256;

/// A matcher that is on its way through the pool: it comes back with its mask, or why there is none.
pub(crate) type Computed = (Box<Matcher>, Result<SimpleVob, String>);

struct Job {
    matcher: Box<Matcher>,
    answer: SyncSender<Computed>,
}

/// Threads that compute masks. They end when it is dropped.
pub(crate) struct MaskPool {
    jobs: SyncSender<Job>,
}

impl MaskPool {
    /// Starts the threads: as many as the system gives, up to the number of cores.
    pub(crate) fn start() -> Self {
        let (jobs, queue) = sync_channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        let cores = available_parallelism().map_or(1, NonZero::get);
        for _ in 0..cores.min(MAX_THREADS) {
            let queue = Arc::clone(&queue);
            // Without a thread the queue is closed, and masks are computed where they are asked for.
            if let Err(error) = Builder::new().name("masks".to_owned()).spawn(move || work(&queue)) {
                tracing::warn!(%error, "no thread for masks");
            }
        }
        Self { jobs }
    }

    /// Begins to compute a matcher's next mask.
    pub(crate) fn compute(&self, matcher: Box<Matcher>) -> Receiver<Computed> {
        let (answer, computed) = sync_channel(1);
        match self.jobs.try_send(Job { matcher, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => run(job),
        }
        computed
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().recv();
        match next {
            Ok(job) => run(job),
            Err(_closed) => return,
        }
    }
}

fn run(job: Job) {
    let Job { mut matcher, answer } = job;
    let mask = matcher.compute_mask().map_err(|error| reason(&error.to_string()));
    // Who asked may be gone.
    drop(answer.send((matcher, mask)));
}

/// The first line of an error of the library: what follows is its own state.
pub(crate) fn reason(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}
