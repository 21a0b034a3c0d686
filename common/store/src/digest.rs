//! Hashing files, off the runtime's threads.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::StoreError;

/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// The hash as hex.
pub(crate) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256, hex, and the size of the rest of a file. Blocks. `cancelled` is asked now and then.
///
/// # Errors
/// When the file cannot be read; [`io::ErrorKind::Interrupted`] inside when `cancelled` says so.
pub(crate) fn hash(
    mut file: &File,
    path: &Path,
    cancelled: impl Fn() -> bool,
) -> Result<(String, u64), StoreError> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut size = 0;
    loop {
        if cancelled() {
            return Err(StoreError::from_io(io::ErrorKind::Interrupted.into(), path));
        }
        let read = match file.read(&mut chunk) {
            Ok(0) => return Ok((hex(hasher), size)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StoreError::from_io(error, path)),
        };
        hasher.update(&chunk[..read]);
        size += read as u64;
    }
}
