//! The last few blocks of rows that were unpacked.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_backend::WeightError;

/// How many are kept: of a weight that is read by rows, and of some others that are read beside it.
const KEPT: usize = 3;

/// The last few blocks, by weight and number. Words hold several rows, so what reads row after row would unpack each
/// word as often.
#[derive(Debug)]
pub(super) struct Recent<T>(Mutex<VecDeque<Entry<T>>>);

#[derive(Debug)]
struct Entry<T> {
    weight: String,
    number: u64,
    block: Arc<T>,
}

impl<T> Recent<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(VecDeque::with_capacity(KEPT)))
    }

    /// The block, made if it is not there. Others may be made meanwhile.
    pub(super) fn get(
        &self,
        weight: &str,
        number: u64,
        make: impl FnOnce() -> Result<T, WeightError>,
    ) -> Result<Arc<T>, WeightError> {
        let found = |entry: &&Entry<T>| entry.number == number && entry.weight == weight;
        if let Some(entry) = self.0.lock().iter().find(found) {
            return Ok(Arc::clone(&entry.block));
        }
        let block = Arc::new(make()?);
        let mut entries = self.0.lock();
        entries.truncate(KEPT - 1);
        entries.push_front(Entry { weight: weight.to_owned(), number, block: Arc::clone(&block) });
        Ok(block)
    }
}
