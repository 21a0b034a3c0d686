//! Bytes of one fetch, over all its files.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::HubError;
use crate::progress::{FetchProgress, FetchStage};

/// Files downloaded at once.
pub(crate) const FILES_AT_ONCE: usize = 4;

/// Counts the bytes of one fetch.
pub(crate) struct Transfer<'a> {
    pub(crate) progress: &'a dyn FetchProgress,
    done: AtomicU64,
    total: AtomicU64,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(progress: &'a dyn FetchProgress) -> Self {
        Self { progress, done: AtomicU64::new(0), total: AtomicU64::new(0) }
    }

    /// More is to come.
    pub(crate) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes are here.
    ///
    /// # Errors
    /// [`HubError::Cancelled`] when the caller wants no more.
    pub(crate) fn advance(&self, bytes: u64) -> Result<(), HubError> {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        Ok(self.progress.bytes(FetchStage::Download, done, self.total.load(Ordering::Relaxed))?)
    }

    /// Bytes have to come once more.
    pub(crate) fn rewind(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}
