//! The queue: which operations there are, and how many run at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_proto::compiler::CompileEngineResponse;
use roundhouse_proto::google::rpc;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::Operation;

/// Ended operations kept for callers to read; the oldest go first.
const RETAINED: usize = 1000;

/// All operations of a compiler service, and the slots that they run in.
#[derive(Debug)]
pub struct JobQueue {
    slots: Arc<Semaphore>,
    concurrent: usize,
    /// Operations that may be unfinished at a time: running and waiting.
    limit: usize,
    operations: Mutex<VecDeque<Listed>>,
}

#[derive(Debug)]
struct Listed {
    /// What makes two requests the same one while it runs.
    identity: String,
    operation: Arc<Operation>,
}

/// The queue is full.
#[derive(Debug, thiserror::Error)]
#[error("{limit} compilations are running or waiting, which is the limit")]
pub struct QueueFull {
    /// How many may be unfinished.
    pub limit: usize,
}

/// What became of a submission.
#[derive(Debug)]
pub struct Submitted {
    /// The operation.
    pub operation: Arc<Operation>,
    /// Whether an equal request was running, whose operation this is.
    pub shared: bool,
}

impl JobQueue {
    /// A queue that runs `concurrent` operations at a time and lets `waiting` more wait.
    #[must_use]
    pub fn new(concurrent: usize, waiting: usize) -> Self {
        let concurrent = concurrent.max(1);
        Self {
            slots: Arc::new(Semaphore::new(concurrent)),
            concurrent,
            limit: concurrent + waiting,
            operations: Mutex::new(VecDeque::new()),
        }
    }

    /// How many operations run, and how many wait.
    #[must_use]
    pub fn unfinished(&self) -> (usize, usize) {
        let unfinished = self.operations.lock().iter().filter(|listed| !listed.operation.is_done()).count();
        let running = (self.concurrent - self.slots.available_permits()).min(unfinished);
        (running, unfinished - running)
    }

    /// Starts an operation, or finds the unfinished one of the same `identity`. `work` runs when a slot is free, on a
    /// thread where it may block; the operation ends with its result, or as cancelled if it is cancelled before.
    ///
    /// # Errors
    /// [`QueueFull`].
    pub fn submit(
        &self,
        identity: String,
        model: String,
        work: impl FnOnce(&Arc<Operation>) -> Result<CompileEngineResponse, rpc::Status> + Send + 'static,
    ) -> Result<Submitted, QueueFull> {
        let mut operations = self.operations.lock();
        let unfinished = operations.iter().filter(|listed| !listed.operation.is_done());
        if let Some(same) = unfinished.clone().find(|listed| listed.identity == identity) {
            return Ok(Submitted { operation: Arc::clone(&same.operation), shared: true });
        }
        if unfinished.count() >= self.limit {
            return Err(QueueFull { limit: self.limit });
        }
        let operation = Operation::new(format!("operations/{}", Uuid::new_v4()), model);
        operations.push_back(Listed { identity, operation: Arc::clone(&operation) });
        forget_oldest(&mut operations);
        drop(operations);
        self.start(Arc::clone(&operation), work);
        Ok(Submitted { operation, shared: false })
    }

    fn start(
        &self,
        operation: Arc<Operation>,
        work: impl FnOnce(&Arc<Operation>) -> Result<CompileEngineResponse, rpc::Status> + Send + 'static,
    ) {
        let slots = Arc::clone(&self.slots);
        tokio::spawn(async move {
            let cancelled = operation.cancellation().clone();
            let slot = tokio::select! {
                slot = slots.acquire_owned() => slot.ok(),
                () = cancelled.cancelled() => None,
            };
            let result = match slot {
                Some(_slot) => {
                    let working = Arc::clone(&operation);
                    // A panic in the work ends the operation instead of leaving it unfinished for ever.
                    match tokio::task::spawn_blocking(move || work(&working)).await {
                        Ok(result) => result,
                        Err(error) => Err(rpc::Status {
                            code: tonic::Code::Internal.into(),
                            message: format!("the compilation ended abnormally: {error}"),
                            details: Vec::new(),
                        }),
                    }
                }
                None => Err(cancelled_status()),
            };
            operation.end(result);
        });
    }

