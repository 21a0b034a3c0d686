//! The device and its memory.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use roundhouse_backend::BackendError;
use roundhouse_engine::{ComputeCapability, Manifest};
use roundhouse_tensorrt_interpreter::{Interpreter, Rounding};
use roundhouse_tensorrt_network::DataType;
use roundhouse_tensorrt_runtime::DeviceError;
use roundhouse_tensorrt_runtime::device::{
    ALIGNMENT, Device, Engine, EngineSource, ExecutionOptions, Machine,
};

use crate::builder::{NetworkBuilder, plan_of};
use crate::bytes::decode;
use crate::execution::HostExecution;

/// What plans of TensorRT begin with: the network that one was built from is interpreted, not the plan.
const REAL_PLAN: &[u8] = b"vtrt";

/// What tests see of a device and do to it.
#[derive(Debug)]
pub struct HostState {
    /// Bytes that it has.
    pub memory: AtomicUsize,
    /// Bytes that are taken.
    pub used: AtomicUsize,
    /// Runs so far.
    pub enqueued: AtomicUsize,
    /// Rows of them all.
    pub rows: AtomicUsize,
    /// The run that fails; they are numbered from 0.
    pub fails_at: AtomicUsize,
    /// Whether it panics instead.
    pub panics: AtomicBool,
    /// Whether all memory is filled with NaN before the next copy to it.
    pub spoils: AtomicBool,
    /// How often kernels were kept.
    pub kept: AtomicUsize,
    /// What was dropped, in order.
    pub dropped: Mutex<Vec<&'static str>>,
}

/// A machine with such a device.
#[derive(Debug, Clone)]
pub struct HostMachine(pub Arc<HostState>);

impl Default for HostMachine {
    fn default() -> Self {
        Self(Arc::new(HostState {
            memory: AtomicUsize::new(1 << 40),
            used: AtomicUsize::new(0),
            enqueued: AtomicUsize::new(0),
            rows: AtomicUsize::new(0),
            fails_at: AtomicUsize::new(usize::MAX),
            panics: false.into(),
            spoils: false.into(),
            kept: AtomicUsize::new(0),
            dropped: Mutex::default(),
        }))
    }
}

impl Machine for HostMachine {
    type Device = HostDevice;

    fn compute_capability(&self) -> Option<ComputeCapability> {
        Some(ComputeCapability::new(8, 9))
    }

    fn check(&self, manifest: &Manifest) -> Result<(), BackendError> {
        if manifest.backend_version == NetworkBuilder::VERSION {
            return Ok(());
        }
        Err(BackendError::Incompatible {
            key: manifest.key.to_string(),
            found: manifest.backend_version.clone(),
            needed: NetworkBuilder::VERSION.to_owned(),
        })
    }

    fn open(&self) -> Result<HostDevice, DeviceError> {
        Ok(HostDevice { state: Arc::clone(&self.0), next_address: ALIGNMENT as u64, all: Vec::new() })
    }
}

/// Memory with an address that no other ever has.
pub struct HostMemory {
    /// Where it begins.
    pub address: u64,
    /// What it holds.
    pub bytes: RefCell<Vec<u8>>,
    state: Arc<HostState>,
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.state.used.fetch_sub(self.bytes.borrow().len(), Ordering::SeqCst);
    }
}

/// The device: memory that is counted and never side by side.
pub struct HostDevice {
    state: Arc<HostState>,
    next_address: u64,
    all: Vec<Weak<HostMemory>>,
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        self.state.dropped.lock().push("device");
    }
}

impl Drop for HostEngine {
    fn drop(&mut self) {
        self.state.dropped.lock().push("engine");
    }
}

fn outside(range: &Range<usize>) -> DeviceError {
    DeviceError::Engine(format!("{range:?} is outside of the buffer"))
}

impl Device for HostDevice {
    type Buffer = Rc<HostMemory>;
    type Engine = HostEngine;

