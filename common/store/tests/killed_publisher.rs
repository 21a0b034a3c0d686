//! A publisher that is killed in the middle of an upload leaves no manifest and no blob, and the next one succeeds.
//!
//! The program runs itself again as that publisher, and kills it with SIGKILL when it says that a part was written.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use roundhouse_store::conformance::{SampleFiles, sample_bytes, sample_manifest};
use roundhouse_store::{
    CacheLimits, EngineStore, LocalCache, NoProgress, StoreOptions, TransferProgress, TransferUpdate,
};
use tempfile::TempDir;

/// Names the store's folder to the program when it is the publisher.
const PUBLISHER: &str = "ROUNDHOUSE_TEST_KILLED_PUBLISHER";
const MIB: usize = 1 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    match std::env::var_os(PUBLISHER) {
        Some(folder) => publish_until_killed(Path::new(&folder)).await,
        None => {
            a_killed_publisher_leaves_nothing_in_the_way().await;
            println!("test a_killed_publisher_leaves_nothing_in_the_way ... ok\n\n1 passed, 0 failed");
        }
    }
}

fn open(folder: &Path, blob_grace: Duration) -> EngineStore {
    let options = StoreOptions { part_bytes: MIB, parts_in_flight: 1, blob_grace, ..StoreOptions::default() };
    EngineStore::open(folder.to_str().unwrap(), options).unwrap()
}

fn sample_files() -> SampleFiles {
    SampleFiles::new(&[("graph.json", 1, 100), ("weights.safetensors", 2, 8 * MIB)]).unwrap()
}

/// Says when three parts of the weights are written, and then never goes on.
struct StopAfterThree;

impl TransferProgress for StopAfterThree {
    fn update(&self, update: &TransferUpdate<'_>) {
        if update.blob == "weights.safetensors" && update.blob_done == 3 * MIB as u64 {
            println!("three parts are written");
            std::io::stdout().flush().unwrap();
            loop {
                std::thread::park();
            }
        }
    }
}

async fn publish_until_killed(folder: &Path) {
    let store = open(folder, Duration::ZERO);
    let published =
        store.publish(sample_manifest("m", 1).unwrap(), sample_files().files(), &StopAfterThree).await;
    println!("published: {published:?}");
}

async fn a_killed_publisher_leaves_nothing_in_the_way() {
    let folder = TempDir::new().unwrap();
    let mut publisher = Command::new(std::env::current_exe().unwrap())
        .env(PUBLISHER, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(publisher.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "three parts are written");
    publisher.kill().unwrap();
    assert!(!publisher.wait().unwrap().success());

    let store = open(folder.path(), Duration::ZERO);
    let manifest = sample_manifest("m", 1).unwrap();
    assert!(!store.exists(&manifest.key).await.unwrap(), "no manifest");
    let half_written = files(folder.path()).into_iter().find(|path| path.to_string_lossy().ends_with("#1"));
    let half_written = half_written.unwrap();
    assert!(half_written.metadata().unwrap().len() >= 3 * MIB as u64, "it was killed in the middle");

    let files = sample_files();
    let published = store.publish(manifest, files.files(), &NoProgress).await.unwrap();
    assert!(published.is_created(), "the next try succeeds");
    let cached = TempDir::new().unwrap();
    let cache = LocalCache::open(cached.path(), CacheLimits::default()).unwrap();
    let pulled = cache.pull(&store, published.manifest(), &NoProgress).await.unwrap();
    let weights = std::fs::read(pulled.files().path("weights.safetensors").unwrap()).unwrap();
    assert_eq!(weights, sample_bytes(2, 8 * MIB));

    open(folder.path(), Duration::from_secs(3600)).collect_garbage().await.unwrap();
    assert!(half_written.exists(), "it might still be written to");
    store.collect_garbage().await.unwrap();
    assert!(!half_written.exists(), "its grace is over");
    cache.pull(&store, published.manifest(), &NoProgress).await.unwrap();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
