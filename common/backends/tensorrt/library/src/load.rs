//! Loading the library.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use roundhouse_backend::LibrarySearch;

use crate::find::{self, Candidate, Source};
use crate::{Flavour, LibraryError, Version, dylib};

/// TensorRT, loaded. A process has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    path: PathBuf,
}

impl Library {
    /// Loads TensorRT, or returns what the process has loaded if the search would find the same.
    ///
    /// # Errors
    /// [`LibraryError`]: it is nowhere, or what is there is not what this program was compiled for.
    pub fn load(search: &LibrarySearch) -> Result<Self, LibraryError> {
        static LOADED: Mutex<Option<Library>> = Mutex::new(None);
        let mut loaded = LOADED.lock();
        if let Some(library) = &*loaded {
            return match &search.path {
                Some(asked) if !find::same_file(asked, &library.path) => {
                    Err(LibraryError::AlreadyLoaded { loaded: library.path.clone(), asked: asked.clone() })
                }
                _ => Ok(library.clone()),
            };
        }
        let path = choose(search, Flavour::COMPILED, dylib::compiled_version())?;
        trtx::dynamically_load_tensorrt(Some(path.as_os_str()))
            .map_err(|error| LibraryError::LoadFailed { path: path.clone(), what: error.to_string() })?;
        tracing::info!("loaded {} {} from {}", Flavour::COMPILED, Self::version(), path.display());
        Ok(loaded.insert(Self { path }).clone())
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version that this program was compiled for, which is the version of any library that it loads.
    #[must_use]
    pub fn version() -> Version {
        dylib::compiled_version()
    }
}

/// The first candidate that fits, else why the first one that exists does not.
fn choose(search: &LibrarySearch, flavour: Flavour, needed: Version) -> Result<PathBuf, LibraryError> {
    let mut first_error = None;
    for candidate in find::candidates(search, flavour) {
        match check(&candidate, needed) {
            Ok(path) => return Ok(path),
            Err(None) => {}
            Err(Some(error)) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error
        .unwrap_or_else(|| LibraryError::NotFound { flavour, looked: find::looked_at(search, flavour) }))
}

/// The candidate's path if it fits; `None` as error if there is nothing.
fn check(candidate: &Candidate, needed: Version) -> Result<PathBuf, Option<LibraryError>> {
    let path = candidate.path.clone();
    if candidate.source == Source::Configured && !path.exists() && path.components().count() > 1 {
        return Err(None);
    }
    let found = match dylib::version_of(path.as_os_str()) {
        Ok(found) => found,
        Err(_) if candidate.source == Source::Loader => return Err(None),
        Err(what) => return Err(Some(LibraryError::LoadFailed { path, what })),
    };
    if found == needed {
        return Ok(path);
    }
    Err(Some(if found.flavour() == needed.flavour() {
        LibraryError::VersionMismatch { path, found, needed }
    } else {
        LibraryError::WrongFlavour { path, found: found.flavour(), needed: needed.flavour() }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn choose_for(needed: Version) -> Result<PathBuf, LibraryError> {
        choose(&testing::library_search(), Flavour::COMPILED, needed)
    }

    #[test]
    fn the_library_of_the_headers_version_is_chosen() {
        assert_eq!(choose_for(Library::version()), Ok(testing::library_path()));
    }

    #[test]
    fn another_version_is_refused_with_both_and_how_to_get_the_right_one() {
        let needed = Version { minor: 8, ..Library::version() };
        let error = choose_for(needed).unwrap_err();
        assert!(matches!(error, LibraryError::VersionMismatch { .. }), "{error:?}");
        let message = error.to_string();
        for part in [&Library::version().to_string(), "1.8.1", "make tensorrt"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_other_flavour_is_refused() {
        let error = choose_for(Version { major: 11, minor: 4, patch: 0 }).unwrap_err();
        assert!(matches!(error, LibraryError::WrongFlavour { needed: Flavour::Enterprise, .. }), "{error:?}");
    }

    #[test]
    fn a_missing_library_names_every_place_and_the_command() {
        let folder = PathBuf::from("/nonexistent/cache");
        let config = LibrarySearch { path: None, folders: vec![folder] };
        // The enterprise flavour is not on the loader's path of a machine that tests this one.
        let error = choose(&config, Flavour::Enterprise, Library::version()).unwrap_err();
        let message = error.to_string();
        for part in ["/nonexistent/cache", "libnvinfer.so.11", "system's loader", "pip install"] {
            assert!(message.contains(part), "{message}");
        }
        let config = LibrarySearch { path: Some(PathBuf::from("/nonexistent/lib.so")), folders: Vec::new() };
        let error = choose(&config, Flavour::COMPILED, Library::version()).unwrap_err();
        assert!(
            matches!(&error, LibraryError::NotFound { looked, .. } if looked == &["/nonexistent/lib.so"])
        );
    }

    #[test]
    fn a_process_loads_one_library() {
        let first = Library::load(&testing::library_search()).unwrap();
        assert_eq!(Library::load(&LibrarySearch::default()).as_ref(), Ok(&first));
        let other = PathBuf::from("/nonexistent/libtensorrt_rtx.so.1");
        let config = LibrarySearch { path: Some(other.clone()), folders: Vec::new() };
        assert_eq!(
            Library::load(&config),
            Err(LibraryError::AlreadyLoaded { loaded: first.path().to_owned(), asked: other })
        );
    }
}
