//! Downloads that are interrupted.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use roundhouse_hub::{Cancelled, Checkpoints, FetchProgress, FetchStage, HubError, Unwatched};

use crate::checkpoint_files::{read, run, single};
use crate::hub_server::{HubServer, ID, sha256};

const WEIGHTS: &str = "model.safetensors";
const ROWS: u64 = 10_000;

fn partial(cache: &Path) -> PathBuf {
    let digest = sha256(&single(ROWS)[WEIGHTS]);
    cache.join("hub/models--org--name/blobs").join(format!("{digest}.incomplete"))
}

/// The ranges that the weights were asked for in, at the storage server.
fn ranges(server: &HubServer) -> Vec<Option<String>> {
    let requests = server.requests().into_iter();
    requests
        .filter(|request| request.is_storage && request.method == "GET")
        .map(|request| request.range)
        .collect()
}

fn assert_complete(checkpoint: &roundhouse_hub::Checkpoint) {
    assert!((0..ROWS * 4).map(|value| value as f32).eq(read(checkpoint, "weight")));
}

#[test]
fn a_broken_connection_is_resumed_where_it_broke() {
    run(async {
        let server = HubServer::start(single(ROWS)).await;
        server.behaviour.lock().breaks.insert(WEIGHTS.to_owned(), vec![1000, 50_000]);
        let cache = tempfile::tempdir().unwrap();
        assert_complete(&server.open(cache.path()).await.unwrap());
        assert_eq!(ranges(&server), [None, Some("bytes=1000-".to_owned()), Some("bytes=51000-".to_owned())]);
        assert!(!partial(cache.path()).exists());
    });
}

#[test]
fn a_small_file_is_resumed_too() {
    run(async {
        let server = HubServer::start(single(1)).await;
        server.behaviour.lock().breaks.insert("config.json".to_owned(), vec![5]);
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(server.open(cache.path()).await.unwrap().config["hidden_size"], 4);
    });
}

#[test]
fn what_an_earlier_run_left_is_gone_on_with() {
    run(async {
        let server = HubServer::start(single(ROWS)).await;
        let cache = tempfile::tempdir().unwrap();
        let partial = partial(cache.path());
        std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
        std::fs::write(&partial, &single(ROWS)[WEIGHTS][..3000]).unwrap();
        assert_complete(&server.open(cache.path()).await.unwrap());
        assert_eq!(ranges(&server), [Some("bytes=3000-".to_owned())]);
    });
}

#[test]
fn a_server_without_ranges_is_asked_for_everything() {
    run(async {
        let server = HubServer::start(single(ROWS)).await;
        {
            let mut behaviour = server.behaviour.lock();
            behaviour.ranges = false;
            behaviour.breaks.insert(WEIGHTS.to_owned(), vec![1000]);
        }
        let cache = tempfile::tempdir().unwrap();
        assert_complete(&server.open(cache.path()).await.unwrap());
    });
}

#[test]
fn a_left_over_that_is_too_long_is_thrown_away() {
    run(async {
        let server = HubServer::start(single(ROWS)).await;
        let cache = tempfile::tempdir().unwrap();
        let partial = partial(cache.path());
        std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
        std::fs::write(&partial, vec![1; single(ROWS)[WEIGHTS].len() + 1]).unwrap();
        assert_complete(&server.open(cache.path()).await.unwrap());
    });
}

#[test]
fn a_content_with_another_digest_is_thrown_away() {
    run(async {
        let server = HubServer::start(single(ROWS)).await;
        let mut damaged = single(ROWS)[WEIGHTS].clone();
        *damaged.last_mut().unwrap() ^= 1;
        server.behaviour.lock().sends_instead.insert(WEIGHTS.to_owned(), damaged);
        let cache = tempfile::tempdir().unwrap();
        let error = server.open(cache.path()).await.unwrap_err();
        assert!(matches!(&error, HubError::Corrupt { what, .. } if what.contains("SHA-256")), "{error}");
        assert!(!partial(cache.path()).exists());
        server.behaviour.lock().sends_instead.clear();
        assert_complete(&server.open(cache.path()).await.unwrap());
    });
}

