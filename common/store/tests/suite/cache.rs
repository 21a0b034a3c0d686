//! What is in the cache is right, is fetched once, and stays while it is used.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use futures::future::join_all;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use roundhouse_engine::Manifest;
use roundhouse_store::conformance::{SampleFiles, sample_bytes, sample_manifest};
use roundhouse_store::{CacheLimits, EngineStore, LocalCache, NoProgress, StoreError};
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};

use crate::support::{Hooked, count, failure, small};

const MIB: usize = 1 << 20;

/// An engine whose weights, made from `seed`, have so many bytes.
async fn publish(client: &Arc<dyn ObjectStore>, seed: u64, bytes: usize) -> Manifest {
    let files = SampleFiles::new(&[("weights.safetensors", seed, bytes)]).unwrap();
    let manifest = sample_manifest("m", u32::try_from(seed).unwrap()).unwrap();
    let store = EngineStore::with_client(client.clone(), small());
    store.publish(manifest, files.files(), &NoProgress).await.unwrap().into_manifest()
}

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

fn open(folder: &TempDir, max_bytes: Option<u64>) -> LocalCache {
    LocalCache::open(folder.path(), CacheLimits { max_bytes }).unwrap()
}

fn digest(manifest: &Manifest) -> &str {
    &manifest.blobs[0].sha256
}

fn cached(folder: &TempDir, manifest: &Manifest) -> std::path::PathBuf {
    folder.path().join("blobs/sha256").join(digest(manifest))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Replaces a file's bytes where they are, and sets its modification time.
fn overwrite(path: &Path, bytes: &[u8], modified: SystemTime) {
    use std::io::Write as _;
    let mut file = File::options().write(true).truncate(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file.set_modified(modified).unwrap();
}

#[tokio::test]
async fn a_corrupt_blob_in_the_store_is_fetched_twice_and_named() {
    let client = memory();
    let manifest = publish(&client, 1, 3 * MIB).await;
    let path = format!("blobs/sha256/{}", digest(&manifest)).into();
    client.put(&path, sample_bytes(2, 3 * MIB).into()).await.unwrap();
    let hooked = Arc::new(Hooked::new(client.clone()));
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, None);
    let error = cache.pull(&hooked.store(), &manifest, &NoProgress).await.unwrap_err();
    let StoreError::Corrupt { blob, expected, found } = &error else { panic!("{error}") };
    assert_eq!((blob.as_str(), expected.as_str()), ("weights.safetensors", digest(&manifest)));
    assert_ne!(found, expected);
    assert!(!error.is_retryable());
    assert_eq!(count(&hooked.reads), 2 * 3, "two fetches of three ranges");
    assert_eq!(names(&folder.path().join("tmp")), Vec::<String>::new());
    assert_eq!(cache.usage().await.unwrap(), Default::default());

    client.put(&path, sample_bytes(1, 3 * MIB).into()).await.unwrap();
    cache.pull(&hooked.store(), &manifest, &NoProgress).await.unwrap();
}

#[tokio::test]
async fn a_truncated_or_overlong_blob_in_the_store_is_named_with_both_sizes() {
    let client = memory();
    let manifest = publish(&client, 1, 3 * MIB).await;
    let path = format!("blobs/sha256/{}", digest(&manifest)).into();
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, None);
    let store = EngineStore::with_client(client.clone(), small());
    for bytes in [0, 1, MIB, 3 * MIB - 1, 3 * MIB + 1] {
        client.put(&path, sample_bytes(1, bytes).into()).await.unwrap();
        let error = cache.pull(&store, &manifest, &NoProgress).await.unwrap_err();
        let StoreError::WrongSize { expected, found, .. } = error else { panic!("{bytes}: {error}") };
        assert_eq!((expected, found), (3 * MIB as u64, bytes as u64));
    }
    assert_eq!(names(&folder.path().join("tmp")), Vec::<String>::new());
}

