use object_store::memory::InMemory;

use super::*;
use crate::progress::Unwatched;

const WEIGHTS_BYTES: usize = 3 * RANGE_BYTES as usize + 17;

fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

async fn put(store: &InMemory, files: &[(&str, &[u8])]) {
    for (path, bytes) in files {
        store.put(&ObjectPath::from(*path), bytes.to_vec().into()).await.unwrap();
    }
}

async fn fetch(store: &Arc<InMemory>, text: &str, cache: &Path) -> Result<Fetched, HubError> {
    let path = ObjectPath::from_url_path(url(text).path()).unwrap();
    fetch_from(store.clone(), &url(text), path, cache, &Unwatched).await
}

fn weights() -> Vec<u8> {
    (0..WEIGHTS_BYTES).map(|index| (index % 251) as u8).collect()
}

#[tokio::test]
async fn a_folder_comes_with_the_files_that_are_read() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let weights = weights();
    put(
        &store,
        &[
            ("models/m/config.json", b"{}"),
            ("models/m/tokenizer.json", b"{}"),
            ("models/m/README.md", b"no"),
            ("models/m/model.safetensors", &weights),
        ],
    )
    .await;
    let Fetched::Directory(folder) = fetch(&store, "s3://bucket/models/m", cache.path()).await.unwrap()
    else {
        panic!("a folder is a folder");
    };
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights);
    let names: Vec<String> = directory::file_names(&folder).unwrap().into_iter().collect();
    let visible: Vec<_> = names.iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(visible, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert!(!names.iter().any(|name| name.ends_with(".partial")), "{names:?}");
}

#[tokio::test]
async fn shards_come_by_the_index() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    put(
        &store,
        &[
            ("m/config.json", b"{}"),
            ("m/tokenizer.json", b"{}"),
            ("m/model.safetensors.index.json", index),
            ("m/model-1.safetensors", b"1"),
            ("m/model-3.safetensors", b"3"),
        ],
    )
    .await;
    let error = fetch(&store, "gs://bucket/m", cache.path()).await.unwrap_err();
    assert!(matches!(&error, HubError::MissingFile { file, .. } if file == "model-2.safetensors"), "{error}");
    put(&store, &[("m/model-2.safetensors", b"2")]).await;
    let Fetched::Directory(folder) = fetch(&store, "gs://bucket/m", cache.path()).await.unwrap() else {
        panic!("a folder is a folder");
    };
    assert_eq!(std::fs::read(folder.join("model-2.safetensors")).unwrap(), b"2");
    assert!(!folder.join("model-3.safetensors").exists());
}

#[tokio::test]
async fn a_gguf_file_comes_alone() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    put(&store, &[("m/a.gguf", &weights()), ("m/b.gguf", b"other")]).await;
    let Fetched::GgufFile(path) = fetch(&store, "az://container/m/a.gguf", cache.path()).await.unwrap()
    else {
        panic!("a file is a file");
    };
    assert_eq!(std::fs::read(path).unwrap(), weights());
    let error = fetch(&store, "az://container/m/c.gguf", cache.path()).await.unwrap_err();
    assert!(matches!(error, HubError::ModelNotFound { .. }), "{error}");
}

#[tokio::test]
async fn what_has_not_changed_stays_and_what_has_comes_again() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    put(&store, &[("m/a.gguf", b"first")]).await;
    let Fetched::GgufFile(path) = fetch(&store, "s3://b/m/a.gguf", cache.path()).await.unwrap() else {
        panic!("a file is a file");
    };
    // Its content tells whether it was downloaded again.
    std::fs::write(&path, "local").unwrap();
    fetch(&store, "s3://b/m/a.gguf", cache.path()).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"local");
    put(&store, &[("m/a.gguf", b"third")]).await;
    fetch(&store, "s3://b/m/a.gguf", cache.path()).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"third");
    std::fs::write(&path, "cut").unwrap();
    fetch(&store, "s3://b/m/a.gguf", cache.path()).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"third");
}

#[tokio::test]
async fn files_that_the_checkpoint_lost_go() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    put(
        &store,
        &[
            ("m/config.json", b"{}"),
            ("m/tokenizer.json", b"{}"),
            ("m/model.safetensors", b"w"),
            ("m/chat_template.jinja", b"t"),
        ],
    )
    .await;
    let Fetched::Directory(folder) = fetch(&store, "s3://b/m", cache.path()).await.unwrap() else {
        panic!("a folder is a folder");
    };
    assert!(folder.join("chat_template.jinja").exists());
    store.delete(&ObjectPath::from("m/chat_template.jinja")).await.unwrap();
    fetch(&store, "s3://b/m", cache.path()).await.unwrap();
    assert!(!folder.join("chat_template.jinja").exists());
}

#[tokio::test]
async fn equal_paths_of_different_buckets_are_different_checkpoints() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    put(&store, &[("m/a.gguf", b"content")]).await;
    let first = fetch(&store, "s3://one/m/a.gguf", cache.path()).await.unwrap();
    assert_ne!(fetch(&store, "s3://two/m/a.gguf", cache.path()).await.unwrap(), first);
}
