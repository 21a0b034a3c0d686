//! One GPU, opened on the thread that owns it.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use super::engine::LoadedEngine;
use super::memory::{CudaBuffer, Memory};
use crate::DeviceError;
use crate::device::{Device, EngineSource};

/// One GPU, opened on the thread that owns it.
pub struct CudaDevice {
    memory: Rc<RefCell<Memory>>,
}

impl CudaDevice {
    /// Opens the GPU of this number. TensorRT is loaded, and there is a driver.
    pub(super) fn open(device: usize) -> Result<Self, DeviceError> {
        Ok(Self { memory: Rc::new(RefCell::new(Memory::open(device)?)) })
    }
}

impl Device for CudaDevice {
    type Buffer = CudaBuffer;
    type Engine = LoadedEngine;

    fn allocate(&mut self, bytes: usize) -> Result<CudaBuffer, DeviceError> {
        self.memory.borrow().allocate(bytes)
    }

    fn zero(&mut self, buffer: &CudaBuffer, range: Range<usize>) -> Result<(), DeviceError> {
        self.memory.borrow().zero(buffer, range)
    }

    fn upload(&mut self, buffer: &CudaBuffer, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.memory.borrow_mut().upload(buffer, offset, bytes)
    }

    fn download(&mut self, buffer: &CudaBuffer, ranges: &[Range<usize>]) -> Result<Vec<u8>, DeviceError> {
        self.memory.borrow_mut().download(buffer, ranges)
    }

    fn free_bytes(&self) -> Option<u64> {
        self.memory.borrow().free_bytes()
    }

    fn load(&mut self, source: &EngineSource<'_>) -> Result<LoadedEngine, DeviceError> {
        LoadedEngine::load(&self.memory, source)
    }
}