    /// The operation of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Operation>> {
        let operations = self.operations.lock();
        operations
            .iter()
            .find(|listed| listed.operation.name() == name)
            .map(|listed| Arc::clone(&listed.operation))
    }

    /// All operations, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Operation>> {
        self.operations.lock().iter().rev().map(|listed| Arc::clone(&listed.operation)).collect()
    }

    /// Forgets an operation.
    pub fn forget(&self, name: &str) {
        self.operations.lock().retain(|listed| listed.operation.name() != name);
    }

    /// Asks every operation to stop, and returns when all have.
    pub async fn stop(&self) {
        for operation in self.list() {
            operation.cancel();
            operation.wait().await;
        }
    }
}

/// The status of an operation that was cancelled.
#[must_use]
pub(crate) fn cancelled_status() -> rpc::Status {
    rpc::Status { code: tonic::Code::Cancelled.into(), message: "cancelled".to_owned(), details: Vec::new() }
}

fn forget_oldest(operations: &mut VecDeque<Listed>) {
    while operations.len() > RETAINED {
        let Some(oldest) = operations.iter().position(|listed| listed.operation.is_done()) else { return };
        operations.remove(oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response() -> Result<CompileEngineResponse, rpc::Status> {
        Ok(CompileEngineResponse { compile_ms: 7, ..CompileEngineResponse::default() })
    }

    #[tokio::test]
    async fn equal_requests_share_an_operation_until_it_ends() {
        let queue = JobQueue::new(1, 4);
        let (release, gate) = tokio::sync::oneshot::channel::<()>();
        let first = queue
            .submit("a".to_owned(), "m".to_owned(), |_| {
                gate.blocking_recv().unwrap();
                response()
            })
            .unwrap();
        let second = queue.submit("a".to_owned(), "m".to_owned(), |_| response()).unwrap();
        assert!(!first.shared && second.shared);
        assert!(Arc::ptr_eq(&first.operation, &second.operation));
        release.send(()).unwrap();
        first.operation.wait().await;
        let third = queue.submit("a".to_owned(), "m".to_owned(), |_| response()).unwrap();
        assert!(!third.shared);
        third.operation.wait().await;
        assert_eq!(third.operation.snapshot().ended.unwrap().1.unwrap().compile_ms, 7);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_a_cancelled_wait_never_runs() {
        let queue = JobQueue::new(1, 1);
        let (release, gate) = tokio::sync::oneshot::channel::<()>();
        let running = queue
            .submit("a".to_owned(), "m".to_owned(), |_| {
                gate.blocking_recv().unwrap();
                response()
            })
            .unwrap();
        let waiting = queue
            .submit("b".to_owned(), "m".to_owned(), |_| panic!("a cancelled operation must not run"))
            .unwrap();
        let refused = queue.submit("c".to_owned(), "m".to_owned(), |_| response()).unwrap_err();
        assert_eq!(refused.limit, 2);
        waiting.operation.cancel();
        waiting.operation.wait().await;
        let status = waiting.operation.snapshot().ended.unwrap().1.unwrap_err();
        assert_eq!(status.code, i32::from(tonic::Code::Cancelled));
        release.send(()).unwrap();
        running.operation.wait().await;
    }

    #[tokio::test]
    async fn work_that_panics_ends_its_operation() {
        let queue = JobQueue::new(1, 1);
        let submitted = queue.submit("a".to_owned(), "m".to_owned(), |_| panic!("broken")).unwrap();
        submitted.operation.wait().await;
        let status = submitted.operation.snapshot().ended.unwrap().1.unwrap_err();
        assert_eq!(status.code, i32::from(tonic::Code::Internal));
        queue.forget(submitted.operation.name());
        assert!(queue.get(submitted.operation.name()).is_none());
    }
}