#[tokio::test]
async fn a_failing_service_is_retryable_and_leaves_nothing_half_written() {
    let client = memory();
    let manifest = publish(&client, 1, 5 * MIB).await;
    let mut hooked = Hooked::new(client);
    hooked.on_read =
        Arc::new(|_, read| async move { if read == 4 { Err(failure()) } else { Ok(()) } }.boxed());
    let store = Arc::new(hooked).store();
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, None);
    let error = cache.pull(&store, &manifest, &NoProgress).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(names(&folder.path().join("tmp")), Vec::<String>::new());
    assert_eq!(names(&folder.path().join("blobs/sha256")), Vec::<String>::new());
    let pulled = cache.pull(&store, &manifest, &NoProgress).await.unwrap();
    assert_eq!(
        std::fs::read(pulled.files().path("weights.safetensors").unwrap()).unwrap(),
        sample_bytes(1, 5 * MIB)
    );
}

#[test]
fn a_dropped_pull_leaves_nothing_half_written() {
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, None);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = memory();
        let manifest = publish(&client, 1, 5 * MIB).await;
        let (reached, mut stuck) = mpsc::channel::<()>(64);
        let mut hooked = Hooked::new(client);
        hooked.on_read = Arc::new(move |_, read| {
            let reached = reached.clone();
            async move {
                if read < 3 {
                    return Ok(());
                }
                reached.send(()).await.unwrap();
                std::future::pending().await
            }
            .boxed()
        });
        let store = Arc::new(hooked).store();
        let mut pulling = Box::pin(cache.pull(&store, &manifest, &NoProgress));
        tokio::select! {
            pulled = &mut pulling => panic!("{pulled:?}"),
            _ = stuck.recv() => {}
        }
        assert_eq!(names(&folder.path().join("tmp")).len(), 1, "it is in the middle");
        drop(pulling);
    });
    // Waits for the writing thread.
    drop(runtime);
    assert_eq!(names(&folder.path().join("tmp")), Vec::<String>::new());
    assert_eq!(names(&folder.path().join("blobs/sha256")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_of_one_blob_at_once_fetch_it_once() {
    let client = memory();
    let manifest = publish(&client, 1, 4 * MIB).await;
    let hooked = Arc::new(Hooked::new(client));
    let store = hooked.store();
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, None);
    let pulls = (0..8).map(|_| cache.pull(&store, &manifest, &NoProgress));
    let downloaded: Vec<_> =
        join_all(pulls).await.into_iter().map(|pulled| pulled.unwrap().downloaded_bytes()).collect();
    assert_eq!(
        downloaded.iter().sum::<u64>(),
        manifest.total_bytes(),
        "one pull fetched it, the others waited"
    );
    let warm = cache.pull(&store, &manifest, &NoProgress).await.unwrap();
    assert_eq!(warm.downloaded_bytes(), 0);
    assert_eq!(count(&hooked.reads), 4, "four ranges once");
    assert_eq!(cache.usage().await.unwrap().blobs, 1);
}

/// Two caches over one folder are two processes to each other: all that they share is the folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_fetch_the_same_blob_do_not_disturb_each_other() {
    let client = memory();
    let manifest = publish(&client, 1, 4 * MIB).await;
    let store = EngineStore::with_client(client, small());
    let folder = TempDir::new().unwrap();
    let caches: Vec<_> = (0..4).map(|_| open(&folder, None)).collect();
    let pulls = caches.iter().map(|cache| cache.pull(&store, &manifest, &NoProgress));
    for pulled in join_all(pulls).await {
        let pulled = pulled.unwrap();
        let weights = std::fs::read(pulled.files().path("weights.safetensors").unwrap()).unwrap();
        assert_eq!(weights, sample_bytes(1, 4 * MIB));
    }
    assert_eq!(names(&folder.path().join("blobs/sha256")), [digest(&manifest)]);
    assert_eq!(names(&folder.path().join("tmp")), Vec::<String>::new());
}

