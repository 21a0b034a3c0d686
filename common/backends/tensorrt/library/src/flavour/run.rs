//! What differs between the flavours when engines run.

use trtx::{Runtime, RuntimeConfig};

/// What a plan's header says of whether it fits this machine, before it is loaded.
///
/// # Errors
/// What does not fit.
#[cfg(not(feature = "enterprise"))]
pub fn check_plan(runtime: &Runtime<'_>, plan: &[u8]) -> Result<(), String> {
    let needed = runtime.engine_header_size();
    if plan.len() < needed {
        return Err(format!("the plan has {} bytes, its header alone {needed}", plan.len()));
    }
    match runtime.engine_validity(plan) {
        Ok((trtx::EngineValidity::kINVALID, reasons)) => {
            Err(format!("the plan cannot run here: {reasons:?}"))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// What a plan's header says of whether it fits this machine: only loading it tells.
///
/// # Errors
/// For an empty plan.
#[cfg(feature = "enterprise")]
pub fn check_plan(_runtime: &Runtime<'_>, plan: &[u8]) -> Result<(), String> {
    if plan.is_empty() { Err("the plan is empty".to_owned()) } else { Ok(()) }
}

/// Asks for an execution that captures each shape's run as one CUDA graph, or for one that does not; without a
/// strategy to choose, it does not.
///
/// # Errors
/// When TensorRT refuses.
#[cfg(not(feature = "enterprise"))]
pub fn capture_graphs(config: &mut RuntimeConfig<'_>, capture: bool) -> trtx::Result<()> {
    use trtx::CudaGraphStrategy::{kDISABLED, kWHOLE_GRAPH_CAPTURE};

    config.set_cuda_graph_strategy(if capture { kWHOLE_GRAPH_CAPTURE } else { kDISABLED })
}

/// Asks for an execution that captures CUDA graphs: there is no such strategy, and none is captured.
///
/// # Errors
/// None.
#[cfg(feature = "enterprise")]
pub fn capture_graphs(_config: &mut RuntimeConfig<'_>, _capture: bool) -> trtx::Result<()> {
    Ok(())
}

/// The kernels that are finished where an engine is loaded (`IRuntimeCache`). Cheap to clone: all clones are one.
#[cfg(not(feature = "enterprise"))]
#[derive(Clone)]
pub struct Kernels(std::sync::Arc<trtx::RuntimeCache>);

#[cfg(not(feature = "enterprise"))]
impl Kernels {
    /// Empty ones.
    ///
    /// # Errors
    /// When TensorRT refuses.
    pub fn new(config: &RuntimeConfig<'_>) -> trtx::Result<Option<Self>> {
        Ok(Some(Self(std::sync::Arc::new(config.create_runtime_cache()?))))
    }

    /// Makes executions of this configuration use and add to them.
    ///
    /// # Errors
    /// When TensorRT refuses.
    pub fn attach(&self, config: &mut RuntimeConfig<'_>) -> trtx::Result<()> {
        config.set_runtime_cache(std::sync::Arc::clone(&self.0))
    }

    /// Takes up what [`Kernels::save`] gave. Whether TensorRT accepted it: it does for the same version, GPU and system,
    /// and a driver that is not older.
    #[must_use]
    pub fn restore(&self, bytes: &[u8]) -> bool {
        self.0.deserialize(bytes).is_ok()
    }

    /// All kernels so far; `None` when TensorRT refuses.
    #[must_use]
    pub fn save(&self) -> Option<Vec<u8>> {
        self.0.serialize().ok().map(|bytes| bytes.to_vec())
    }
}

/// The kernels that are finished where an engine is loaded: none, plans have all of theirs.
#[cfg(feature = "enterprise")]
#[derive(Clone)]
pub struct Kernels(std::convert::Infallible);

#[cfg(feature = "enterprise")]
impl Kernels {
    /// There are none.
    ///
    /// # Errors
    /// None.
    pub fn new(_config: &RuntimeConfig<'_>) -> trtx::Result<Option<Self>> {
        Ok(None)
    }

    /// Makes executions of this configuration use and add to them.
    ///
    /// # Errors
    /// None.
    pub fn attach(&self, _config: &mut RuntimeConfig<'_>) -> trtx::Result<()> {
        match self.0 {}
    }

    /// Takes up what [`Kernels::save`] gave.
    #[must_use]
    pub fn restore(&self, _bytes: &[u8]) -> bool {
        match self.0 {}
    }

    /// All kernels so far.
    #[must_use]
    pub fn save(&self) -> Option<Vec<u8>> {
        match self.0 {}
    }
}
