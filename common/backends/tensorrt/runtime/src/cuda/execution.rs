//! An execution of an engine on a GPU: TensorRT's context, with what it is bound to.

#![expect(unsafe_code, reason = "TensorRT is given streams and addresses")]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use trtx::ExecutionContext;
use trtx::trtx_sys::Dims64;

use super::engine::{IoTensors, Loaded};
use super::memory::CudaBuffer;
use super::said::said;
use crate::DeviceError;
use crate::device::{ALIGNMENT, Execution};

/// The most elements of a shape tensor.
const HOST_VALUES: usize = 4;

#[repr(C, align(256))]
struct Aligned([i64; HOST_VALUES]);

/// The elements of a shape tensor in host memory, at an address that does not change. TensorRT reads them when a run is
/// enqueued.
struct HostValues(NonNull<Aligned>);

impl HostValues {
    fn new() -> Self {
        Self(NonNull::from(Box::leak(Box::new(Aligned([0; HOST_VALUES])))))
    }

    fn address(&self) -> *const c_void {
        self.0.as_ptr().cast_const().cast()
    }

    /// Sets the first elements, as many as there is room for.
    fn set(&mut self, values: &[i64]) {
        // SAFETY: the memory is this object's until it is dropped, and nothing else uses it between runs.
        let held = unsafe { self.0.as_mut() };
        held.0.iter_mut().zip(values).for_each(|(held, value)| *held = *value);
    }
}

