//! An engine on a GPU.

#![expect(unsafe_code, reason = "TensorRT is given streams and addresses")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use memmap2::Mmap;
use roundhouse_tensorrt_library::flavour::{self, Kernels};
use roundhouse_tensorrt_library::{TensorRtError, process_logger, raw};
use roundhouse_tensorrt_network::{DYNAMIC, DataType, Network};
use trtx::{
    CudaEngine, ExecutionContextAllocationStrategy, Runtime, RuntimeConfig, TensorIOMode, TensorLocation,
};

use super::execution::CudaExecution;
use super::kernels::KernelCache;
use super::memory::{CudaBuffer, Memory, refused};
use super::refit::refit;
use super::said::{said, said_yes};
use crate::DeviceError;
use crate::device::{Engine, EngineSource, ExecutionOptions};

/// A deserialised engine and the runtime that it is of. Fields are dropped in this order: destroying the runtime first
/// is undefined. Executions hold on to it, so that it goes after the last of them.
pub(super) struct Loaded {
    engine: RefCell<CudaEngine<'static>>,
    _runtime: Runtime<'static>,
}

/// An input or output as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IoTensor {
    pub(super) dtype: DataType,
    /// −1 where they change.
    pub(super) dims: Vec<i64>,
    pub(super) is_input: bool,
    /// Whether it is a shape tensor, whose address is the host's.
    pub(super) on_host: bool,
    /// The input that it shares its memory with.
    pub(super) aliases: Option<String>,
}

/// The inputs and outputs of an engine, by name.
pub(super) type IoTensors = BTreeMap<String, IoTensor>;

/// An engine on a GPU. Fields are dropped in this order.
pub struct LoadedEngine {
    kernels: Option<KernelCache>,
    kernel_path: Option<std::path::PathBuf>,
    loaded: Rc<Loaded>,
    io: Rc<IoTensors>,
    streams_weights: bool,
    workspace: Option<CudaBuffer>,
    memory: Rc<RefCell<Memory>>,
}

impl LoadedEngine {
    /// Deserialises a plan, gives it its weights where it has none, and checks it against its network.
    pub(super) fn load(memory: &Rc<RefCell<Memory>>, source: &EngineSource<'_>) -> Result<Self, DeviceError> {
        let stream = Arc::clone(memory.borrow().stream());
        let logger = process_logger().map_err(|error| DeviceError::Engine(error.to_string()))?;
        // The CUDA context is current: without CUDA this would give a pointer to nothing.
        let mut runtime = said("createInferRuntime", || Runtime::new(logger))?;
        let plan = map(source.plan)?;
        said("getEngineValidity", || flavour::check_plan(&runtime, &plan))?;
        let mut engine = said("deserializeCudaEngine", || runtime.deserialize_cuda_engine(&plan))?;
        drop(plan);

        let io = io_tensors(&engine)?;
        check_io(&io, source.network)?;
        let asked = source.options.tensorrt.is_some_and(|options| options.weight_streaming);
        let streams_weights = asked && stream_weights(&mut engine)?;
        if let Some(weights) = source.weights {
            refit(&engine, source.network, weights, &stream)?;
        }
        Ok(Self {
            kernels: None,
            kernel_path: source.kernel_cache.clone(),
            loaded: Rc::new(Loaded { engine: RefCell::new(engine), _runtime: runtime }),
            io: Rc::new(io),
            streams_weights,
            workspace: None,
            memory: Rc::clone(memory),
        })
    }

    /// The configuration of an execution, with the engine's compiled kernels.
    fn config(&mut self, options: ExecutionOptions) -> Result<RuntimeConfig<'static>, DeviceError> {
        let mut config =
            said("createRuntimeConfig", || self.loaded.engine.borrow_mut().create_runtime_config())?;
        config.set_execution_context_allocation_strategy(ExecutionContextAllocationStrategy::kUSER_MANAGED);
        // What streams its weights cannot be captured.
        let capture = options.repeats && !self.streams_weights;
        said("setCudaGraphStrategy", || flavour::capture_graphs(&mut config, capture))?;
        if self.kernels.is_none() {
            let kernels = said("createRuntimeCache", || Kernels::new(&config))?;
            if let (Some(kernels), Some(path)) = (kernels, self.kernel_path.take()) {
                self.kernels = Some(KernelCache::open(kernels, path));
            }
        }
        if let Some(cache) = &self.kernels {
            said("setRuntimeCache", || cache.attach(&mut config))?;
        }
        Ok(config)
    }
}