    fn allocate(&mut self, bytes: usize) -> Result<Rc<HostMemory>, DeviceError> {
        let used = self.state.used.load(Ordering::SeqCst);
        if used + bytes > self.state.memory.load(Ordering::SeqCst) {
            return Err(DeviceError::Memory { bytes, what: format!("{used} are taken") });
        }
        self.state.used.fetch_add(bytes, Ordering::SeqCst);
        let address = self.next_address;
        // Never side by side: what runs over the end of one hits no other.
        self.next_address += (bytes + 2 * ALIGNMENT).next_multiple_of(ALIGNMENT) as u64;
        let (bytes, state) = (RefCell::new(vec![0; bytes]), Arc::clone(&self.state));
        let memory = Rc::new(HostMemory { address, bytes, state });
        self.all.push(Rc::downgrade(&memory));
        Ok(memory)
    }

    fn zero(&mut self, buffer: &Rc<HostMemory>, range: Range<usize>) -> Result<(), DeviceError> {
        let mut bytes = buffer.bytes.borrow_mut();
        bytes.get_mut(range.clone()).ok_or_else(|| outside(&range))?.fill(0);
        Ok(())
    }

    fn upload(&mut self, buffer: &Rc<HostMemory>, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        if self.state.spoils.swap(false, Ordering::SeqCst) {
            // Every bit set is NaN in every float type.
            self.all.iter().filter_map(Weak::upgrade).for_each(|memory| memory.bytes.borrow_mut().fill(0xff));
        }
        let range = offset..offset + data.len();
        let mut bytes = buffer.bytes.borrow_mut();
        bytes.get_mut(range.clone()).ok_or_else(|| outside(&range))?.copy_from_slice(data);
        Ok(())
    }

    fn download(&mut self, buffer: &Rc<HostMemory>, ranges: &[Range<usize>]) -> Result<Vec<u8>, DeviceError> {
        let bytes = buffer.bytes.borrow();
        let mut all = Vec::new();
        for range in ranges {
            all.extend_from_slice(bytes.get(range.clone()).ok_or_else(|| outside(range))?);
        }
        Ok(all)
    }

    fn free_bytes(&self) -> Option<u64> {
        let free = self.state.memory.load(Ordering::SeqCst) - self.state.used.load(Ordering::SeqCst);
        Some(free as u64)
    }

    fn load(&mut self, source: &EngineSource<'_>) -> Result<HostEngine, DeviceError> {
        let plan = std::fs::read(source.plan).map_err(|error| DeviceError::Engine(error.to_string()))?;
        if plan != plan_of(source.network) && !plan.starts_with(REAL_PLAN) {
            return Err(DeviceError::Engine("the plan is of another network".to_owned()));
        }
        let mapped = source.weights.ok_or_else(|| DeviceError::Engine("no weights".to_owned()))?;
        let weight = |name: &str| {
            let tensor = mapped.tensor(name)?;
            let floats = decode(DataType::from(tensor.dtype), &tensor.shape, mapped.bytes(tensor));
            Some(floats.floats().to_vec())
        };
        let interpreter = Interpreter::new(source.network, Rounding::Stored, weight);
        let interpreter = interpreter.map_err(|error| DeviceError::Engine(error.to_string()))?;
        let weights = self.allocate(usize::try_from(mapped.file_bytes()).unwrap())?;
        Ok(HostEngine {
            interpreter: Rc::new(interpreter),
            _weights: weights,
            state: Arc::clone(&self.state),
        })
    }
}

/// A loaded network with its weights.
pub struct HostEngine {
    interpreter: Rc<Interpreter>,
    _weights: Rc<HostMemory>,
    state: Arc<HostState>,
}

impl Engine for HostEngine {
    type Buffer = Rc<HostMemory>;
    type Execution = HostExecution;

    fn executions(&mut self, options: &[ExecutionOptions]) -> Result<Vec<HostExecution>, DeviceError> {
        let new = |options: &ExecutionOptions| {
            HostExecution::new(Rc::clone(&self.interpreter), options.profile, Arc::clone(&self.state))
        };
        Ok(options.iter().map(new).collect())
    }

    fn workspace_bytes(&self) -> Option<u64> {
        Some(1000)
    }

    fn keep_kernels(&mut self) {
        self.state.kept.fetch_add(1, Ordering::SeqCst);
    }
}
