//! Half-written files that killed uploads leave in a local folder.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::StoreError;
use crate::error::blocking;

/// Removes the files that object_store writes next to an object before it renames them (`<object>#<number>`), when
/// nothing was written to them for `grace`.
pub(crate) async fn remove_abandoned(folder: &Path, grace: Duration) -> Result<(), StoreError> {
    let mut folders = vec![folder.join("blobs/sha256"), folder.join("engines")];
    blocking(move || {
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::from_io(error, &folder)),
            };
            for entry in entries.flatten() {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                } else if is_staged(&path) && age(&path) >= grace {
                    tracing::info!(path = %path.display(), "removing an abandoned upload");
                    // One that is gone meanwhile was removed or finished by somebody else.
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        Ok(())
    })
    .await
}

fn is_staged(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.rsplit_once('#'));
    name.is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn age(path: &Path) -> Duration {
    let modified = std::fs::metadata(path).and_then(|meta| meta.modified());
    modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok()).unwrap_or_default()
}
