//! One downloader a file, over all processes that share a cache.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::HubError;
use crate::progress::FetchProgress;

/// Files can only be locked by waiting in a thread or by asking again; a thread could not be cancelled.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A locked file. Dropping it, or the end of the process, unlocks it.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Waits until nobody else has the lock at `path`.
    pub(crate) async fn acquire(path: &Path, progress: &dyn FetchProgress) -> Result<Self, HubError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(HubError::io(parent))?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(HubError::io(path))?;
        let mut waiting = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(error)) => return Err(HubError::io(path)(error)),
                Err(TryLockError::WouldBlock) => {
                    if !waiting {
                        progress.log(&format!("waiting for another download ({})", path.display()));
                    }
                    waiting = true;
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
    }
}
