//! Where TensorRT is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use roundhouse_backend::LibrarySearch;
use roundhouse_engine::ComputeCapabilities;

use crate::{Flavour, Version, dylib};

/// How deep below a cache folder a library may be.
const MAX_DEPTH: usize = 6;

/// How a library was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It is the one configured.
    Configured,
    /// It is in a cache folder.
    Cache,
    /// The system's loader finds it by this name.
    Loader,
}

/// A library that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its path, or its name if the system's loader finds it.
    pub path: PathBuf,
    /// How it was found.
    pub source: Source,
    /// Its version, or why it cannot be loaded.
    pub version: Result<Version, String>,
    /// Which of the two products it is, by its version; by its name if it cannot be loaded.
    pub flavour: Flavour,
}

impl Found {
    /// The compute capabilities that it builds for.
    #[must_use]
    pub fn supported(&self) -> ComputeCapabilities {
        self.flavour.supported()
    }

    /// Whether this program can use it.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.version.as_ref().is_ok_and(|&version| version == dylib::compiled_version())
    }
}

/// All libraries of both flavours that are where to search or where the system's loader looks, in the
/// order in which [`crate::Library::load`] prefers them. Each is loaded to ask its version.
#[must_use]
pub fn find_all(search: &LibrarySearch) -> Vec<Found> {
    let flavours =
        [Flavour::COMPILED].into_iter().chain(Flavour::ALL.into_iter().filter(|&f| f != Flavour::COMPILED));
    let mut found: Vec<Found> = Vec::new();
    for candidate in flavours.flat_map(|flavour| candidates(search, flavour)) {
        let version = dylib::version_of(candidate.path.as_os_str());
        // A name that the loader does not know is no finding, a file that cannot be loaded is.
        let known = found.iter().any(|known| same_file(&known.path, &candidate.path));
        if known || (candidate.source == Source::Loader && version.is_err()) {
            continue;
        }
        let flavour = version.as_ref().map_or(candidate.flavour, |version| version.flavour());
        found.push(Found { path: candidate.path, source: candidate.source, version, flavour });
    }
    found
}

/// A place where a library may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) path: PathBuf,
    pub(crate) source: Source,
    /// The flavour whose name it has.
    flavour: Flavour,
}

/// The places where a flavour may be, the preferred first. Files of cache folders exist.
pub(crate) fn candidates(search: &LibrarySearch, flavour: Flavour) -> Vec<Candidate> {
    let candidate = |path, source| Candidate { path, source, flavour };
    if let Some(path) = &search.path {
        return vec![candidate(path.clone(), Source::Configured)];
    }
    let names = flavour.library_names();
    let mut files = Vec::new();
    for folder in &search.folders {
        files_named(folder, names, MAX_DEPTH, &mut files);
    }
    let rank = |path: &Path| names.iter().position(|&name| path.file_name() == Some(OsStr::new(name)));
    files.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.cmp(b)));
    let cached = files.into_iter().map(|path| candidate(path, Source::Cache));
    cached.chain(names.iter().map(|name| candidate(PathBuf::from(name), Source::Loader))).collect()
}

/// Descriptions of all places that [`candidates`] looks at, found or not.
pub(crate) fn looked_at(search: &LibrarySearch, flavour: Flavour) -> Vec<String> {
    if let Some(path) = &search.path {
        return vec![path.display().to_string()];
    }
    let names = flavour.library_names();
    let cached = search.folders.iter().map(|folder| format!("{}/**/{}", folder.display(), names.join("|")));
    cached.chain(names.iter().map(|name| format!("{name} where the system's loader looks"))).collect()
}

/// Adds the files of these names in a folder and the folders in it. What cannot be read holds none.
fn files_named(folder: &Path, names: &[&str], depth: usize, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        // Through links too: the depth bounds a loop of them.
        if path.is_dir() {
            if depth > 0 {
                files_named(&path, names, depth - 1, files);
            }
        } else if names.iter().any(|&name| path.file_name() == Some(OsStr::new(name))) {
            files.push(path);
        }
    }
}

/// Whether two paths are one file.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_configured_path_is_the_only_candidate() {
        let path = PathBuf::from("/opt/trt/libtensorrt_rtx.so.1");
        let config = LibrarySearch { path: Some(path.clone()), folders: vec![PathBuf::from("/cache")] };
        let found = candidates(&config, Flavour::Rtx);
        assert_eq!(
            found.iter().map(|c| (&c.path, c.source)).collect::<Vec<_>>(),
            [(&path, Source::Configured)]
        );
        assert_eq!(looked_at(&config, Flavour::Rtx), ["/opt/trt/libtensorrt_rtx.so.1"]);
    }

    #[test]
    fn cache_folders_are_searched_before_the_loader() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("1.7/lib");
        fs::create_dir_all(&deep).unwrap();
        for name in ["libtensorrt_rtx.so.1", "libtensorrt_rtx.so.1.7.1", "libother.so.1"] {
            fs::write(deep.join(name), b"no library").unwrap();
        }
        std::os::unix::fs::symlink(folder.path(), deep.join("loop")).unwrap();
        let config = LibrarySearch { path: None, folders: vec![folder.path().to_owned()] };
        let found = candidates(&config, Flavour::Rtx);
        assert_eq!(
            (&found[0].path, found[0].source),
            (&deep.join("libtensorrt_rtx.so.1.7.1"), Source::Cache)
        );
        let loader = found.iter().filter(|c| c.source == Source::Loader).map(|c| c.path.to_str().unwrap());
        assert_eq!(loader.collect::<Vec<_>>(), Flavour::Rtx.library_names());
        let files = found.iter().filter(|c| c.source == Source::Cache);
        assert!(files.clone().count() >= 2 && files.clone().all(|c| !c.path.ends_with("libother.so.1")));
    }

    #[test]
    fn a_file_that_is_no_library_is_found_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libtensorrt_rtx.so.1");
        fs::write(&file, b"no library").unwrap();
        let found = find_all(&LibrarySearch { path: Some(file.clone()), folders: Vec::new() });
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((&found[0].path, found[0].is_usable()), (&file, false));
        assert!(found[0].version.as_ref().unwrap_err().contains("libtensorrt_rtx.so.1"), "{found:?}");
    }
}
