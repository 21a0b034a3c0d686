//! The engines of an executor: which are loaded, and what they take.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use roundhouse_engine::EngineKey;
use roundhouse_store::{EngineStore, LocalCache};

use super::load::Pending;
use super::room::{NoRoom, Resident, make_room};
use super::{LoadError, LoadedEngine, SharedParts};
use crate::ExecutorConfig;
use crate::backends::Backends;

/// The engines of an executor.
pub struct Engines {
    pub(super) store: EngineStore,
    pub(super) cache: LocalCache,
    pub(super) backends: Backends,
    pub(super) shared: SharedParts,
    pub(super) config: ExecutorConfig,
    /// In the order of their loading.
    pub(super) loaded: RwLock<Vec<Arc<LoadedEngine>>>,
    /// The loads that run, each shared by all who ask for its engine.
    pub(super) pending: Mutex<HashMap<EngineKey, Pending>>,
    /// One load at a time: each sees what the ones before it take.
    pub(super) loading: tokio::sync::Mutex<()>,
    /// Set when the service stops: nothing is loaded any more.
    pub(super) stopped: AtomicBool,
}

impl Engines {
    /// No engines yet.
    #[must_use]
    pub fn new(
        store: EngineStore,
        cache: LocalCache,
        backends: Backends,
        shared: SharedParts,
        config: &ExecutorConfig,
    ) -> Self {
        Self {
            store,
            cache,
            backends,
            shared,
            config: config.clone(),
            loaded: RwLock::default(),
            pending: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            stopped: AtomicBool::new(false),
        }
    }

    /// What can run here.
    #[must_use]
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Ends an engine's generations and frees it. Blocks until the step that runs is over. False when it was not
    /// loaded.
    pub fn unload(&self, key: &EngineKey) -> bool {
        let mut loaded = self.loaded.write();
        let found = loaded.iter().position(|engine| engine.manifest().key == *key);
        let removed = found.map(|index| loaded.remove(index));
        drop(loaded);
        removed.is_some()
    }

    /// Ends every engine's generations, frees the engines and loads none any more. Blocks as [`Engines::unload`].
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let all = std::mem::take(&mut *self.loaded.write());
        drop(all);
    }

    /// All of them, in the order of their loading.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<LoadedEngine>> {
        self.loaded.read().clone()
    }

    /// Bytes of all loaded engines: weights and workspaces, as planned and, where more was seen, as seen.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.loaded.read().iter().map(|engine| engine.bytes()).fold(0, u64::saturating_add)
    }

    /// Takes idle engines, the least recently used first, out of the list until `wanted` bytes fit. Whoever drops them
    /// frees them, which blocks.
    pub(super) fn take_idle(&self, wanted: u64) -> Result<Vec<Arc<LoadedEngine>>, LoadError> {
        let Some(total) = self.config.engine_memory_bytes else { return Ok(Vec::new()) };
        let mut loaded = self.loaded.write();
        // Who uses an engine has it from this list, and so before it was locked.
        let idle_since = |engine: &Arc<LoadedEngine>| {
            let load = engine.scheduler().load();
            let idle = Arc::strong_count(engine) == 1 && load.running + load.waiting == 0;
            idle.then(|| engine.last_used())
        };
        let residents: Vec<Resident> = loaded
            .iter()
            .map(|engine| Resident { bytes: engine.bytes(), idle_since: idle_since(engine) })
            .collect();
        let mut chosen = make_room(&residents, wanted, total).map_err(|why| LoadError::Memory {
            wanted,
            used: residents.iter().map(|resident| resident.bytes).sum(),
            total,
            never: why == NoRoom::Never,
        })?;
        chosen.sort_unstable();
        Ok(chosen.into_iter().rev().map(|index| loaded.remove(index)).collect())
    }
}