#[tokio::test]
async fn a_blob_that_was_verified_and_did_not_change_is_not_read_again() {
    let client = memory();
    let manifest = publish(&client, 1, MIB).await;
    let hooked = Arc::new(Hooked::new(client));
    let store = hooked.store();
    let folder = TempDir::new().unwrap();
    let path = cached(&folder, &manifest);
    let pull = async || open(&folder, None).pull(&store, &manifest, &NoProgress).await.unwrap();
    drop(pull().await);
    assert_eq!(count(&hooked.reads), 1);

    // Other bytes under the same size, time and inode: found by whoever reads the file, so nobody read it.
    let modified = path.metadata().unwrap().modified().unwrap();
    overwrite(&path, &sample_bytes(9, MIB), modified);
    drop(pull().await);
    assert_eq!((count(&hooked.reads), std::fs::read(&path).unwrap()), (1, sample_bytes(9, MIB)));

    // Another time: read, found wrong, and fetched again.
    overwrite(&path, &sample_bytes(9, MIB), modified + Duration::from_secs(1));
    drop(pull().await);
    assert_eq!((count(&hooked.reads), std::fs::read(&path).unwrap()), (2, sample_bytes(1, MIB)));

    // Another time, right bytes: read once, not fetched.
    overwrite(&path, &sample_bytes(1, MIB), modified + Duration::from_secs(2));
    drop(pull().await);
    assert_eq!(count(&hooked.reads), 2);

    // Another size, or no record at all.
    overwrite(&path, b"short", modified);
    drop(pull().await);
    assert_eq!((count(&hooked.reads), std::fs::read(&path).unwrap()), (3, sample_bytes(1, MIB)));
    for record in names(&folder.path().join("verified")) {
        std::fs::write(folder.path().join("verified").join(record), b"{").unwrap();
    }
    drop(pull().await);
    assert_eq!(count(&hooked.reads), 3);
}

#[tokio::test]
async fn the_blobs_used_longest_ago_are_evicted_and_leased_ones_never() {
    let client = memory();
    let store = EngineStore::with_client(client.clone(), small());
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, Some(3 * MIB as u64));
    let mut engines = Vec::new();
    for seed in 1..=5 {
        engines.push(publish(&client, seed, MIB).await);
    }
    let here = |manifest: &Manifest| cached(&folder, manifest).exists();
    // Time stands where the test sets it: a record's time is its blob's last use.
    let used = |manifest: &Manifest, seconds: u64| {
        let record = folder.path().join("verified").join(format!("{}.json", digest(manifest)));
        let file = File::options().write(true).open(record).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    };
    for (at, engine) in engines.iter().take(3).enumerate() {
        cache.pull(&store, engine, &NoProgress).await.unwrap();
        used(engine, at as u64);
    }
    // The first one is used again, so the second is the oldest.
    let leased = cache.pull(&store, &engines[0], &NoProgress).await.unwrap();
    cache.pull(&store, &engines[3], &NoProgress).await.unwrap();
    assert_eq!(engines.iter().map(here).collect::<Vec<_>>(), [true, false, true, true, false]);

    // The oldest of all is leased, by another process for all that this cache knows: the next oldest goes.
    used(&engines[0], 1);
    used(&engines[2], 2);
    used(&engines[3], 3);
    let second = open(&folder, Some(3 * MIB as u64));
    let also_leased = second.pull(&store, &engines[4], &NoProgress).await.unwrap();
    assert_eq!(engines.iter().map(here).collect::<Vec<_>>(), [true, false, false, true, true]);

    // One place is left beside the leased two. Two need room: refused by name, and the leased ones are still there.
    let both = SampleFiles::new(&[("a", 6, MIB), ("b", 7, MIB)]).unwrap();
    let both = store.publish(sample_manifest("both", 1).unwrap(), both.files(), &NoProgress).await.unwrap();
    let error = second.pull(&store, both.manifest(), &NoProgress).await.unwrap_err();
    let StoreError::CacheFull { limit, needed, in_use, .. } = error else { panic!("{error}") };
    assert_eq!((limit, needed, in_use), (3 * MIB as u64, 2 * MIB as u64, 2 * MIB as u64));
    assert!(here(&engines[0]) && here(&engines[4]));
    drop((leased, also_leased));
    second.pull(&store, both.manifest(), &NoProgress).await.unwrap();
    assert!(second.usage().await.unwrap().bytes <= 3 * MIB as u64);
}

#[tokio::test]
async fn what_can_never_fit_evicts_nothing() {
    let client = memory();
    let store = EngineStore::with_client(client.clone(), small());
    let (small_engine, large) = (publish(&client, 1, MIB).await, publish(&client, 2, 4 * MIB).await);
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, Some(3 * MIB as u64));
    cache.pull(&store, &small_engine, &NoProgress).await.unwrap();
    let error = cache.pull(&store, &large, &NoProgress).await.unwrap_err();
    assert!(matches!(error, StoreError::CacheFull { .. }), "{error}");
    assert!(cached(&folder, &small_engine).exists());
}

