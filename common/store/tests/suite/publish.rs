//! A publication that fails, is dropped or is given wrong files leaves nothing that the next one trips over.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Hooked, count, failure, small};
use futures::FutureExt as _;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use roundhouse_engine::{BlobRef, Manifest};
use roundhouse_store::conformance::{SampleFiles, sample_bytes, sample_manifest};
use roundhouse_store::{EngineStore, NoProgress, Published, StoreError, StoreOptions};
use tempfile::TempDir;
use tokio::sync::{Barrier, mpsc};

fn files() -> SampleFiles {
    SampleFiles::new(&[("graph.json", 1, 100), ("weights.safetensors", 2, 9 << 20)]).unwrap()
}

fn manifest() -> Manifest {
    sample_manifest("m", 1).unwrap()
}

async fn objects(client: &dyn ObjectStore) -> Vec<String> {
    use futures::TryStreamExt as _;
    client.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap()
}

#[tokio::test]
async fn a_failing_part_aborts_the_upload_and_the_next_try_succeeds() {
    let mut hooked = Hooked::new(Arc::new(InMemory::new()));
    hooked.on_part =
        Arc::new(|_, part| async move { if part == 3 { Err(failure()) } else { Ok(()) } }.boxed());
    let hooked = Arc::new(hooked);
    let (store, files) = (hooked.store(), files());
    let error = store.publish(manifest(), files.files(), &NoProgress).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!((count(&hooked.aborted), count(&hooked.completed)), (1, 0));
    assert!(!store.exists(&manifest().key).await.unwrap());
    let left = objects(hooked.as_ref()).await;
    assert!(left.iter().all(|path| !path.starts_with("engines/")) && left.len() == 1, "{left:?}");

    let published = store.publish(manifest(), files.files(), &NoProgress).await.unwrap();
    assert!(published.is_created());
    assert_eq!(count(&hooked.puts), 2, "the small blob was there already: only the manifest is put");
}

#[tokio::test]
async fn a_dropped_publication_aborts_its_upload() {
    let (reached, mut stuck) = mpsc::channel::<()>(64);
    let mut hooked = Hooked::new(Arc::new(InMemory::new()));
    hooked.on_part = Arc::new(move |_, part| {
        let reached = reached.clone();
        async move {
            if part < 3 {
                return Ok(());
            }
            reached.send(()).await.unwrap();
            std::future::pending().await
        }
        .boxed()
    });
    let hooked = Arc::new(hooked);
    let (store, files) = (hooked.store(), files());
    tokio::select! {
        published = store.publish(manifest(), files.files(), &NoProgress) => panic!("{published:?}"),
        _ = stuck.recv() => {}
    }
    // The abort runs in the background: each turn of the runtime lets it go on.
    while count(&hooked.aborted) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(count(&hooked.completed), 0);
    assert!(!store.exists(&manifest().key).await.unwrap());
}

