//! Gives a plan without weights its weights, from the weights file.

#![expect(unsafe_code, reason = "TensorRT is given the addresses of weights")]

use std::collections::BTreeMap;

use cudarc::driver::CudaStream;
use roundhouse_tensorrt_library::process_logger;
use roundhouse_tensorrt_network::{Constant, DataType, LayerKind, Network};
use roundhouse_weights::MappedWeights;
use trtx::trtx_sys::nvinfer1;
use trtx::{CudaEngine, Refitter, TensorLocation};

use super::engine::data_type;
use super::memory::refused;
use super::said::{said, said_yes};
use crate::DeviceError;

/// Refits every weight that the engine lacks, and waits for it. The file stays mapped that long.
pub(super) fn refit(
    engine: &CudaEngine<'_>,
    network: &Network,
    weights: &MappedWeights,
    stream: &CudaStream,
) -> Result<(), DeviceError> {
    let constants = constants(network);
    let logger = process_logger().map_err(|error| DeviceError::Engine(error.to_string()))?;
    let mut refitter = said("createInferRefitter", || Refitter::new(engine, logger))?;
    // One more than there can be, so that a list that was cut is seen.
    let most = i32::try_from(constants.len().saturating_add(1)).unwrap_or(i32::MAX);
    let missing = said("getMissingWeights", || refitter.missing_weights(most))?;
    if missing.len() > constants.len() {
        let (found, expected) = (missing.len(), constants.len());
        return Err(DeviceError::Engine(format!(
            "the plan lacks {found} or more weights, the network has {expected}"
        )));
    }
    for name in &missing {
        let constant = constants.get(name.as_str());
        let constant =
            constant.ok_or_else(|| tensor(name, "the plan lacks it, and the network has no such weight"))?;
        let prototype = refitter.weights_prototype(name);
        let expected = (data_type(prototype.type_.clone().into()), prototype.count);
        let bytes = checked_bytes(name, constant, expected, weights)?;
        let values = nvinfer1::Weights {
            type_: prototype.type_.clone(),
            values: bytes.as_ptr().cast(),
            count: prototype.count,
        };
        said(&format!("setNamedWeights({name:?})"), || {
            // SAFETY: `checked_bytes` has compared dtype and count with TensorRT's own and the length with both; the
            // file aligns elements to their size, and is mapped until the stream has been synchronised below.
            unsafe { refitter.set_named_weights_with_location(name, values, TensorLocation::kHOST.into()) }
        })?;
    }
    said("refitCudaEngineAsync", || {
        // SAFETY: the stream is open, of the device that the engine is on, and no work of the engine is on another.
        unsafe { refitter.refit_cuda_engine_async(stream.cu_stream().cast()) }
    })?;
    stream.synchronize().map_err(|error| refused("cuStreamSynchronize", &error))?;
    let left = said("getMissingWeights", || refitter.missing_weights(1))?;
    said_yes("refitCudaEngineAsync", || left.is_empty())
}

/// The constants that are weights, by name.
fn constants(network: &Network) -> BTreeMap<&str, &Constant> {
    let constants = network.layers().iter().filter_map(|layer| match &layer.kind {
        LayerKind::Constant(constant) => Some((constant.weight()?, constant)),
        _ => None,
    });
    constants.collect()
}

/// The bytes of a weight, which are as many elements of the dtype as the plan, the network and the file agree on.
fn checked_bytes<'a>(
    name: &str,
    constant: &Constant,
    (dtype, count): (Option<DataType>, i64),
    weights: &'a MappedWeights,
) -> Result<&'a [u8], DeviceError> {
    if dtype != Some(constant.dtype) || usize::try_from(count) != Ok(constant.len()) {
        let dtype = dtype.map_or("another dtype", DataType::name);
        let (expected, elements) = (constant.dtype, constant.len());
        return Err(tensor(
            name,
            format!("the plan has {count} of {dtype}, the network {elements} of {expected}"),
        ));
    }
    let found = weights.tensor(name).ok_or_else(|| tensor(name, "the weights file lacks it"))?;
    let bytes = weights.bytes(found);
    if DataType::from(found.dtype) != constant.dtype || bytes.len() != constant.len() * constant.dtype.size()
    {
        let what = format!(
            "the weights file has {} bytes of {}, the network {} of {}",
            bytes.len(),
            found.dtype,
            constant.len() * constant.dtype.size(),
            constant.dtype
        );
        return Err(tensor(name, what));
    }
    Ok(bytes)
}

fn tensor(name: &str, what: impl Into<String>) -> DeviceError {
    DeviceError::tensor(name, what)
}
