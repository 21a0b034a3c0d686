//! Memory and events that give themselves back.

use std::ops::Range;
use std::sync::Arc;

use crate::{Device, DeviceError, Event};

/// Memory of a device.
pub struct Memory {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Takes memory, aligned to 256 bytes. Its content is anything.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self, DeviceError> {
        let address = device.allocate(bytes.max(1))?;
        Ok(Self { device: Arc::clone(device), address, bytes })
    }

    /// Where it begins.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How much it is.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.device.free(self.address);
    }
}

/// Host memory that a device copies from and to while the processor goes on.
pub struct Pinned {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
}

impl Pinned {
    /// Takes host memory; its content is zeros.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self, DeviceError> {
        let bytes = bytes.max(1);
        let address = device.allocate_pinned(bytes)?;
        let mut pinned = Self { device: Arc::clone(device), address, bytes };
        pinned.bytes_mut().fill(0);
        Ok(pinned)
    }

    /// What it holds. Copies to it have to be done.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        #[expect(unsafe_code, reason = "the device has only its address")]
        // SAFETY: `allocate_pinned` gave `bytes` bytes of this process at `address`, which only this value gives back,
        // and which `new` has set.
        unsafe {
            std::slice::from_raw_parts(self.address as *const u8, self.bytes)
        }
    }

    /// Where it begins, for kernels.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// What a part of it holds, as far as it has it. What the device writes there has to be written; it may still write to
    /// the rest.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> &[u8] {
        let range = range.start.min(self.bytes)..range.end.min(self.bytes);
        #[expect(unsafe_code, reason = "the device has only its address")]
        // SAFETY: as in `bytes`; the range is in it.
        unsafe {
            std::slice::from_raw_parts((self.address as *const u8).add(range.start), range.len())
        }
    }

    /// What it holds, to be changed. Copies from and to it have to be done.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        #[expect(unsafe_code, reason = "the device has only its address")]
        // SAFETY: as in `bytes`, and `self` is borrowed mutably. Pinned memory of the driver is readable and writable
        // from the start.
        unsafe {
            std::slice::from_raw_parts_mut(self.address as *mut u8, self.bytes)
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.device.free_pinned(self.address);
    }
}

/// An event that gives itself back.
pub struct OwnedEvent {
    device: Arc<dyn Device>,
    event: Event,
}

impl OwnedEvent {
    /// One that nothing was recorded with.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn new(device: &Arc<dyn Device>) -> Result<Self, DeviceError> {
        Ok(Self { device: Arc::clone(device), event: device.new_event()? })
    }

    /// It.
    #[must_use]
    pub const fn get(&self) -> Event {
        self.event
    }
}

impl Drop for OwnedEvent {
    fn drop(&mut self) {
        self.device.free_event(self.event);
    }
}
