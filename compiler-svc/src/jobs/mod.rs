//! Compilations as operations: a bounded queue, progress that any number of callers follow, cancellation.

mod operation;
mod queue;

pub use operation::{Cursor, News, Operation, Snapshot, Update};
pub use queue::{JobQueue, QueueFull, Submitted};
