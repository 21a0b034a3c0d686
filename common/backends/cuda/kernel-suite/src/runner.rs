//! Launching kernels on a device.

use std::sync::Arc;

use roundhouse_cuda_device::{Device, DeviceError, Function, Launch as DeviceLaunch, Memory, Module};
use roundhouse_cuda_kernels::{Kernel, Launch, ParameterKind};
use roundhouse_graph::DType;

use crate::tensor::{decode, encode};
use crate::{SuiteError, Tensor};

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// An address.
    Pointer(u64),
    /// A 32-bit integer.
    I32(i32),
    /// A 64-bit integer.
    I64(i64),
    /// A float.
    F32(f32),
}

impl Argument {
    /// As the device takes it: in the low bytes.
    #[must_use]
    pub fn slot(self) -> u64 {
        match self {
            Self::Pointer(address) => address,
            Self::I32(value) => u64::from(value.cast_unsigned()),
            Self::I64(value) => value.cast_unsigned(),
            Self::F32(value) => u64::from(value.to_bits()),
        }
    }

    const fn kind(self) -> ParameterKind {
        match self {
            Self::Pointer(_) => ParameterKind::Pointer,
            Self::I32(_) => ParameterKind::I32,
            Self::I64(_) => ParameterKind::I64,
            Self::F32(_) => ParameterKind::F32,
        }
    }
}

impl From<&Tensor> for Argument {
    fn from(tensor: &Tensor) -> Self {
        Self::Pointer(tensor.address())
    }
}
impl From<Option<&Tensor>> for Argument {
    fn from(tensor: Option<&Tensor>) -> Self {
        Self::Pointer(tensor.map_or(0, Tensor::address))
    }
}
impl From<&Memory> for Argument {
    fn from(memory: &Memory) -> Self {
        Self::Pointer(memory.address())
    }
}
impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        Self::I32(value)
    }
}
impl From<usize> for Argument {
    fn from(value: usize) -> Self {
        Self::I32(i32::try_from(value).unwrap_or(i32::MAX))
    }
}
impl From<i64> for Argument {
    fn from(value: i64) -> Self {
        Self::I64(value)
    }
}
impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

/// A device with an image of kernels loaded.
pub struct Runner {
    device: Arc<dyn Device>,
    module: Module,
}

impl Runner {
    /// Loads an image.
    ///
    /// # Errors
    /// When it is none for the device.
    pub fn new(device: Arc<dyn Device>, image: &[u8]) -> Result<Self, DeviceError> {
        let module = device.load_module(image)?;
        Ok(Self { device, module })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Its multiprocessors.
    #[must_use]
    pub fn multiprocessors(&self) -> u32 {
        self.device.properties().multiprocessors
    }

    /// Memory that holds NaN in every float type.
    ///
    /// # Errors
    /// When there is none.
    pub fn poisoned(&self, bytes: usize) -> Result<Memory, DeviceError> {
        let memory = Memory::new(&self.device, bytes)?;
        let stream = self.device.stream();
        self.device.fill(stream, memory.address(), 0xff, bytes)?;
        Ok(memory)
    }

    /// Bytes on the device.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn upload(&self, bytes: &[u8]) -> Result<Memory, DeviceError> {
        let memory = Memory::new(&self.device, bytes.len())?;
        let stream = self.device.stream();
        self.device.copy_in(stream, memory.address(), bytes)?;
        self.device.synchronize(stream)?;
        Ok(memory)
    }

    /// Integers on the device.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn integers(&self, values: &[i32]) -> Result<Memory, DeviceError> {
        self.upload(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    /// Numbers on the device, in a type.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn numbers(&self, dtype: DType, values: &[f32]) -> Result<Tensor, DeviceError> {
        let bytes = encode(dtype, values);
        let memory = self.upload(&bytes)?;
        Ok(Tensor { memory, values: decode(dtype, &bytes) })
    }

    /// Room for numbers, poisoned.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn output(&self, dtype: DType, count: usize) -> Result<Tensor, DeviceError> {
        Ok(Tensor { memory: self.poisoned(count * dtype.size())?, values: Vec::new() })
    }

    /// What numbers on the device are.
    ///
    /// # Errors
    /// What failed on the device before.
    pub fn read(&self, dtype: DType, memory: &Memory) -> Result<Vec<f64>, DeviceError> {
        let mut bytes = vec![0; memory.bytes()];
        let stream = self.device.stream();
        self.device.copy_out(stream, &mut bytes, memory.address())?;
        self.device.synchronize(stream)?;
        Ok(decode(dtype, &bytes))
    }

    /// What integers on the device are.
    ///
    /// # Errors
    /// What failed on the device before.
    pub fn read_integers(&self, memory: &Memory) -> Result<Vec<i32>, DeviceError> {
        let mut bytes = vec![0; memory.bytes()];
        let stream = self.device.stream();
        self.device.copy_out(stream, &mut bytes, memory.address())?;
        self.device.synchronize(stream)?;
        Ok(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// A kernel's function.
    ///
    /// # Errors
    /// When the image has none of its name.
    pub fn function(&self, kernel: &Kernel) -> Result<Function, DeviceError> {
        self.device.function(self.module, &kernel.name())
    }

    /// Enqueues a launch.
    ///
    /// # Errors
    /// When the arguments are not the kernel's, or the device fails.
    pub fn launch(&self, kernel: &Kernel, launch: Launch, arguments: &[Argument]) -> Result<(), SuiteError> {
        let name = kernel.name();
        let expected: Vec<ParameterKind> =
            kernel.parameters().iter().map(|parameter| parameter.kind).collect();
        let found: Vec<ParameterKind> = arguments.iter().map(|argument| argument.kind()).collect();
        if expected != found {
            return Err(SuiteError::Arguments {
                kernel: name,
                message: format!("takes {expected:?}, was given {found:?}"),
            });
        }
        let function = self.function(kernel)?;
        let slots: Vec<u64> = arguments.iter().map(|argument| argument.slot()).collect();
        let launch = DeviceLaunch {
            function,
            grid: launch.grid,
            block: [launch.block, 1, 1],
            shared_bytes: launch.shared_bytes,
            arguments: &slots,
            overlaps: false,
        };
        Ok(self.device.launch(self.device.stream(), &launch)?)
    }
}
