//! How far a transfer is.

use std::sync::atomic::{AtomicU64, Ordering};

use roundhouse_engine::BlobRef;

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferUpdate<'a> {
    /// The role of the blob that moved.
    pub blob: &'a str,
    /// Bytes of it that are done.
    pub blob_done: u64,
    /// Its bytes.
    pub blob_total: u64,
    /// Bytes of the engine that are done. Goes back when a corrupt download is made again.
    pub done: u64,
    /// The engine's bytes.
    pub total: u64,
}

/// Where transfers say how far they are. Called on the runtime's threads: it must not block.
pub trait TransferProgress: Send + Sync {
    /// Some bytes moved, or were there already.
    fn update(&self, update: &TransferUpdate<'_>);
}

/// For whoever does not want to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl TransferProgress for NoProgress {
    fn update(&self, _update: &TransferUpdate<'_>) {}
}

/// Counts the bytes of a whole transfer.
pub(crate) struct Tracker<'a> {
    progress: &'a dyn TransferProgress,
    total: u64,
    done: AtomicU64,
}

impl<'a> Tracker<'a> {
    pub(crate) fn new(progress: &'a dyn TransferProgress, total: u64) -> Self {
        Self { progress, total, done: AtomicU64::new(0) }
    }

    /// Starts to count a blob.
    pub(crate) fn blob<'b>(&'b self, blob: &'b BlobRef) -> BlobTracker<'b> {
        BlobTracker { tracker: self, blob, done: 0 }
    }
}

/// Counts the bytes of one blob.
pub(crate) struct BlobTracker<'a> {
    tracker: &'a Tracker<'a>,
    blob: &'a BlobRef,
    done: u64,
}

impl BlobTracker<'_> {
    /// Some bytes more are done.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        let done = self.tracker.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.tracker.progress.update(&TransferUpdate {
            blob: &self.blob.name,
            blob_done: self.done,
            blob_total: self.blob.size,
            done,
            total: self.tracker.total,
        });
    }

    /// All of it is done.
    pub(crate) fn finish(&mut self) {
        self.add(self.blob.size.saturating_sub(self.done));
    }

    /// It starts again.
    pub(crate) fn restart(&mut self) {
        self.tracker.done.fetch_sub(self.done, Ordering::Relaxed);
        self.done = 0;
    }
}