impl Drop for HostValues {
    fn drop(&mut self) {
        // SAFETY: it came from a box, and is dropped once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// What a tensor is bound to.
struct Bound {
    buffer: CudaBuffer,
    offset: usize,
}

/// An execution. Fields are dropped in this order: the context before everything that it points to, and before the
/// engine that it is of.
pub struct CudaExecution {
    context: ExecutionContext<'static>,
    bound: BTreeMap<String, Bound>,
    host_values: BTreeMap<String, HostValues>,
    /// Dimensions of the inputs, as far as they were set.
    dims: BTreeMap<String, Vec<i64>>,
    _workspace: CudaBuffer,
    io: Rc<IoTensors>,
    _loaded: Rc<Loaded>,
    stream: Arc<CudaStream>,
}

impl CudaExecution {
    /// Takes over a context, and binds its shape tensors.
    pub(super) fn new(
        context: ExecutionContext<'static>,
        (loaded, io, workspace): (Rc<Loaded>, Rc<IoTensors>, CudaBuffer),
        stream: Arc<CudaStream>,
    ) -> Result<Self, DeviceError> {
        let mut this = Self {
            context,
            bound: BTreeMap::new(),
            host_values: BTreeMap::new(),
            dims: BTreeMap::new(),
            _workspace: workspace,
            io: Rc::clone(&io),
            _loaded: loaded,
            stream,
        };
        for (name, tensor) in io.iter().filter(|(_, tensor)| tensor.is_input && tensor.on_host) {
            let values = HostValues::new();
            let elements = elements(&tensor.dims).filter(|&elements| elements <= HOST_VALUES);
            elements.ok_or_else(|| DeviceError::tensor(name, "a shape tensor of too many elements"))?;
            let address = values.address();
            said(&format!("setInputTensorAddress({name:?})"), || {
                // SAFETY: the values are in host memory, where TensorRT wants them, aligned, at least as many as the
                // tensor has, and stay at their address until after the context is dropped.
                unsafe { this.context.set_input_tensor_address(name, address) }
            })?;
            this.host_values.insert(name.clone(), values);
        }
        Ok(this)
    }

    /// Keeps a binding's buffer alive and gives its address; `None` for an input that the engine left out.
    fn keep(
        &mut self,
        name: &str,
        buffer: &CudaBuffer,
        offset: usize,
        is_input: bool,
    ) -> Result<Option<*mut c_void>, DeviceError> {
        match self.io.get(name) {
            None if is_input => return Ok(None),
            Some(tensor) if tensor.is_input == is_input && !tensor.on_host => {}
            _ => return Err(DeviceError::tensor(name, "the engine has no such tensor on the device")),
        }
        if !offset.is_multiple_of(ALIGNMENT) {
            return Err(DeviceError::tensor(name, format!("byte {offset} is not aligned to {ALIGNMENT}")));
        }
        let address = pointer(buffer.address(offset)?)?;
        self.bound.insert(name.to_owned(), Bound { buffer: buffer.clone(), offset });
        Ok(Some(address))
    }

    /// Whether everything is bound to memory that is large enough for the dimensions as they are.
    fn check(&self) -> Result<(), DeviceError> {
        for (name, tensor) in self.io.iter().filter(|(_, tensor)| !tensor.on_host) {
            let bound = self.bound.get(name).ok_or_else(|| DeviceError::tensor(name, "it is not bound"))?;
            if let Some(alias) = &tensor.aliases {
                let same = self.bound.get(alias).is_some_and(|input| {
                    input.offset == bound.offset
                        && input.buffer.address(0).ok() == bound.buffer.address(0).ok()
                });
                if !same {
                    return Err(DeviceError::tensor(name, format!("it is not bound where {alias:?} is")));
                }
                continue;
            }
            let needed = match self.dims.get(name).or(Some(&tensor.dims)).and_then(|dims| elements(dims)) {
                Some(elements) => Some(elements),
                None if tensor.is_input => {
                    return Err(DeviceError::tensor(name, "its dimensions are not set"));
                }
                None => {
                    let dims =
                        said(&format!("getTensorShape({name:?})"), || self.context.tensor_shape(name))?;
                    usize::try_from(dims.nbDims).ok().and_then(|rank| elements(dims.d.get(..rank)?))
                }
            };
            let needed = needed.and_then(|elements| elements.checked_mul(tensor.dtype.size()));
            let held = bound.buffer.len().saturating_sub(bound.offset);
            if needed.is_none_or(|needed| needed > held) {
                let needed = needed.map_or("an unknown number of".to_owned(), |needed| needed.to_string());
                let what = format!("it needs {needed} bytes and is bound to {held}");
                return Err(DeviceError::tensor(name, what));
            }
        }
        Ok(())
    }
}

impl Execution for CudaExecution {
    type Buffer = CudaBuffer;

    fn set_input_shape(&mut self, input: &str, dims: &[i64]) -> Result<(), DeviceError> {
        if !self.io.contains_key(input) || self.dims.get(input).is_some_and(|set| set == dims) {
            return Ok(());
        }
        if dims.len() > 8 {
            return Err(DeviceError::tensor(input, format!("{} dimensions; TensorRT has 8", dims.len())));
        }
        self.dims.remove(input);
        let call = format!("setInputShape({input:?}, {dims:?})");
        said(&call, || self.context.set_input_shape(input, &Dims64::from_slice(dims)))?;
        self.dims.insert(input.to_owned(), dims.to_vec());
        Ok(())
    }

    fn set_shape_values(&mut self, input: &str, values: &[i64]) -> Result<(), DeviceError> {
        let Some(tensor) = self.io.get(input) else { return Ok(()) };
        let held = self.host_values.get_mut(input);
        let held = held.filter(|_| elements(&tensor.dims) == Some(values.len()));
        held.ok_or_else(|| {
            DeviceError::tensor(input, format!("it is no shape tensor of {} values", values.len()))
        })?
        .set(values);
        Ok(())
    }

    fn bind_input(&mut self, input: &str, buffer: &CudaBuffer, offset: usize) -> Result<(), DeviceError> {
        let Some(address) = self.keep(input, buffer, offset, true)? else { return Ok(()) };
        said(&format!("setInputTensorAddress({input:?})"), || {
            // SAFETY: device memory, aligned, that stays until the input is bound to another; `enqueue` checks that
            // it is large enough.
            unsafe { self.context.set_input_tensor_address(input, address) }
        })
    }

    fn bind_output(&mut self, output: &str, buffer: &CudaBuffer, offset: usize) -> Result<(), DeviceError> {
        let Some(address) = self.keep(output, buffer, offset, false)? else { return Ok(()) };
        said(&format!("setOutputTensorAddress({output:?})"), || {
            // SAFETY: as in `bind_input`.
            unsafe { self.context.set_output_tensor_address(output, address) }
        })
    }

    fn enqueue(&mut self) -> Result<(), DeviceError> {
        self.check()?;
        if !self.context.all_input_dimensions_specified() {
            return Err(DeviceError::Engine("not all dimensions of the inputs are set".to_owned()));
        }
        said("enqueueV3", || {
            // SAFETY: the stream is open and of the engine's device; `check` has seen that every tensor is bound to
            // memory that is large enough. What is bound stays alive until it is rebound, and is then freed in the
            // order of the stream; the host's values are changed only after the stream was synchronised.
            unsafe { self.context.enqueue_v3(self.stream.cu_stream().cast()) }
        })
    }
}

impl Drop for CudaExecution {
    fn drop(&mut self) {
        // A run that failed half-way may still use what is dropped next.
        if let Err(error) = self.stream.synchronize() {
            tracing::warn!(%error, "an execution was dropped while its device failed");
        }
    }
}

/// A device address as TensorRT takes it.
pub(super) fn pointer(address: u64) -> Result<*mut c_void, DeviceError> {
    let address = usize::try_from(address);
    let address =
        address.map_err(|_| DeviceError::Engine("an address of more bits than the host's".to_owned()))?;
    Ok(std::ptr::without_provenance_mut(address))
}

/// The product of dimensions that are all known.
fn elements(dims: &[i64]) -> Option<usize> {
    dims.iter().try_fold(1_usize, |product, &dim| product.checked_mul(usize::try_from(dim).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_values_are_aligned_as_tensorrt_asks() {
        assert_eq!(align_of::<Aligned>(), ALIGNMENT);
        let mut values = HostValues::new();
        let before = values.address();
        values.set(&[7, -1]);
        assert_eq!(before, values.address());
        assert!(before.addr().is_multiple_of(ALIGNMENT));
    }

    #[test]
    fn dimensions_multiply_only_when_all_are_known() {
        assert_eq!(elements(&[]), Some(1));
        assert_eq!(elements(&[2, 3, 0]), Some(0));
        assert_eq!(elements(&[2, -1]), None);
        assert_eq!(elements(&[i64::MAX, 4]), None);
    }
}
