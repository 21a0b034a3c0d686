//! The memory for KV caches: reserved before it is used, returned when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A budget of bytes for the KV caches of all engines.
#[derive(Debug)]
pub struct KvMemory {
    total: u64,
    used: AtomicU64,
    /// Of `used`, what idle sessions hold: it can be had by dropping their caches.
    idle: AtomicU64,
}

/// Bytes taken from a [`KvMemory`]; dropping it returns them.
#[derive(Debug)]
pub struct KvReservation {
    memory: Arc<KvMemory>,
    bytes: u64,
    is_idle: bool,
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
        Arc::new(Self { total, used: AtomicU64::new(0), idle: AtomicU64::new(0) })
    }

    /// A place in the budget, of no bytes at first.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> KvReservation {
        KvReservation { memory: Arc::clone(self), bytes: 0, is_idle: false }
    }

    /// Bytes in use, those of idle sessions included.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Of the bytes in use, those of idle sessions.
    #[must_use]
    pub fn idle(&self) -> u64 {
        self.idle.load(Ordering::Acquire)
    }

    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Takes `more` bytes for a cache that has `held`.
    fn take(&self, more: u64, held: u64) -> Result<(), KvMemoryExhausted> {
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(more).filter(|&sum| sum <= self.total)
        });
        match taken {
            Ok(_) => Ok(()),
            Err(used) => {
                Err(KvMemoryExhausted { wanted: held.saturating_add(more), used, total: self.total })
            }
        }
    }
}

impl KvReservation {
    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Grows to `bytes`. Fewer than [`KvReservation::bytes`] change nothing.
    ///
    /// # Errors
    /// [`KvMemoryExhausted`] when they are not there; then nothing has changed.
    pub fn grow(&mut self, bytes: u64) -> Result<(), KvMemoryExhausted> {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        self.memory.take(more, self.bytes)?;
        self.bytes += more;
        if self.is_idle {
            self.memory.idle.fetch_add(more, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Returns all bytes.
    pub fn clear(&mut self) {
        if self.is_idle {
            self.memory.idle.fetch_sub(self.bytes, Ordering::AcqRel);
        }
        self.memory.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.bytes = 0;
    }

    /// Says whether a session holds the bytes that no generation runs in.
    pub fn set_idle(&mut self, is_idle: bool) {
        match (self.is_idle, is_idle) {
            (false, true) => drop(self.memory.idle.fetch_add(self.bytes, Ordering::AcqRel)),
            (true, false) => drop(self.memory.idle.fetch_sub(self.bytes, Ordering::AcqRel)),
            _ => {}
        }
        self.is_idle = is_idle;
    }
}

impl Drop for KvReservation {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_there_again() {
        let memory = KvMemory::new(100);
        let (mut first, mut second) = (memory.reserve(), memory.reserve());
        first.grow(60).unwrap();
        let refused = KvMemoryExhausted { wanted: 41, used: 60, total: 100 };
        assert_eq!(second.grow(41).unwrap_err(), refused);
        second.grow(40).unwrap();
        assert_eq!((memory.used(), first.bytes()), (100, 60));
        drop(first);
        second.clear();
        assert_eq!(memory.used(), 0);
        assert!(second.grow(u64::MAX).is_err());
    }

    #[test]
    fn a_reservation_grows_and_never_shrinks() {
        let memory = KvMemory::new(100);
        let mut reservation = memory.reserve();
        for (asked, held) in [(10, 10), (30, 30), (20, 30)] {
            reservation.grow(asked).unwrap();
            assert_eq!((reservation.bytes(), memory.used()), (held, held));
        }
        let refused = KvMemoryExhausted { wanted: 101, used: 30, total: 100 };
        assert_eq!(reservation.grow(101).unwrap_err(), refused);
        assert_eq!(reservation.bytes(), 30);
    }

    #[test]
    fn idle_bytes_are_counted_while_they_are_idle() {
        let memory = KvMemory::new(100);
        let mut reservation = memory.reserve();
        reservation.grow(10).unwrap();
        reservation.set_idle(true);
        reservation.set_idle(true);
        assert_eq!((memory.used(), memory.idle()), (10, 10));
        reservation.grow(15).unwrap();
        assert_eq!(memory.idle(), 15);
        reservation.set_idle(false);
        assert_eq!((memory.used(), memory.idle()), (15, 0));
        reservation.set_idle(true);
        reservation.clear();
        assert_eq!((memory.used(), memory.idle()), (0, 0));
        reservation.grow(5).unwrap();
        drop(reservation);
        assert_eq!((memory.used(), memory.idle()), (0, 0));
    }
}