#[tokio::test]
async fn what_a_killed_process_left_is_removed_but_not_what_a_living_one_writes() {
    let client = memory();
    let manifest = publish(&client, 1, 3 * MIB).await;
    let (reached, mut stuck) = mpsc::channel::<()>(64);
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    let mut hooked = Hooked::new(client);
    hooked.on_read = Arc::new(move |_, read| {
        let (reached, gate) = (reached.clone(), gate.clone());
        async move {
            if read == 3 {
                reached.send(()).await.unwrap();
                gate.notified().await;
            }
            Ok(())
        }
        .boxed()
    });
    let store = Arc::new(hooked).store();
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, None);
    let arriving = folder.path().join("tmp");
    let mut pulling = std::pin::pin!(cache.pull(&store, &manifest, &NoProgress));
    tokio::select! {
        pulled = &mut pulling => panic!("{pulled:?}"),
        _ = stuck.recv() => {}
    }
    std::fs::write(arriving.join("of-the-dead"), b"half").unwrap();
    for name in names(&arriving) {
        let file = File::options().write(true).open(arriving.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
    }
    assert_eq!(names(&arriving).len(), 2);
    // As another process starts.
    open(&folder, None);
    let left = names(&arriving);
    assert!(left.len() == 1 && left[0].starts_with(digest(&manifest)), "{left:?}");
    go.notify_one();
    pulling.await.unwrap();
}

#[tokio::test]
async fn a_local_store_is_used_where_it_is_and_verified() {
    let folder = TempDir::new().unwrap();
    let stored = TempDir::new().unwrap();
    let store = EngineStore::open(stored.path().to_str().unwrap(), small()).unwrap();
    let files = SampleFiles::new(&[("weights.safetensors", 1, MIB)]).unwrap();
    let manifest = sample_manifest("m", 1).unwrap();
    let manifest = store.publish(manifest, files.files(), &NoProgress).await.unwrap().into_manifest();
    let cache = open(&folder, Some(1));
    let pulled = cache.pull(&store, &manifest, &NoProgress).await.unwrap();
    let path = pulled.files().path("weights.safetensors").unwrap();
    assert!(path.starts_with(stored.path().canonicalize().unwrap()), "{}", path.display());
    assert_eq!(cache.usage().await.unwrap().bytes, 0, "nothing is copied");

    let modified = path.metadata().unwrap().modified().unwrap();
    overwrite(path, &sample_bytes(2, MIB), modified + Duration::from_secs(1));
    let error = cache.pull(&store, &manifest, &NoProgress).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Corrupt { expected, .. } if expected == digest(&manifest)),
        "{error}"
    );
    overwrite(path, b"short", modified);
    let error = cache.pull(&store, &manifest, &NoProgress).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongSize { found: 5, .. }), "{error}");
    std::fs::remove_file(path).unwrap();
    let error = cache.pull(&store, &manifest, &NoProgress).await.unwrap_err();
    assert!(matches!(error, StoreError::MissingBlob { .. }), "{error}");
}

#[tokio::test]
async fn a_hostile_manifest_reaches_no_file() {
    let client = memory();
    let mut manifest = publish(&client, 1, 10).await;
    manifest.blobs[0].sha256 = "../../../etc/passwd".to_owned();
    let folder = TempDir::new().unwrap();
    let store = EngineStore::with_client(client, small());
    let error = open(&folder, None).pull(&store, &manifest, &NoProgress).await.unwrap_err();
    assert!(matches!(error, StoreError::Manifest(_)), "{error}");
}

/// Services hold these in tasks of a multi-threaded runtime.
#[test]
fn calls_can_be_spawned() {
    fn spawnable<T: Send>(_: &T) {}
    let store = EngineStore::open("memory:///", small()).unwrap();
    let manifest = sample_manifest("m", 1).unwrap();
    let folder = TempDir::new().unwrap();
    let cache = open(&folder, None);
    spawnable(&cache.pull(&store, &manifest, &NoProgress));
    spawnable(&store.publish(manifest.clone(), &[], &NoProgress));
    spawnable(&store.list(Default::default()));
    spawnable(&store.delete(&manifest.key));
}
