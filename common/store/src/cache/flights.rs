//! One fetch of a blob at a time within the process.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// The blobs that are being fetched.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Flights {
    /// Waits until nobody else fetches this blob. The next one may go when the guard is dropped.
    pub(super) async fn enter(&self, digest: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut flights = self.0.lock();
            flights.retain(|_, turn| turn.strong_count() > 0);
            match flights.get(digest).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    flights.insert(digest.to_owned(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}
