//! A model of the hub.

use std::path::Path;

use roundhouse_hub::{Checkpoints, HubConfig, HubError, Unwatched};

use crate::checkpoint_files::{folder, open, read, run, sharded, single};
use crate::hub_server::{COMMIT, HubServer, ID, OTHER_COMMIT, sha256};

#[test]
fn a_model_is_what_the_same_folder_is() {
    run(async {
        let server = HubServer::start(single(100)).await;
        let cache = tempfile::tempdir().unwrap();
        let checkpoint = server.open(cache.path()).await.unwrap();
        assert_eq!(checkpoint.model, ID);
        assert_eq!(checkpoint.revision.as_deref(), Some(COMMIT));
        let local = folder(&single(100));
        let local = open(local.path().to_str().unwrap(), cache.path()).await.unwrap();
        assert_eq!(checkpoint.digest, local.digest);
        assert_eq!(checkpoint.config, local.config);
        assert_eq!(read(&checkpoint, "weight"), read(&local, "weight"));
    });
}

#[test]
fn only_files_that_are_read_are_fetched() {
    run(async {
        let mut files = single(1);
        for name in ["README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx.onnx"] {
            files.insert(name.to_owned(), vec![0; 10]);
        }
        let server = HubServer::start(files).await;
        let cache = tempfile::tempdir().unwrap();
        server.open(cache.path()).await.unwrap();
        let mut fetched: Vec<String> = server
            .requests()
            .into_iter()
            .filter(|request| request.method == "GET" && request.path.contains("/resolve/"))
            .map(|request| request.path.rsplit('/').next().unwrap().to_owned())
            .collect();
        fetched.sort();
        assert_eq!(
            fetched,
            [
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json"
            ]
        );
    });
}

/// As `huggingface_hub` lays it out, so that both find what the other fetched.
#[test]
fn the_cache_is_laid_out_as_in_python() {
    run(async {
        let server = HubServer::start(single(1)).await;
        let cache = tempfile::tempdir().unwrap();
        server.open(cache.path()).await.unwrap();
        let model = cache.path().join("hub/models--org--name");
        assert_eq!(std::fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
        let digest = sha256(&single(1)["model.safetensors"]);
        let link =
            std::fs::read_link(model.join("snapshots").join(COMMIT).join("model.safetensors")).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(&digest));
        assert_eq!(std::fs::read(model.join("blobs").join(digest)).unwrap(), single(1)["model.safetensors"]);
        assert!(model.join(".no_exist").join(COMMIT).join("chat_template.jinja").exists());
        let blobs = std::fs::read_dir(model.join("blobs")).unwrap();
        let names: Vec<_> = blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(!names.iter().any(|name| name.ends_with(".incomplete")), "{names:?}");
    });
}

#[test]
fn a_commit_that_is_cached_needs_no_network() {
    run(async {
        let server = HubServer::start(single(1)).await;
        let cache = tempfile::tempdir().unwrap();
        let first = server.open(cache.path()).await.unwrap();
        server.requests();
        let second = server.open_revision(cache.path(), Some(COMMIT)).await.unwrap();
        assert_eq!(second.digest, first.digest);
        assert!(server.requests().is_empty());
    });
}

#[test]
fn a_branch_is_asked_for_but_its_files_are_not_fetched_twice() {
    run(async {
        let server = HubServer::start(single(1)).await;
        let cache = tempfile::tempdir().unwrap();
        server.open(cache.path()).await.unwrap();
        server.requests();
        server.open(cache.path()).await.unwrap();
        let requests = server.requests();
        assert!(requests.iter().any(|request| request.path.ends_with("/revision/main")));
        assert!(
            !requests.iter().any(|request| request.method == "GET" && request.path.contains("/resolve/"))
        );
    });
}

