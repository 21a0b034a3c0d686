//! Memory of sequences, used again.
//!
//! Taking memory of a device from the driver waits for everything on it. What a sequence gives back is kept for the next
//! one that needs as much.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_cuda_device::{Device, DeviceError, Memory};

/// Memory that is free, by size.
pub(crate) struct Pool {
    device: Arc<dyn Device>,
    free: Mutex<BTreeMap<usize, Vec<Memory>>>,
}

/// Memory of a pool, which gets it back.
pub(crate) struct Pooled {
    pool: Arc<Pool>,
    memory: Option<Memory>,
}

impl Pool {
    pub(crate) fn new(device: Arc<dyn Device>) -> Self {
        Self { device, free: Mutex::default() }
    }

    /// So many bytes. Where the device has no more, what is free in other sizes is given back to it first.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Pooled, DeviceError> {
        let kept = self.free.lock().get_mut(&bytes).and_then(Vec::pop);
        let memory = match kept {
            Some(memory) => memory,
            None => match Memory::new(&self.device, bytes) {
                Err(DeviceError::OutOfMemory { .. }) => {
                    let given_back = std::mem::take(&mut *self.free.lock());
                    drop(given_back);
                    Memory::new(&self.device, bytes)?
                }
                memory => memory?,
            },
        };
        Ok(Pooled { pool: Arc::clone(self), memory: Some(memory) })
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
            self.pool.free.lock().entry(memory.bytes()).or_default().push(memory);
        }
    }
}