impl Engine for LoadedEngine {
    type Buffer = CudaBuffer;
    type Execution = CudaExecution;

    fn executions(&mut self, options: &[ExecutionOptions]) -> Result<Vec<CudaExecution>, DeviceError> {
        // They never run at the same time, so that they share the memory of activations: the largest that one needs.
        let mut workspace_bytes = 0;
        for options in options {
            let profile = profile_index(*options)?;
            let bytes = said("getDeviceMemorySizeForProfileV2", || {
                raw::engine::activation_bytes(&self.loaded.engine.borrow(), profile)
            })?;
            workspace_bytes = workspace_bytes.max(usize::try_from(bytes).unwrap_or(0));
        }
        let workspace = self.memory.borrow().allocate(workspace_bytes)?;
        self.workspace = Some(workspace.clone());
        let stream = Arc::clone(self.memory.borrow().stream());
        let mut executions = Vec::new();
        for options in options {
            let config = Rc::new(self.config(*options)?);
            let mut context = said("createExecutionContext", || {
                self.loaded.engine.borrow_mut().create_execution_context_with_config(config)
            })?;
            let profile = profile_index(*options)?;
            said_yes("setOptimizationProfileAsync", || {
                // SAFETY: the stream is open, and is the one that the execution runs on.
                unsafe { context.set_optimization_profile_async(profile, stream.cu_stream().cast()) }
            })?;
            let address = super::execution::pointer(workspace.address(0)?)?;
            let size = i64::try_from(workspace.len()).unwrap_or(i64::MAX);
            // SAFETY: the memory is as large as the largest profile of the executions asks for and aligned; the
            // execution holds on to it, and everything that uses it runs in the order of one stream.
            unsafe { context.set_device_memory_v2(address, size) };
            let parts = (Rc::clone(&self.loaded), Rc::clone(&self.io), workspace.clone());
            executions.push(CudaExecution::new(context, parts, Arc::clone(&stream))?);
        }
        stream.synchronize().map_err(|error| refused("cuStreamSynchronize", &error))?;
        Ok(executions)
    }

    fn workspace_bytes(&self) -> Option<u64> {
        self.workspace.as_ref().map(|workspace| workspace.len() as u64)
    }

    fn keep_kernels(&mut self) {
        if let Some(kernels) = &mut self.kernels {
            kernels.keep();
        }
    }
}

fn profile_index(options: ExecutionOptions) -> Result<i32, DeviceError> {
    i32::try_from(options.profile)
        .map_err(|_| DeviceError::Engine(format!("there is no profile {}", options.profile)))
}