#[test]
fn a_left_over_of_something_else_is_found_out() {
    run(async {
        let server = HubServer::start(single(ROWS)).await;
        let cache = tempfile::tempdir().unwrap();
        let partial = partial(cache.path());
        std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
        std::fs::write(&partial, vec![7; 3000]).unwrap();
        assert!(matches!(server.open(cache.path()).await, Err(HubError::Corrupt { .. })));
        assert_complete(&server.open(cache.path()).await.unwrap());
    });
}

#[test]
fn more_bytes_than_announced_are_refused() {
    run(async {
        let server = HubServer::start(single(1)).await;
        let longer = [&single(1)[WEIGHTS][..], &[0; 100]].concat();
        server.behaviour.lock().sends_instead.insert(WEIGHTS.to_owned(), longer);
        let cache = tempfile::tempdir().unwrap();
        let error = server.open(cache.path()).await.unwrap_err();
        assert!(matches!(error, HubError::UnexpectedAnswer { .. }), "{error}");
    });
}

#[test]
fn a_connection_that_never_brings_anything_is_given_up_and_gone_on_with_later() {
    run(async {
        let server = HubServer::start(single(ROWS)).await;
        let breaks = [2000].into_iter().chain([0; 20]).collect();
        server.behaviour.lock().breaks.insert(WEIGHTS.to_owned(), breaks);
        let cache = tempfile::tempdir().unwrap();
        let error = server.open(cache.path()).await.unwrap_err();
        assert!(matches!(error, HubError::Network { .. }), "{error}");
        assert_eq!(partial(cache.path()).metadata().unwrap().len(), 2000);
        server.behaviour.lock().breaks.clear();
        server.requests();
        assert_complete(&server.open(cache.path()).await.unwrap());
        assert_eq!(ranges(&server), [Some("bytes=2000-".to_owned())]);
    });
}

#[test]
fn two_at_once_download_once() {
    run(async {
        let server = HubServer::start(single(ROWS)).await;
        let cache = tempfile::tempdir().unwrap();
        let (first, second) = tokio::join!(server.open(cache.path()), server.open(cache.path()));
        assert_complete(&first.unwrap());
        assert_complete(&second.unwrap());
        assert_eq!(ranges(&server), [None]);
    });
}

/// Cancels after some bytes, and checks what it is told.
struct Watcher {
    cancel_after: u64,
    last: AtomicU64,
}

impl FetchProgress for Watcher {
    fn bytes(&self, stage: FetchStage, done: u64, total: u64) -> Result<(), Cancelled> {
        assert!(done <= total, "{stage:?}: {done} of {total}");
        if stage == FetchStage::Download {
            self.last.store(done, Ordering::Relaxed);
        }
        if done >= self.cancel_after { Err(Cancelled) } else { Ok(()) }
    }

    fn log(&self, _line: &str) {}
}

#[test]
fn progress_ends_at_the_total_however_often_connections_break() {
    run(async {
        let server = HubServer::start(single(ROWS)).await;
        server.behaviour.lock().breaks.insert(WEIGHTS.to_owned(), vec![1000, 2000]);
        let cache = tempfile::tempdir().unwrap();
        let watcher = Watcher { cancel_after: u64::MAX, last: AtomicU64::new(0) };
        Checkpoints::new(server.config(cache.path())).open(ID, None, &watcher).await.unwrap();
        let total: usize = single(ROWS).values().map(Vec::len).sum();
        assert_eq!(watcher.last.load(Ordering::Relaxed), total as u64);
    });
}

#[test]
fn a_cancelled_download_stops_and_can_go_on() {
    run(async {
        let server = HubServer::start(single(ROWS)).await;
        let cache = tempfile::tempdir().unwrap();
        let watcher = Watcher { cancel_after: 20_000, last: AtomicU64::new(0) };
        let checkpoints = Checkpoints::new(server.config(cache.path()));
        let error = checkpoints.open(ID, None, &watcher).await.unwrap_err();
        assert!(matches!(error, HubError::Cancelled), "{error}");
        assert_complete(&checkpoints.open(ID, None, &Unwatched).await.unwrap());
    });
}
