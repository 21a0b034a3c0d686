//! What the device's thread owns: the device and the engines loaded onto it.

use std::collections::BTreeMap;

use crate::DeviceError;
use crate::device::Device;
use crate::executor::Executor;

/// A device and its engines. Fields are dropped in this order.
pub(crate) struct Host<D: Device> {
    engines: BTreeMap<u64, Loaded<D>>,
    device: D,
}

struct Loaded<D: Device> {
    executor: Executor<D>,
    /// Whether something began that did not end: a panic went through it.
    broken: bool,
}

impl<D: Device> Host<D> {
    pub(crate) fn new(device: D) -> Self {
        Self { engines: BTreeMap::new(), device }
    }

    /// Loads an engine under a number of its own.
    pub(crate) fn load(
        &mut self,
        engine: u64,
        load: impl FnOnce(&mut D) -> Result<Executor<D>, DeviceError>,
    ) -> Result<(), DeviceError> {
        let executor = load(&mut self.device)?;
        self.engines.insert(engine, Loaded { executor, broken: false });
        Ok(())
    }

    /// Unloads it.
    pub(crate) fn unload(&mut self, engine: u64) {
        self.engines.remove(&engine);
    }

    /// Does something with an engine.
    pub(crate) fn with<T>(
        &mut self,
        engine: u64,
        work: impl FnOnce(&mut Executor<D>, &mut D) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let loaded = self.engines.get_mut(&engine);
        let loaded = loaded.ok_or_else(|| DeviceError::Engine("the engine is not loaded".to_owned()))?;
        if loaded.broken {
            let what = "an earlier step of this engine panicked: load it again";
            return Err(DeviceError::Engine(what.to_owned()));
        }
        loaded.broken = true;
        let result = work(&mut loaded.executor, &mut self.device);
        loaded.broken = false;
        result
    }
}
