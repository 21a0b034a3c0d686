//! A full disk is named with what is needed and what is free, and nothing half-written stays.

use std::path::{Path, PathBuf};
use std::process::Command;

use roundhouse_store::conformance::{SampleFiles, sample_manifest};
use roundhouse_store::{CacheLimits, EngineStore, LocalCache, NoProgress, StoreError};
use tempfile::TempDir;

use crate::support::small;

const MIB: usize = 1 << 20;

/// A file system of 8 MiB, unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// None, with the reason printed, where mounting is not allowed.
    fn mount() -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            Ok(output) => {
                println!("no small disk: mount: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                println!("no small disk: mount: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.unwrap().success());
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

/// Needs no small disk: no disk is this large.
#[tokio::test]
async fn an_engine_larger_than_any_disk_is_refused_before_its_first_byte() {
    let store = EngineStore::open("memory:///", small()).unwrap();
    let files = SampleFiles::new(&[("weights.safetensors", 1, 10)]).unwrap();
    let manifest = sample_manifest("m", 1).unwrap();
    let mut manifest = store.publish(manifest, files.files(), &NoProgress).await.unwrap().into_manifest();
    manifest.blobs[0].size = 1 << 62;
    let folder = TempDir::new().unwrap();
    let cache = LocalCache::open(folder.path(), CacheLimits::default()).unwrap();
    let error = cache.pull(&store, &manifest, &NoProgress).await.unwrap_err();
    let StoreError::DiskFull { path, needed, free } = &error else { panic!("{error}") };
    assert_eq!((path.as_path(), *needed), (folder.path(), 1 << 62));
    assert!(*free > 0 && free < needed, "{free}");
    assert!(files_below(&folder.path().join("tmp")).is_empty());
}

#[tokio::test]
async fn a_pull_onto_a_full_disk_evicts_and_then_says_so() {
    let Some(disk) = SmallDisk::mount() else { return fallback() };
    let store = EngineStore::open("memory:///", small()).unwrap();
    let mut engines = Vec::new();
    for (number, mib) in [(1, 3), (2, 4), (3, 6), (4, 12)] {
        let files = SampleFiles::new(&[("weights.safetensors", u64::from(number), mib * MIB)]).unwrap();
        let manifest = sample_manifest("m", number).unwrap();
        engines.push(store.publish(manifest, files.files(), &NoProgress).await.unwrap().into_manifest());
    }
    let root = disk.path().join("cache");
    let cache = LocalCache::open(&root, CacheLimits::default()).unwrap();
    let first = cache.pull(&store, &engines[0], &NoProgress).await.unwrap();
    drop(cache.pull(&store, &engines[1], &NoProgress).await.unwrap());

    // 6 MiB fit only without both others, and one is leased.
    let error = cache.pull(&store, &engines[2], &NoProgress).await.unwrap_err();
    let StoreError::DiskFull { path, needed, free } = &error else { panic!("{error}") };
    assert_eq!((path, *needed), (&root, 6 * MIB as u64));
    assert!(*free < *needed && *free > 4 * MIB as u64, "what was not leased went: {free} bytes are free");
    assert!(files_below(&root.join("tmp")).is_empty());
    drop(first);
    cache.pull(&store, &engines[2], &NoProgress).await.unwrap();

    let error = cache.pull(&store, &engines[3], &NoProgress).await.unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    assert_eq!(cache.usage().await.unwrap().blobs, 1, "what can never fit evicts nothing");
}

#[tokio::test]
async fn a_publication_that_fills_the_disk_leaves_room_for_the_next() {
    let Some(disk) = SmallDisk::mount() else { return fallback() };
    let store = EngineStore::open(disk.path().to_str().unwrap(), small()).unwrap();
    let large = SampleFiles::new(&[("graph.json", 1, 10), ("weights.safetensors", 2, 12 * MIB)]).unwrap();
    let manifest = sample_manifest("m", 1).unwrap();
    let error = store.publish(manifest.clone(), large.files(), &NoProgress).await.unwrap_err();
    let StoreError::DiskFull { path, needed, .. } = &error else { panic!("{error}") };
    assert!(path.starts_with(disk.path().canonicalize().unwrap().join("blobs")), "{}", path.display());
    assert_eq!(*needed, 12 * MIB as u64);
    assert!(!store.exists(&manifest.key).await.unwrap());
    let left = files_below(disk.path());
    assert_eq!(left.len(), 1, "only the small blob: {left:?}");

    let fits = SampleFiles::new(&[("graph.json", 1, 10), ("weights.safetensors", 2, 6 * MIB)]).unwrap();
    assert!(store.publish(manifest, fits.files(), &NoProgress).await.unwrap().is_created());
}

/// What still can be shown without mounting: writes to a device that is always full fail, and with the kind that the
/// store's errors are made from.
fn fallback() {
    use std::io::Write as _;
    let mut full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(full.write_all(b"x").unwrap_err().kind(), std::io::ErrorKind::StorageFull);
}