#[test]
fn a_snapshot_that_python_fetched_partly_is_completed() {
    run(async {
        let server = HubServer::start(single(1)).await;
        let cache = tempfile::tempdir().unwrap();
        let snapshot = cache.path().join("hub/models--org--name/snapshots").join(COMMIT);
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(snapshot.join("config.json"), &single(1)["config.json"]).unwrap();
        let checkpoint = server.open_revision(cache.path(), Some(COMMIT)).await.unwrap();
        assert!(checkpoint.generation_config.is_some());
    });
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    run(async {
        let server = HubServer::start(single(1)).await;
        let cache = tempfile::tempdir().unwrap();
        let checkpoint = server.open_revision(cache.path(), Some("refs/pr/1")).await.unwrap();
        assert_eq!(checkpoint.revision.as_deref(), Some(OTHER_COMMIT));
        let reference = cache.path().join("hub/models--org--name/refs/refs/pr/1");
        assert_eq!(std::fs::read_to_string(reference).unwrap(), OTHER_COMMIT);
        let error = server.open_revision(cache.path(), Some("no-such-branch")).await.unwrap_err();
        assert!(
            matches!(&error, HubError::RevisionNotFound { revision, .. } if revision == "no-such-branch"),
            "{error}"
        );
    });
}

#[test]
fn shards_are_those_of_the_index() {
    run(async {
        let mut files = sharded();
        files.insert("model-00003-of-00003.safetensors".to_owned(), vec![0; 10]);
        let server = HubServer::start(files).await;
        let cache = tempfile::tempdir().unwrap();
        let checkpoint = server.open(cache.path()).await.unwrap();
        assert_eq!(read(&checkpoint, "b"), [10.0, 11.0, 12.0, 13.0]);
        assert!(!server.requests().iter().any(|request| request.path.contains("00003")));
    });
}

#[test]
fn a_renamed_model_is_followed() {
    run(async {
        let server = HubServer::start(single(1)).await;
        server.behaviour.lock().former_id = Some("new-org/new-name");
        let cache = tempfile::tempdir().unwrap();
        let checkpoint = server.open(cache.path()).await.unwrap();
        assert_eq!(read(&checkpoint, "weight"), [0.0, 1.0, 2.0, 3.0]);
    });
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_storage_network() {
    run(async {
        let server = HubServer::start(single(1)).await;
        let cache = tempfile::tempdir().unwrap();
        let config = HubConfig { token: Some("hf_token".to_owned()), ..server.config(cache.path()) };
        Checkpoints::new(config).open(ID, None, &Unwatched).await.unwrap();
        let requests = server.requests();
        let (storage, hub): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.is_storage);
        assert!(!hub.is_empty() && !storage.is_empty());
        assert!(hub.iter().all(|request| request.authorization.as_deref() == Some("Bearer hf_token")));
        assert!(storage.iter().all(|request| request.authorization.is_none()));
    });
}

#[test]
fn offline_only_the_cache_is_used() {
    run(async {
        let server = HubServer::start(single(1)).await;
        let cache = tempfile::tempdir().unwrap();
        let offline = HubConfig { offline: true, ..server.config(cache.path()) };
        let offline = Checkpoints::new(offline);
        let error = offline.open(ID, None, &Unwatched).await.unwrap_err();
        assert!(matches!(error, HubError::Offline { .. }), "{error}");
        let first = server.open(cache.path()).await.unwrap();
        server.requests();
        assert_eq!(offline.open(ID, None, &Unwatched).await.unwrap().digest, first.digest);
        assert_eq!(offline.open(ID, Some(COMMIT), &Unwatched).await.unwrap().digest, first.digest);
        assert!(offline.open(ID, Some(OTHER_COMMIT), &Unwatched).await.is_err());
        assert!(server.requests().is_empty());
    });
}

#[test]
fn an_unreachable_hub_leaves_what_is_cached() {
    run(async {
        let server = HubServer::start(single(1)).await;
        let cache = tempfile::tempdir().unwrap();
        let unreachable =
            HubConfig { endpoint: "http://127.0.0.1:9".to_owned(), ..server.config(cache.path()) };
        let unreachable = Checkpoints::new(unreachable);
        let error = unreachable.open(ID, None, &Unwatched).await.unwrap_err();
        assert!(matches!(error, HubError::Network { .. }), "{error}");
        let first = server.open(cache.path()).await.unwrap();
        let second = unreachable.open(ID, None, &Unwatched).await.unwrap();
        assert_eq!((second.digest, second.revision), (first.digest, first.revision));
    });
}

#[test]
fn opening_can_be_spawned() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let cache = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(crate::checkpoint_files::config(cache.path()));
    drop(is_send(checkpoints.open(ID, None, &Unwatched)));
}
