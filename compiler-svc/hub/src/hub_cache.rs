//! One model in the hub's cache, in the layout of Python's `huggingface_hub`:
//!
//! ```text
//! models--org--name/blobs/<etag>                   contents
//! models--org--name/snapshots/<commit>/<file>      links to them
//! models--org--name/refs/<branch or tag>           the commit that it was last resolved to
//! models--org--name/.no_exist/<commit>/<file>      files that a commit is known not to have
//! .locks/models--org--name/<etag>.lock             held while a content is downloaded
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::HubError;
use crate::directory;
use crate::hub_http::is_commit;
use crate::layout::{self, Layout, WeightFiles};

/// Tells temporary files of this process apart.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// One model in the cache.
#[derive(Debug, Clone)]
pub(crate) struct ModelCache {
    folder: PathBuf,
    locks: PathBuf,
}

/// How much of a snapshot has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completeness {
    /// Everything that the commit has.
    Whole,
    /// What a checkpoint cannot do without.
    Usable,
}

impl ModelCache {
    pub(crate) fn new(cache: &Path, id: &str) -> Self {
        let folder = format!("models--{}", id.replace('/', "--"));
        Self { locks: cache.join(".locks").join(&folder), folder: cache.join(folder) }
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub(crate) fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a branch or tag was last resolved to.
    pub(crate) fn resolved(&self, revision: &str) -> Option<String> {
        let commit = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(crate) fn set_resolved(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        write_atomically(&self.folder.join("refs").join(revision), |path| std::fs::write(path, commit))
    }

    /// Makes a content a file of a commit.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let target = Path::new("../../blobs").join(etag);
        let link = self.snapshot(commit).join(file);
        if std::fs::read_link(&link).is_ok_and(|found| found == target) {
            return Ok(());
        }
        write_atomically(&link, |path| std::os::unix::fs::symlink(&target, path))
    }

    fn no_exist(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(file)
    }

    /// Notes that a commit has no such file.
    pub(crate) fn set_no_exist(&self, commit: &str, file: &str) -> Result<(), HubError> {
        let path = self.no_exist(commit, file);
        if path.exists() {
            return Ok(());
        }
        write_atomically(&path, |path| std::fs::write(path, ""))
    }

    /// The folder of a commit, if it is there.
    pub(crate) fn cached(&self, commit: &str, completeness: Completeness) -> Option<PathBuf> {
        let snapshot = self.snapshot(commit);
        let names = directory::file_names(&snapshot).ok()?;
        let layout = Layout::of("", &names).ok()?;
        let index = match layout.weights {
            WeightFiles::Single => None,
            WeightFiles::Indexed => Some(directory::read_index(&snapshot).ok()?),
        };
        let has_weights = Layout::weight_files(index.as_ref()).is_subset(&names);
        let known = |name: &&str| names.contains(*name) || self.no_exist(commit, name).exists();
        let is_whole = completeness == Completeness::Usable || layout::OPTIONAL.iter().all(known);
        (has_weights && is_whole).then_some(snapshot)
    }
}

/// Makes a file under another name first, so that nobody sees half of it.
fn write_atomically(path: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).map_err(HubError::io(parent))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = parent.join(format!(".{name}.{}.{number}", std::process::id()));
    // Left behind by a process that had this one's id.
    let _ = std::fs::remove_file(&temporary);
    let written = write(&temporary).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(HubError::io(path))
}
