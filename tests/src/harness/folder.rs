//! A folder for this process's engines.
//!
//! Engines of hundreds of megabytes do not belong in the system's temporary folder, and a process cannot remove its
//! folder when it ends with statics alive. So every process locks its own, and removes those that nobody locks.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context as _, Result, anyhow};

struct Folder {
    path: PathBuf,
    /// Held until the process ends.
    _lock: File,
}

static FOLDER: LazyLock<Result<Folder>> = LazyLock::new(claim);

/// The folder, empty when the process began.
///
/// # Errors
/// When it cannot be made.
pub(super) fn folder() -> Result<&'static Path> {
    match &*FOLDER {
        Ok(folder) => Ok(&folder.path),
        Err(error) => Err(anyhow!("{error:#}")),
    }
}

fn claim() -> Result<Folder> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.roundhouse/e2e");
    fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
    let root = root.canonicalize()?;
    // One process at a time claims and removes, so that none removes what another has made but not locked yet.
    let claiming = File::create(root.join("claiming.lock"))?;
    claiming.lock()?;
    for entry in fs::read_dir(&root)? {
        let path = entry?.path();
        if path.is_dir() && is_abandoned(&path)? {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    let path = tempfile::Builder::new().prefix("process-").tempdir_in(&root)?.keep();
    let lock = File::create(lock_path(&path))?;
    lock.lock()?;
    Ok(Folder { path, _lock: lock })
}

fn is_abandoned(path: &Path) -> Result<bool> {
    match File::create(lock_path(path))?.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn lock_path(folder: &Path) -> PathBuf {
    folder.join("process.lock")
}
