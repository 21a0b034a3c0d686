//! Files that exist under their name only when they are complete.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use roundhouse_backend::BackendError;

use crate::io_error;

/// A file under a name of its own, removed again unless it is finished.
pub struct PartialFile {
    partial: PathBuf,
    path: PathBuf,
    file: File,
    finished: bool,
}

impl PartialFile {
    /// Starts the file that will be `path`.
    ///
    /// # Errors
    /// [`BackendError::Io`].
    pub fn create(path: &Path) -> Result<Self, BackendError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let file = File::create(&partial).map_err(|error| io_error(&partial, error))?;
        Ok(Self { partial, path: path.to_owned(), file, finished: false })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`BackendError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BackendError> {
        self.file.write_all(bytes).map_err(|error| io_error(&self.partial, error))
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// [`BackendError::Io`].
    pub fn finish(mut self) -> Result<(), BackendError> {
        fs::rename(&self.partial, &self.path).map_err(|error| io_error(&self.path, error))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing can be done about a file that cannot be removed, and the error that led here says more.
            let _ = fs::remove_file(&self.partial);
        }
    }
}
