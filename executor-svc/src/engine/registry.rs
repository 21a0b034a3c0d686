//! The engines of an executor: loaded, found by name, unloaded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use roundhouse_engine::EngineKey;
use roundhouse_store::{EngineStore, LocalCache, NoProgress};

use super::{LoadError, LoadedEngine, SharedParts};
use crate::ExecutorConfig;
use crate::backends::Backends;
use crate::scheduler::{PaceLimits, PolicyLimits, SchedulerConfig, StepLimits};

/// Bytes of the logits of a step's prompt tokens: as many as a chunk of a few hundred has in a usual vocabulary.
const SCORED_LOGITS_BYTES: usize = 64 << 20;

/// The wait that weighs as much as one more of priority.
const AGEING: Duration = Duration::from_secs(1);

/// The engines of an executor.
pub struct Engines {
    store: EngineStore,
    cache: LocalCache,
    backends: Backends,
    shared: SharedParts,
    config: ExecutorConfig,
    /// In the order of their loading.
    loaded: RwLock<Vec<Arc<LoadedEngine>>>,
    /// One load at a time: a second request for an engine that is being loaded finds it.
    loading: tokio::sync::Mutex<()>,
}

/// A load that is done.
pub struct Loaded {
    /// The engine.
    pub engine: Arc<LoadedEngine>,
    /// Wall time.
    pub elapsed: Duration,
    /// Bytes fetched from the store.
    pub downloaded_bytes: u64,
}

/// Why a name finds no engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// None has it.
    #[error("no loaded engine is {name:?}: load it first; loaded are: {loaded}")]
    NotLoaded {
        /// The name given.
        name: String,
        /// The loaded ones.
        loaded: String,
    },
    /// No name was given and there is not exactly one engine.
    #[error("the request names no engine and {count} are loaded: name one")]
    Unnamed {
        /// How many are loaded.
        count: usize,
    },
    /// Several engines of this model.
    #[error("{count} loaded engines are of model {name:?}: name one by its key")]
    Ambiguous {
        /// The name given.
        name: String,
        /// How many have it.
        count: usize,
    },
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
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// What can run here.
    #[must_use]
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Loads an engine, from the local cache where it has it.
    ///
    /// # Errors
    /// [`LoadError`]; nothing of a failed load stays in memory.
    pub async fn load(&self, key: &EngineKey) -> Result<Loaded, LoadError> {
        let started = Instant::now();
        let _loading = self.loading.lock().await;
        if let Some(engine) = self.get(key) {
            return Ok(Loaded { engine, elapsed: started.elapsed(), downloaded_bytes: 0 });
        }
        let manifest = self.store.get_manifest(key).await?;
        // Before anything is downloaded.
        let runtime = self.backends.runtime_for(&manifest)?;
        let pulled = self.cache.pull(&self.store, &manifest, &NoProgress).await?;
        let downloaded_bytes = pulled.downloaded_bytes();
        let config = SchedulerConfig {
            policy: PolicyLimits {
                step: StepLimits {
                    max_sequences: manifest.options.max_batch_size as usize,
                    max_tokens: self.config.step_token_budget,
                    max_scored_tokens: max_scored_tokens(manifest.info.vocab_size),
                },
                pace: PaceLimits { of_one_token: self.config.prompt_slowdown, ..PaceLimits::default() },
                queue_timeout: self.config.queue_timeout,
                ageing: AGEING,
            },
            max_generations: self.config.max_generations,
            stall_timeout: self.config.stall_timeout,
        };
        let shared = self.shared.clone();
        let loading =
            tokio::task::spawn_blocking(move || LoadedEngine::load(pulled, &*runtime, shared, config));
        let engine = match loading.await {
            Ok(engine) => Arc::new(engine?),
            Err(error) => return Err(LoadError::Panicked(error.to_string())),
        };
        let plan = engine.memory_plan();
        let elapsed = started.elapsed();
        tracing::info!(
            %key,
            model = manifest.model,
            ?elapsed,
            weight_bytes = plan.weight_bytes,
            kv_bytes_per_token = plan.kv_bytes_per_token,
            workspace_bytes = plan.workspace_bytes,
            "engine loaded"
        );
        self.loaded.write().push(Arc::clone(&engine));
        Ok(Loaded { engine, elapsed, downloaded_bytes })
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

    /// Ends every engine's generations and frees the engines. Blocks as [`Engines::unload`].
    pub fn unload_all(&self) {
        let all = std::mem::take(&mut *self.loaded.write());
        drop(all);
    }

    /// All of them, in the order of their loading.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<LoadedEngine>> {
        self.loaded.read().clone()
    }

    /// The engine of this key, if loaded.
    #[must_use]
    pub fn get(&self, key: &EngineKey) -> Option<Arc<LoadedEngine>> {
        self.loaded.read().iter().find(|engine| engine.manifest().key == *key).map(Arc::clone)
    }

    /// The engine of this key or model; without a name the only one.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn find(&self, name: Option<&str>) -> Result<Arc<LoadedEngine>, FindError> {
        let loaded = self.loaded.read();
        let Some(name) = name else {
            return match &loaded[..] {
                [only] => Ok(Arc::clone(only)),
                several => Err(FindError::Unnamed { count: several.len() }),
            };
        };
        let matching: Vec<_> = loaded
            .iter()
            .filter(|engine| engine.manifest().key.as_str() == name || engine.manifest().model == name)
            .collect();
        match &matching[..] {
            [one] => Ok(Arc::clone(one)),
            [] => Err(FindError::NotLoaded {
                name: name.to_owned(),
                loaded: loaded
                    .iter()
                    .map(|engine| format!("{} ({})", engine.manifest().key, engine.manifest().model))
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
            several => Err(FindError::Ambiguous { name: name.to_owned(), count: several.len() }),
        }
    }
}

/// Prompt tokens of one step that may have logits, of a vocabulary of this size.
fn max_scored_tokens(vocab_size: u32) -> usize {
    let row = (vocab_size as usize).max(1) * size_of::<f32>();
    (SCORED_LOGITS_BYTES / row).max(1)
}
