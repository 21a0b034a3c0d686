//! How the caller learns how far a fetch is, and how it stops one.

use crate::HubError;

/// What is being worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchStage {
    /// Files come over the network.
    Download,
    /// Files are hashed, to identify their content.
    Hash,
}

/// The caller asks to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

impl From<Cancelled> for HubError {
    fn from(Cancelled: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// Where a fetch says how far it is, and learns that it should stop.
pub trait FetchProgress: Send + Sync {
    /// Reports bytes done of the total, each counted over all files of the stage.
    ///
    /// # Errors
    /// [`Cancelled`] when the fetch should stop.
    fn bytes(&self, stage: FetchStage, done: u64, total: u64) -> Result<(), Cancelled>;

    /// Passes on a line for people.
    fn log(&self, line: &str);
}

/// For callers that do not watch: lines go to `tracing`, nothing cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl FetchProgress for Unwatched {
    fn bytes(&self, _stage: FetchStage, _done: u64, _total: u64) -> Result<(), Cancelled> {
        Ok(())
    }

    fn log(&self, line: &str) {
        tracing::info!("{line}");
    }
}
