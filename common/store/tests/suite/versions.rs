//! Records in versions: one of two writers that go on from the same version loses, whichever way their calls interleave.

use std::collections::BTreeMap;

use roundhouse_store::{StoreError, StoreOptions, Versions, Written};
use tempfile::TempDir;

/// What every kind of store promises.
pub(crate) async fn versions_conform(store: &Versions) {
    assert_eq!(store.latest("a", 100).await.unwrap(), None);
    assert_eq!(store.write("a", 1, b"one".to_vec()).await.unwrap(), Written::Done);
    assert_eq!(store.write("a", 1, b"another one".to_vec()).await.unwrap(), Written::Overtaken);
    assert_eq!(store.write("a", 2, b"two".to_vec()).await.unwrap(), Written::Done);
    assert_eq!(store.write("b", 1, b"of b".to_vec()).await.unwrap(), Written::Done);
    let latest = store.latest("a", 100).await.unwrap().unwrap();
    assert_eq!((latest.number, &latest.bytes[..]), (2, &b"two"[..]));
    assert!(latest.written.elapsed().unwrap_or_default().as_secs() < 3600);
    assert_eq!(store.latest_number("b").await.unwrap(), Some(1));
    let all = BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 1)]);
    assert_eq!(store.list().await.unwrap(), all);
    assert!(matches!(store.latest("a", 2).await, Err(StoreError::InvalidArgument { .. })));

    // A writer that has slept through two versions: the one that it would write is free again.
    for number in 3..=5 {
        assert_eq!(store.write("a", number, b"more".to_vec()).await.unwrap(), Written::Done);
    }
    assert_eq!(store.write("a", 3, b"late".to_vec()).await.unwrap(), Written::Overtaken);
    assert_eq!(store.latest("a", 100).await.unwrap().unwrap().number, 5);

    store.delete("a").await.unwrap();
    store.delete("a").await.unwrap();
    assert_eq!(store.latest_number("a").await.unwrap(), None);
    assert_eq!(store.write("a", 6, b"of a dead record".to_vec()).await.unwrap(), Written::Deleted);
    assert_eq!(store.list().await.unwrap(), BTreeMap::from([("b".to_owned(), 1)]));
    store.delete("b").await.unwrap();

    for name in ["", "..", "a/b", "a b", "ä"] {
        let refused = store.write(name, 1, Vec::new()).await;
        assert!(matches!(refused, Err(StoreError::InvalidArgument { .. })), "{name:?}: {refused:?}");
    }
}

#[tokio::test]
async fn memory() {
    versions_conform(&Versions::open("memory:///", &StoreOptions::default()).unwrap()).await;
    versions_conform(&Versions::open("memory:///a/prefix", &StoreOptions::default()).unwrap()).await;
}

#[tokio::test]
async fn local_folder() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("is/made");
    versions_conform(&Versions::open(path.to_str().unwrap(), &StoreOptions::default()).unwrap()).await;
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 0, "deleted records leave nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_at_once_one_wins_each_version() {
    let folder = TempDir::new().unwrap();
    let store = Versions::open(folder.path().to_str().unwrap(), &StoreOptions::default()).unwrap();
    for number in 1..=5 {
        let writers = (0..8_u8).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move { (writer, store.write("a", number, vec![writer]).await.unwrap()) })
        });
        let mut winners = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            let (writer, written) = writer.await.unwrap();
            winners.extend((written == Written::Done).then_some(writer));
        }
        let latest = store.latest("a", 100).await.unwrap().unwrap();
        assert_eq!((latest.number, &latest.bytes), (number, &winners), "one winner, whose bytes are there");
        assert_eq!(winners.len(), 1);
    }
}
