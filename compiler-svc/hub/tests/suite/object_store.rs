//! A checkpoint behind a URL. Downloads themselves are tested with a store in memory, in `src/object_store`.

use std::collections::BTreeMap;

use roundhouse_hub::{Checkpoints, HubConfig, HubError, Unwatched};

use crate::checkpoint_files::{config, folder, open, read, run, single};

#[test]
fn a_file_url_is_the_folder_itself() {
    let (folder, cache) = (folder(&single(2)), tempfile::tempdir().unwrap());
    let url = format!("file://{}", folder.path().to_str().unwrap());
    let checkpoint = run(open(&url, cache.path())).unwrap();
    assert_eq!(read(&checkpoint, "weight").len(), 8);
}

#[test]
fn a_service_without_local_paths_opens_none() {
    let (folder, cache) = (folder(&single(2)), tempfile::tempdir().unwrap());
    let checkpoints = Checkpoints::new(HubConfig { local_paths: false, ..config(cache.path()) });
    for text in [folder.path().to_str().unwrap(), &format!("file://{}", folder.path().to_str().unwrap())] {
        let error = run(checkpoints.open(text, None, &Unwatched)).unwrap_err();
        assert!(matches!(error, HubError::LocalPathsForbidden { .. }), "{error}");
    }
}

#[test]
fn a_store_that_cannot_be_reached_is_an_error_with_its_url() {
    let cache = tempfile::tempdir().unwrap();
    let object_store = BTreeMap::from(
        [("timeout", "1s"), ("connect_timeout", "1s")]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let checkpoints = Checkpoints::new(HubConfig { object_store, ..config(cache.path()) });
    let error = run(checkpoints.open("https://127.0.0.1:9/models/m", None, &Unwatched)).unwrap_err();
    assert!(matches!(&error, HubError::ObjectStore { url, .. } if url.contains("127.0.0.1:9")), "{error}");
}
