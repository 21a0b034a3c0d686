//! Identifying content: SHA-256 of files, kept beside the cache, and of the set of files that is a checkpoint.

use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::HubError;
use crate::file::ReadOnlyFile;
use crate::progress::Cancelled;

/// Bytes hashed between two reports.
const CHUNK_BYTES: usize = 1024 * 1024;
/// A file changed more recently than this may change again without its time changing: the coarsest clock of a file
/// system in use.
const CLOCK_TICK: Duration = Duration::from_secs(2);

/// Digests of files, remembered by path, size and times, so that weights are hashed once and not on every open.
#[derive(Debug, Clone)]
pub(crate) struct FileDigests {
    directory: PathBuf,
}

/// What a remembered digest holds for. Any write to the file changes it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    path: PathBuf,
    size: u64,
    inode: u64,
    modified_ns: i128,
    changed_ns: i128,
    sha256: String,
}

impl Record {
    fn new(path: &Path, metadata: &Metadata, sha256: String) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            path: path.to_owned(),
            size: metadata.len(),
            inode: metadata.ino(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            sha256,
        }
    }
}

impl FileDigests {
    /// Remembers digests in `directory`, which is made when needed.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The SHA-256 of a file's content, in hex. `hashed` gets the bytes of every step as they are done, and all of
    /// them at once when the digest is remembered.
    pub(crate) fn of_file(
        &self,
        path: &Path,
        hashed: &mut dyn FnMut(u64) -> Result<(), Cancelled>,
    ) -> Result<String, HubError> {
        let path = path.canonicalize().map_err(HubError::io(path))?;
        let file = ReadOnlyFile::open(&path)?;
        let metadata = file.as_file().metadata().map_err(HubError::io(&path))?;
        if let Some(sha256) = self.recall(&path, &metadata) {
            hashed(metadata.len())?;
            return Ok(sha256);
        }
        let sha256 = hash(&file, hashed)?;
        let after = file.as_file().metadata().map_err(HubError::io(&path))?;
        let record = Record::new(&path, &metadata, sha256.clone());
        if record != Record::new(&path, &after, sha256.clone()) {
            return Err(HubError::corrupt(&path, "it changed while it was read"));
        }
        let settled = metadata.modified().is_ok_and(|modified| {
            SystemTime::now().duration_since(modified).is_ok_and(|age| age > CLOCK_TICK)
        });
        if settled {
            self.remember(&record);
        }
        Ok(sha256)
    }

    fn record_path(&self, path: &Path) -> PathBuf {
        let name = hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()));
        self.directory.join(format!("{name}.json"))
    }

    fn recall(&self, path: &Path, metadata: &Metadata) -> Option<String> {
        let bytes = std::fs::read(self.record_path(path)).ok()?;
        let record: Record = serde_json::from_slice(&bytes).ok()?;
        let current = Record::new(path, metadata, record.sha256.clone());
        (record == current && is_sha256(&record.sha256)).then_some(record.sha256)
    }

    /// Failing to remember only costs time later, so it is no error.
    fn remember(&self, record: &Record) {
        let path = self.record_path(&record.path);
        let temporary = path.with_extension(format!("{}.partial", std::process::id()));
        let written = serde_json::to_vec(record)
            .map_err(std::io::Error::other)
            .and_then(|bytes| std::fs::create_dir_all(&self.directory).map(|()| bytes))
            .and_then(|bytes| std::fs::write(&temporary, bytes))
            .and_then(|()| std::fs::rename(&temporary, &path));
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), %error, "a file's digest was not remembered");
        }
    }
}

fn hash(
    file: &ReadOnlyFile,
    hashed: &mut dyn FnMut(u64) -> Result<(), Cancelled>,
) -> Result<String, HubError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut reader = file.as_file();
    loop {
        let count = reader.read(&mut buffer).map_err(HubError::io(file.path()))?;
        if count == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
        hashed(count as u64)?;
    }
}

/// The digest of a set of files: names and contents, in the names' order.
pub(crate) fn of_checkpoint<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(b"roundhouse checkpoint 1\n");
    for (name, sha256) in files {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(sha256);
    }
    hex(&hasher.finalize())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether this is a SHA-256 in lower-case hex.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(path: &Path) {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn known_content_has_its_known_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let digests = FileDigests::new(directory.path().join("digests"));
        let mut seen = 0;
        let digest = digests
            .of_file(&path, &mut |bytes| {
                seen += bytes;
                Ok(())
            })
            .unwrap();
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(seen, 3);
    }

    #[test]
    fn a_settled_file_is_remembered_and_a_changed_one_is_hashed_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        std::fs::write(&path, "abc").unwrap();
        old(&path);
        let digests = FileDigests::new(directory.path().join("digests"));
        let first = digests.of_file(&path, &mut |_| Ok(())).unwrap();
        let recall = |path: &Path| digests.recall(path, &path.metadata().unwrap());
        let canonical = path.canonicalize().unwrap();
        assert_eq!(recall(&canonical), Some(first.clone()));

        std::fs::write(&path, "abd").unwrap();
        old(&path);
        assert_eq!(recall(&canonical), None);
        assert_ne!(digests.of_file(&path, &mut |_| Ok(())).unwrap(), first);
    }

    #[test]
    fn a_file_that_just_changed_is_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        std::fs::write(&path, "abc").unwrap();
        let digests = FileDigests::new(directory.path().join("digests"));
        digests.of_file(&path, &mut |_| Ok(())).unwrap();
        assert_eq!(digests.recall(&path.canonicalize().unwrap(), &path.metadata().unwrap()), None);
    }

    #[test]
    fn hashing_stops_when_asked_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        std::fs::write(&path, "abc").unwrap();
        let digests = FileDigests::new(directory.path().join("digests"));
        let result = digests.of_file(&path, &mut |_| Err(Cancelled));
        assert!(matches!(result, Err(HubError::Cancelled)), "{result:?}");
    }

    #[test]
    fn a_checkpoint_digest_depends_on_every_name_and_content() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let base = of_checkpoint([("config.json", a.as_str()), ("model.safetensors", b.as_str())]);
        assert!(is_sha256(&base));
        assert_ne!(base, of_checkpoint([("config.json", b.as_str()), ("model.safetensors", b.as_str())]));
        assert_ne!(base, of_checkpoint([("config.jso", a.as_str()), ("model.safetensors", b.as_str())]));
        assert_ne!(base, of_checkpoint([("config.json", a.as_str())]));
    }
}