#[tokio::test]
async fn only_so_many_parts_are_on_their_way_at_once() {
    let limit = small().parts_in_flight;
    let (in_flight, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    // As many as may be wait for each other, so that they are on their way together.
    let together = Arc::new(Barrier::new(limit));
    let mut hooked = Hooked::new(Arc::new(InMemory::new()));
    let peak = most.clone();
    hooked.on_part = Arc::new(move |_, part| {
        let (in_flight, most, together) = (in_flight.clone(), peak.clone(), together.clone());
        async move {
            most.fetch_max(in_flight.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            if part <= limit {
                together.wait().await;
            }
            tokio::task::yield_now().await;
            in_flight.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
        .boxed()
    });
    let hooked = Arc::new(hooked);
    hooked.store().publish(manifest(), files().files(), &NoProgress).await.unwrap();
    assert_eq!((count(&hooked.parts), count(&most)), (9, limit));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_is_deleted_while_its_publisher_relies_on_it_is_uploaded_again() {
    let folder = TempDir::new().unwrap();
    let client: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let plain = EngineStore::with_client(client.clone(), small());
    let files = files();
    plain.publish(sample_manifest("other", 1).unwrap(), files.files(), &NoProgress).await.unwrap();

    // The other engine goes, with the shared blobs, while this one's manifest is being written.
    let mut hooked = Hooked::new(client);
    let deleter = plain.clone();
    hooked.on_put = Arc::new(move |path, _| {
        let (deleter, manifest) = (deleter.clone(), path.as_ref().starts_with("engines/"));
        async move {
            if manifest {
                let deleted = deleter.delete(&sample_manifest("other", 1).unwrap().key).await.unwrap();
                assert_eq!(deleted.blobs, 2, "both blobs go before the manifest names them");
            }
            Ok(())
        }
        .boxed()
    });
    let store = Arc::new(hooked).store();
    let published = store.publish(manifest(), files.files(), &NoProgress).await.unwrap();
    assert!(published.is_created());
    let cache = roundhouse_store::LocalCache::open(folder.path(), Default::default()).unwrap();
    let pulled = cache.pull(&plain, published.manifest(), &NoProgress).await.unwrap();
    assert_eq!(
        std::fs::read(pulled.files().path("weights.safetensors").unwrap()).unwrap(),
        sample_bytes(2, 9 << 20)
    );
}

#[tokio::test]
async fn the_manifest_says_what_the_files_say() {
    let store = EngineStore::open("memory:///", small()).unwrap();
    let files = files();
    let blobs = store.publish(manifest(), files.files(), &NoProgress).await.unwrap().into_manifest().blobs;
    let mut reordered = sample_manifest("m", 2).unwrap();
    reordered.blobs = blobs.iter().rev().cloned().collect();
    let published = store.publish(reordered, files.files(), &NoProgress).await.unwrap();
    assert!(matches!(published, Published::Created(_)));

    let mut wrong = sample_manifest("m", 3).unwrap();
    wrong.blobs = vec![BlobRef { size: 1, ..blobs[0].clone() }, blobs[1].clone()];
    let error = store.publish(wrong, files.files(), &NoProgress).await.unwrap_err();
    assert!(matches!(error, StoreError::InvalidArgument { .. }), "{error}");

    for name in ["../escape", "a/b", ""] {
        let file = files.folder().join("graph.json");
        let error = store.publish(manifest(), &[(name.to_owned(), file)], &NoProgress).await.unwrap_err();
        assert!(matches!(error, StoreError::Manifest(_)), "{name:?}: {error}");
    }
    let nowhere = PathBuf::from("/nowhere/graph.json");
    let error = store.publish(manifest(), &[("a".to_owned(), nowhere)], &NoProgress).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/graph.json"), "{error}");
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_published_is_no_blob() {
    let files = files();
    let weights = files.folder().join("weights.safetensors");
    let mut hooked = Hooked::new(Arc::new(InMemory::new()));
    // Between hashing and uploading, when the small blob is put.
    hooked.on_put = Arc::new(move |_, _| {
        std::fs::write(&weights, sample_bytes(99, 9 << 20)).unwrap();
        async { Ok(()) }.boxed()
    });
    let hooked = Arc::new(hooked);
    let error = hooked.store().publish(manifest(), files.files(), &NoProgress).await.unwrap_err();
    assert!(error.to_string().contains("changed while it was published"), "{error}");
    assert_eq!((count(&hooked.aborted), count(&hooked.completed)), (1, 0));
    assert_eq!(objects(hooked.as_ref()).await.len(), 1, "only the small blob");
}

#[tokio::test]
async fn garbage_has_its_grace() {
    let folder = TempDir::new().unwrap();
    let client = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    client.put(&format!("blobs/sha256/{}", "a".repeat(64)).into(), vec![1; 10].into()).await.unwrap();
    client.put(&"blobs/sha256/not-ours".into(), vec![1; 10].into()).await.unwrap();
    let open = |blob_grace| {
        EngineStore::open(folder.path().to_str().unwrap(), StoreOptions { blob_grace, ..small() }).unwrap()
    };
    let kept = open(Duration::from_secs(3600)).collect_garbage().await.unwrap();
    assert_eq!((kept.blobs, kept.bytes), (0, 0));
    let deleted = open(Duration::ZERO).collect_garbage().await.unwrap();
    assert_eq!((deleted.blobs, deleted.bytes), (1, 10));
    assert_eq!(objects(client.as_ref()).await, ["blobs/sha256/not-ours"]);
}

/// Nobody knows what it names, so nothing may be deleted.
#[tokio::test]
async fn a_manifest_that_cannot_be_understood_protects_all_blobs() {
    let client = Arc::new(InMemory::new());
    let store =
        EngineStore::with_client(client.clone(), StoreOptions { blob_grace: Duration::ZERO, ..small() });
    let files = files();
    let keep = store.publish(manifest(), files.files(), &NoProgress).await.unwrap().into_manifest();
    let broken = sample_manifest("broken", 1).unwrap().key;
    let path = format!("engines/{broken}/manifest.json").into();
    client.put(&path, "{".into()).await.unwrap();

    let error = store.collect_garbage().await.unwrap_err();
    assert!(
        matches!(error, StoreError::Manifest(_)) && error.to_string().contains(broken.as_str()),
        "{error}"
    );
    let page = store.list(Default::default()).await.unwrap();
    assert_eq!(page.manifests, std::slice::from_ref(&keep), "one broken engine does not hide the others");

    // One of a later version is understood as far as it takes.
    let later = format!(r#"{{"format": 9, "blobs": [{{"sha256": "{}"}}]}}"#, keep.blobs[0].sha256);
    client.put(&path, later.into()).await.unwrap();
    let deleted = store.delete(&keep.key).await.unwrap();
    assert_eq!(deleted.blobs, 1, "the other blob is named by the later version's manifest");
    assert_eq!(store.delete(&broken).await.unwrap().blobs, 1);
    assert_eq!(objects(client.as_ref()).await, Vec::<String>::new());
}
