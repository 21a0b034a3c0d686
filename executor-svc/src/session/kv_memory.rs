//! The memory for KV caches: reserved before a cache is made, returned when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A budget of bytes for the KV caches of all engines.
#[derive(Debug)]
pub struct KvMemory {
    total: u64,
    used: AtomicU64,
}

/// Bytes taken from a [`KvMemory`]; dropping it returns them.
#[derive(Debug)]
pub struct KvReservation {
    memory: Arc<KvMemory>,
    bytes: u64,
}

/// A cache does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a KV cache of {wanted} bytes does not fit: {used} of {total} bytes are in use")]
pub struct KvMemoryExhausted {
    /// Bytes asked for.
    pub wanted: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes there are.
    pub total: u64,
}

impl KvMemory {
    /// A budget of `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Arc<Self> {
        Arc::new(Self { total, used: AtomicU64::new(0) })
    }

    /// Takes `bytes`.
    ///
    /// # Errors
    /// [`KvMemoryExhausted`] when they are not there.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<KvReservation, KvMemoryExhausted> {
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(bytes).filter(|&sum| sum <= self.total)
        });
        match taken {
            Ok(_) => Ok(KvReservation { memory: Arc::clone(self), bytes }),
            Err(used) => Err(KvMemoryExhausted { wanted: bytes, used, total: self.total }),
        }
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

impl KvReservation {
    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for KvReservation {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_there_again() {
        let memory = KvMemory::new(100);
        let first = memory.reserve(60).unwrap();
        assert_eq!(memory.reserve(41).unwrap_err(), KvMemoryExhausted { wanted: 41, used: 60, total: 100 });
        let second = memory.reserve(40).unwrap();
        assert_eq!((memory.used(), first.bytes()), (100, 60));
        drop(first);
        drop(second);
        assert_eq!(memory.used(), 0);
        assert!(memory.reserve(u64::MAX).is_err());
    }
}
