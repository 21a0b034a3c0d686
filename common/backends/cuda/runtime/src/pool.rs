//! Memory of sequences, used again.
//!
//! Taking memory of a device from the driver waits for everything on it. What a sequence gives back is kept for the next
//! one that needs as much; all of it together is never more than sequences once had at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_cuda_device::{Device, DeviceError, Memory};

/// Memory that is free, by size.
pub(crate) struct Pool {
    device: Arc<dyn Device>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: BTreeMap<usize, Vec<Memory>>,
    free_bytes: usize,
    used_bytes: usize,
    /// The most that was ever used at a time.
    most_used_bytes: usize,
}

/// Memory of a pool, which gets it back.
pub(crate) struct Pooled {
    pool: Arc<Pool>,
    memory: Option<Memory>,
}

impl Pool {
    pub(crate) fn new(device: Arc<dyn Device>) -> Self {
        Self { device, state: Mutex::default() }
    }

    /// So many bytes. Where there is none of that size, what is free in others is given back to the device as far as there
    /// would be more memory than was ever used at a time, and all of it where the device has no more.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Pooled, DeviceError> {
        let (kept, given_back) = self.state.lock().take(bytes);
        // Not under the lock: the driver waits.
        drop(given_back);
        let memory = match kept {
            Some(memory) => Ok(memory),
            None => match Memory::new(&self.device, bytes) {
                Err(DeviceError::OutOfMemory { .. }) => {
                    self.give_back();
                    Memory::new(&self.device, bytes)
                }
                memory => memory,
            },
        };
        match memory {
            Ok(memory) => Ok(Pooled { pool: Arc::clone(self), memory: Some(memory) }),
            Err(error) => {
                self.state.lock().used_bytes -= bytes;
                Err(error)
            }
        }
    }

    /// Gives all that is free back to the device.
    pub(crate) fn give_back(&self) {
        let given_back = self.state.lock().give_back_beyond(0);
        drop(given_back);
    }
}

impl State {
    /// Counts so many bytes as used: the memory of that size that was free, or what has to be given back before new memory is
    /// taken.
    fn take(&mut self, bytes: usize) -> (Option<Memory>, Vec<Memory>) {
        self.used_bytes += bytes;
        self.most_used_bytes = self.most_used_bytes.max(self.used_bytes);
        if let Some(memory) = self.free.get_mut(&bytes).and_then(Vec::pop) {
            self.free_bytes -= bytes;
            return (Some(memory), Vec::new());
        }
        (None, self.give_back_beyond(self.most_used_bytes - self.used_bytes))
    }

    /// Free memory, the largest first, until at most so many bytes are free.
    fn give_back_beyond(&mut self, bytes: usize) -> Vec<Memory> {
        let mut given_back = Vec::new();
        while self.free_bytes > bytes {
            let Some(mut largest) = self.free.last_entry() else { break };
            match largest.get_mut().pop() {
                Some(memory) => {
                    self.free_bytes -= memory.bytes();
                    given_back.push(memory);
                }
                None => _ = largest.remove(),
            }
        }
        given_back
    }
}

impl Pooled {
    pub(crate) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, Memory::address)
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            let mut state = self.pool.state.lock();
            state.used_bytes -= memory.bytes();
            state.free_bytes += memory.bytes();
            state.free.entry(memory.bytes()).or_default().push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use roundhouse_cuda_emulation::EmulatedDevice;

    use super::*;

    fn pool() -> Arc<Pool> {
        Arc::new(Pool::new(Arc::new(EmulatedDevice::new(PathBuf::new()))))
    }

    /// Bytes that are taken of the device.
    fn taken(pool: &Pool) -> u64 {
        let (free, total) = pool.device.memory().unwrap();
        total - free
    }

    #[test]
    fn what_is_given_back_is_used_again() {
        let pool = pool();
        let first = pool.take(1000).unwrap();
        let address = first.address();
        drop(first);
        let again = pool.take(1000).unwrap();
        assert_eq!((again.address(), taken(&pool)), (address, 1000));
        let other = pool.take(1000).unwrap();
        assert!(other.address() != address);
        assert_eq!(taken(&pool), 2000);
    }

    #[test]
    fn it_never_holds_more_than_was_used_at_a_time() {
        let pool = pool();
        // Ever other sizes, as of sequences of ever other lengths; three at a time at most.
        let mut most = 0;
        let mut sizes = Vec::new();
        for turn in 0..200_usize {
            sizes.push(1000 + turn * 37 % 991);
            most = most.max(sizes.iter().sum::<usize>());
            let held: Vec<Pooled> = sizes.iter().map(|&bytes| pool.take(bytes).unwrap()).collect();
            assert!(taken(&pool) <= most as u64, "turn {turn}: {} of {most}", taken(&pool));
            drop(held);
            assert!(taken(&pool) <= most as u64, "turn {turn}: {} of {most}", taken(&pool));
            if sizes.len() == 3 {
                sizes.remove(turn % 3);
            }
        }
        pool.give_back();
        assert_eq!(taken(&pool), 0);
    }
}