/// Maps a plan. TensorRT copies what it needs.
fn map(path: &Path) -> Result<Mmap, DeviceError> {
    let broken = |error: std::io::Error| DeviceError::Engine(format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(broken)?;
    // SAFETY: the file is a content-addressed blob of a local store: it is written under another name, renamed into
    // place when it is complete, and never changed afterwards. Removing it leaves the mapping alive.
    unsafe { Mmap::map(&file) }.map_err(broken)
}

/// Lets TensorRT stream as many weights as it would choose itself, before there is any execution. Whether it does.
fn stream_weights(engine: &mut CudaEngine<'static>) -> Result<bool, DeviceError> {
    let streamable = said("getStreamableWeightsSize", || raw::engine::streamable_weight_bytes(engine))?;
    let budget = said("getWeightStreamingAutomaticBudget", || raw::engine::automatic_weight_budget(engine))?;
    if streamable <= 0 || budget >= streamable {
        return Ok(false);
    }
    said("setWeightStreamingBudgetV2", || match raw::engine::set_weight_budget(engine, budget.max(0)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(TensorRtError::Misuse { what: format!("a budget of {budget} bytes was refused") }),
        Err(error) => Err(error),
    })?;
    tracing::info!(budget, streamable, "weights are streamed");
    Ok(true)
}

/// The inputs and outputs as TensorRT says they are.
fn io_tensors(engine: &CudaEngine<'_>) -> Result<IoTensors, DeviceError> {
    let count = said("getNbIOTensors", || engine.nb_io_tensors())?;
    let mut tensors = IoTensors::new();
    for index in 0..count {
        let name = said("getIOTensorName", || engine.io_tensor_name(index))?;
        let dtype = data_type(said("getTensorDataType", || engine.tensor_data_type(&name))?);
        let dtype =
            dtype.ok_or_else(|| DeviceError::tensor(&name, "its dtype is none of those used here"))?;
        let is_input = said("getTensorIOMode", || engine.tensor_io_mode(&name))? == TensorIOMode::kINPUT;
        let aliases = match is_input {
            true => None,
            false => said("getAliasedInputTensor", || raw::engine::aliased_input(engine, &name))?,
        };
        let tensor = IoTensor {
            dtype,
            dims: said("getTensorShape", || engine.tensor_shape(&name))?,
            is_input,
            on_host: said("getTensorLocation", || engine.tensor_location(&name))? == TensorLocation::kHOST,
            aliases,
        };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// Whether an engine's inputs and outputs are those of its network. An input that nothing reads may be missing.
fn check_io(found: &IoTensors, network: &Network) -> Result<(), DeviceError> {
    let mut expected = IoTensors::new();
    for &id in network.inputs() {
        let tensor = network.tensor(id);
        let on_host = network.is_shape_tensor(&tensor.name);
        let (dtype, dims) = (tensor.dtype, tensor.dims.clone());
        expected
            .insert(tensor.name.clone(), IoTensor { dtype, dims, is_input: true, on_host, aliases: None });
    }
    for output in network.outputs() {
        let tensor = network.tensor(output.tensor);
        let (dtype, dims, aliases) = (tensor.dtype, tensor.dims.clone(), output.aliases.clone());
        expected
            .insert(tensor.name.clone(), IoTensor { dtype, dims, is_input: false, on_host: false, aliases });
    }
    for (name, tensor) in found {
        match expected.remove(name) {
            Some(expected) if fits(tensor, &expected) => {}
            Some(expected) => {
                return Err(DeviceError::tensor(
                    name,
                    format!("the plan has {tensor:?}, the network {expected:?}"),
                ));
            }
            None => return Err(DeviceError::tensor(name, "the plan has it, the network has not")),
        }
    }
    match expected.iter().find(|(_, tensor)| !tensor.is_input) {
        Some((name, _)) => Err(DeviceError::tensor(name, "the network has it, the plan has not")),
        None => Ok(()),
    }
}

/// Whether a tensor is what the network says; either may know a dimension that the other does not.
fn fits(found: &IoTensor, expected: &IoTensor) -> bool {
    let same = |(a, b): (&i64, &i64)| a == b || *a == DYNAMIC || *b == DYNAMIC;
    let dims = found.dims.len() == expected.dims.len() && found.dims.iter().zip(&expected.dims).all(same);
    dims && IoTensor { dims: expected.dims.clone(), ..found.clone() } == *expected
}

/// TensorRT's dtype as the network's; `None` for those that networks here never use.
pub(super) fn data_type(dtype: trtx::DataType) -> Option<DataType> {
    Some(match dtype {
        trtx::DataType::kFLOAT => DataType::Float,
        trtx::DataType::kHALF => DataType::Half,
        trtx::DataType::kBF16 => DataType::Bf16,
        trtx::DataType::kINT32 => DataType::Int32,
        trtx::DataType::kINT64 => DataType::Int64,
        trtx::DataType::kBOOL => DataType::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
