//! What `trtx` does not wrap of `ICudaEngine`.

use std::ffi::{CStr, CString};

use trtx::CudaEngine;

use super::Inner as _;
use crate::TensorRtError;

fn c_name(name: &str) -> Result<CString, TensorRtError> {
    CString::new(name).map_err(|_| TensorRtError::misuse(format!("the tensor name {name:?} has a NUL")))
}

/// The input that an output must share its memory with, if any.
///
/// # Errors
/// [`TensorRtError::Binding`], [`TensorRtError::Misuse`] for a name with a NUL.
pub fn aliased_input(engine: &CudaEngine<'_>, output: &str) -> Result<Option<String>, TensorRtError> {
    let (engine, output) = (engine.object()?, c_name(output)?);
    // SAFETY: `output` is a C string; TensorRT reads it during the call only.
    let input = unsafe { engine.getAliasedInputTensor(output.as_ptr()) };
    if input.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, so a C string of the engine's, which lives as long as the engine that is borrowed here.
    Ok(Some(unsafe { CStr::from_ptr(input) }.to_string_lossy().into_owned()))
}

/// Bytes of GPU memory that an execution context needs for activations in a profile.
///
/// # Errors
/// [`TensorRtError::Binding`].
pub fn activation_bytes(engine: &CudaEngine<'_>, profile: i32) -> Result<i64, TensorRtError> {
    Ok(engine.object()?.getDeviceMemorySizeForProfileV2(profile))
}

/// Bytes of the weights that may stay in host memory while the engine runs; 0 without weight streaming.
///
/// # Errors
/// [`TensorRtError::Binding`].
pub fn streamable_weight_bytes(engine: &CudaEngine<'_>) -> Result<i64, TensorRtError> {
    Ok(engine.object()?.getStreamableWeightsSize())
}

/// The budget that TensorRT would choose for weight streaming, in bytes of GPU memory.
///
/// # Errors
/// [`TensorRtError::Binding`].
pub fn automatic_weight_budget(engine: &CudaEngine<'_>) -> Result<i64, TensorRtError> {
    Ok(engine.object()?.getWeightStreamingAutomaticBudget())
}

/// Sets how many bytes of GPU memory streamable weights may take, before any execution context exists. `false` when
/// TensorRT refuses.
///
/// # Errors
/// [`TensorRtError::Binding`].
pub fn set_weight_budget(engine: &mut CudaEngine<'_>, bytes: i64) -> Result<bool, TensorRtError> {
    Ok(engine.object_mut()?.setWeightStreamingBudgetV2(bytes))
}
