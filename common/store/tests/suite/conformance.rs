//! Every kind of store that needs no network passes the suite. S3 is in `s3.rs`.

use std::sync::Arc;

use object_store::local::LocalFileSystem;
use roundhouse_store::conformance::store_conformance;
use roundhouse_store::{EngineStore, StoreError, StoreOptions};
use tempfile::TempDir;

use crate::support::small;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    store_conformance(&EngineStore::open("memory:///", small()).unwrap()).await.unwrap();
    store_conformance(&EngineStore::open("memory:///a/prefix", small()).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_folder() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("is/made");
    store_conformance(&EngineStore::open(path.to_str().unwrap(), small()).unwrap()).await.unwrap();
    let url = format!("file://{}", path.display());
    store_conformance(&EngineStore::open(&url, StoreOptions::default()).unwrap()).await.unwrap();
    let left: Vec<_> = std::fs::read_dir(path.join("engines")).into_iter().flatten().collect();
    assert!(left.is_empty(), "folders of deleted engines go: {left:?}");
}

/// A folder behind somebody's own client is pulled from as from a remote store.
#[tokio::test]
async fn own_client() {
    let folder = TempDir::new().unwrap();
    let client = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let store = EngineStore::with_client(Arc::new(client), small());
    assert_eq!(store.folder(), None);
    store_conformance(&store).await.unwrap();
}

#[test]
fn an_address_that_is_no_store_is_refused_by_name() {
    for url in ["", "ftp://host/x", "s3://", "file://host/x", "://", "gs:///x", "s3:/bucket", "memory:"] {
        let error = EngineStore::open(url, StoreOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::InvalidUrl { .. }), "{url:?}: {error}");
    }
    let error = EngineStore::open("memory:///", StoreOptions::default().with("aws_regoin", "x")).unwrap_err();
    assert!(matches!(error, StoreError::UnknownOption { .. }), "{error}");
}

#[test]
fn a_store_is_named_without_credentials() {
    let options =
        StoreOptions::default().with("aws_access_key_id", "id").with("aws_secret_access_key", "hunter2");
    let store = EngineStore::open("s3://user:hunter2@bucket/a/b?x=hunter2", options).unwrap();
    assert_eq!(store.to_string(), "s3://bucket/a/b");
    assert!(!format!("{store:?}").contains("hunter2"));
}
