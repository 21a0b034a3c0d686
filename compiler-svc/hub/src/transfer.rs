//! Bytes of one fetch, over all its files.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt};

use crate::HubError;
use crate::progress::{FetchProgress, FetchStage};

/// Files downloaded at once.
pub(crate) const FILES_AT_ONCE: usize = 4;

/// Runs at most `limit` of the futures at once, until all are done or one fails. Results are in the futures' order.
pub(crate) async fn at_once<T, F>(
    limit: usize,
    futures: impl IntoIterator<Item = F>,
) -> Result<Vec<T>, HubError>
where
    F: Future<Output = Result<T, HubError>>,
{
    // Collected: a stream over the iterator would have its borrows in its type, and be no `Send` future.
    let futures: Vec<F> = futures.into_iter().collect();
    futures::stream::iter(futures).buffered(limit).try_collect().await
}

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
