//! Where NVRTC is.

use std::path::{Path, PathBuf};

use roundhouse_backend::LibrarySearch;

use crate::NvrtcError;

/// The major version that makes code for every driver from 525 on.
pub(crate) const LIBRARY: &str = "libnvrtc.so.12";
/// How deep below a folder it may be: `nvidia/cuda_nvrtc/lib` in a folder that pip installs to.
const MAX_DEPTH: usize = 4;

/// The library's file.
pub(crate) fn find(search: &LibrarySearch) -> Result<PathBuf, NvrtcError> {
    let found = match &search.path {
        Some(path) => path.is_file().then(|| path.clone()),
        None => search.folders.iter().find_map(|folder| file_in(folder, MAX_DEPTH)),
    };
    found.ok_or_else(|| NvrtcError::NotFound {
        looked_at: match &search.path {
            Some(path) => vec![path.display().to_string()],
            None => search.folders.iter().map(|folder| format!("{}/**", folder.display())).collect(),
        },
    })
}

/// The library in a folder or the folders in it, the first by name.
fn file_in(folder: &Path, depth: usize) -> Option<PathBuf> {
    let file = folder.join(LIBRARY);
    if file.is_file() {
        return Some(file);
    }
    let entries = std::fs::read_dir(folder).ok().filter(|_| depth > 0)?;
    let mut folders: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders.iter().find_map(|folder| file_in(folder, depth - 1))
}

/// The builtins, which the compiler opens by name when it first compiles: beside the library.
pub(crate) fn builtins(library: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(library.parent()?).ok()?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("libnvrtc-builtins.so"))
        })
        .collect();
    files.sort();
    files.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_where_pip_installs_it_and_a_configured_path_is_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("nvidia/cuda_nvrtc/lib");
        std::fs::create_dir_all(&lib).unwrap();
        for name in [LIBRARY, "libnvrtc-builtins.so.12.9"] {
            std::fs::write(lib.join(name), b"").unwrap();
        }
        let folders = vec![PathBuf::from("/nowhere"), folder.path().to_owned()];
        let found = find(&LibrarySearch { path: None, folders: folders.clone() }).unwrap();
        assert_eq!(found, lib.join(LIBRARY));
        assert_eq!(builtins(&found), Some(lib.join("libnvrtc-builtins.so.12.9")));
        let error = find(&LibrarySearch { path: Some("/nowhere/lib".into()), folders }).unwrap_err();
        assert_eq!(error, NvrtcError::NotFound { looked_at: vec!["/nowhere/lib".to_owned()] });
        assert!(error.to_string().contains("scripts/fetch_nvrtc.py"), "{error}");
    }
}
