//! A small file of an engine is read whole and verified, or it is an error that says which.

use roundhouse_engine::EngineKey;
use roundhouse_store::conformance::{SampleFiles, sample_bytes, sample_manifest};
use roundhouse_store::{EngineStore, NoProgress, StoreError, StoreOptions};

#[tokio::test]
async fn a_file_is_read_whole_up_to_the_limit_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let store = EngineStore::open(folder.path().to_str().unwrap(), StoreOptions::default()).unwrap();
    let files = SampleFiles::new(&[("graph.json", 1, 100)]).unwrap();
    let manifest = sample_manifest("m", 1).unwrap();
    let published = store.publish(manifest, files.files(), &NoProgress).await.unwrap().into_manifest();
    let key = &published.key;

    let read = |name: &'static str, limit| store.read_file(key, name, limit);
    assert_eq!(read("graph.json", 100).await.unwrap(), sample_bytes(1, 100));
    assert!(matches!(read("graph.json", 99).await, Err(StoreError::InvalidArgument { .. })));
    let missing = read("plan", 100).await.unwrap_err();
    assert!(missing.is_not_found() && missing.to_string().contains("\"plan\""), "{missing}");
    let nowhere = EngineKey::parse(&"0".repeat(64)).unwrap();
    assert!(store.read_file(&nowhere, "graph.json", 100).await.unwrap_err().is_not_found());

    let blob = folder.path().join("blobs/sha256").join(&published.blob("graph.json").unwrap().sha256);
    std::fs::write(&blob, sample_bytes(2, 100)).unwrap();
    assert!(matches!(read("graph.json", 100).await, Err(StoreError::Corrupt { .. })));
    std::fs::write(&blob, sample_bytes(1, 99)).unwrap();
    assert!(matches!(read("graph.json", 100).await, Err(StoreError::WrongSize { found: 99, .. })));
    std::fs::remove_file(&blob).unwrap();
    assert!(matches!(read("graph.json", 100).await, Err(StoreError::MissingBlob { .. })));
}
