//! Loading engines: each once, whoever asks for it, and within the memory for engines.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use roundhouse_engine::{EngineKey, Manifest};
use roundhouse_store::NoProgress;
use tokio::sync::watch;

use super::{Engines, LoadError, LoadedEngine};
use crate::scheduler::{PaceLimits, PolicyLimits, SchedulerConfig, StepLimits};

/// Bytes of the logits of a step's prompt tokens: as many as a chunk of a few hundred has in a usual vocabulary.
const SCORED_LOGITS_BYTES: usize = 64 << 20;

/// The wait that weighs as much as one more of priority.
const AGEING: Duration = Duration::from_secs(1);

/// How long a load waits for an engine to become idle: requests hold one for a moment even where nothing runs in it.
const IDLE_PATIENCE: Duration = Duration::from_secs(1);

/// Between two looks whether one is idle.
const IDLE_POLL: Duration = Duration::from_millis(10);

/// A load that runs; its result comes to all who wait.
pub(super) type Pending = watch::Receiver<Option<Result<Loaded, Arc<LoadError>>>>;

/// A load that is done.
#[derive(Clone)]
pub struct Loaded {
    /// The engine.
    pub engine: Arc<LoadedEngine>,
    /// Wall time.
    pub elapsed: Duration,
    /// Bytes fetched from the store.
    pub downloaded_bytes: u64,
}

impl Engines {
    /// Loads an engine, from the local cache where it has it. Who asks meanwhile for the same engine gets the result of the
    /// same load, which goes on when nobody waits for it any more.
    ///
    /// # Errors
    /// [`LoadError`]; nothing of a failed load stays in memory.
    pub async fn load(self: &Arc<Self>, key: &EngineKey) -> Result<Loaded, Arc<LoadError>> {
        let started = Instant::now();
        if let Some(engine) = self.get(key) {
            return Ok(Loaded { engine, elapsed: started.elapsed(), downloaded_bytes: 0 });
        }
        let mut pending = {
            let mut all = self.pending.lock();
            all.entry(key.clone()).or_insert_with(|| self.spawn_load(key.clone())).clone()
        };
        let result = match pending.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_gone) => None,
        };
        result.unwrap_or_else(|| Err(Arc::new(LoadError::Panicked("the load was given up".to_owned()))))
    }

    fn spawn_load(self: &Arc<Self>, key: EngineKey) -> Pending {
        let (sender, pending) = watch::channel(None);
        let engines = Arc::clone(self);
        tokio::spawn(async move {
            let result = engines.load_alone(&key).await.map_err(Arc::new);
            engines.shared.metrics.note_load(result.as_ref().map(|loaded| loaded.elapsed).map_err(drop));
            if let Err(error) = &result {
                tracing::warn!(%key, %error, "an engine could not be loaded");
            }
            // Who asks from here on finds the engine, or begins another load.
            engines.pending.lock().remove(&key);
            sender.send_replace(Some(result));
        });
        pending
    }

    async fn load_alone(&self, key: &EngineKey) -> Result<Loaded, LoadError> {
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
        let plan = &manifest.memory_plan;
        self.make_room(plan.weight_bytes.saturating_add(plan.workspace_bytes)).await?;
        let config = self.scheduler_config(&manifest);
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
        let mut loaded = self.loaded.write();
        if self.stopped.load(Ordering::Acquire) {
            drop(loaded);
            free(vec![engine]).await;
            return Err(LoadError::Stopped);
        }
        loaded.push(Arc::clone(&engine));
        Ok(Loaded { engine, elapsed, downloaded_bytes })
    }

    /// Unloads idle engines until `wanted` bytes fit the memory for engines. Their sessions stay, without caches.
    async fn make_room(&self, wanted: u64) -> Result<(), LoadError> {
        let start = Instant::now();
        let idle = loop {
            match self.take_idle(wanted) {
                Err(LoadError::Memory { never: false, .. }) if start.elapsed() < IDLE_PATIENCE => {
                    tokio::time::sleep(IDLE_POLL).await;
                }
                taken => break taken?,
            }
        };
        for engine in &idle {
            let key = &engine.manifest().key;
            tracing::info!(%key, bytes = engine.bytes(), "engine unloaded to make room for another one");
            self.shared.sessions.drop_caches_of(key);
        }
        self.shared.metrics.note_evictions(idle.len() as u64);
        free(idle).await;
        Ok(())
    }

    fn scheduler_config(&self, manifest: &Manifest) -> SchedulerConfig {
        SchedulerConfig {
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
        }
    }
}

/// Frees engines, each of which waits for its scheduler's thread.
async fn free(engines: Vec<Arc<LoadedEngine>>) {
    if let Err(error) = tokio::task::spawn_blocking(move || drop(engines)).await {
        tracing::error!(%error, "unloading ended abnormally");
    }
}

/// Prompt tokens of one step that may have logits, of a vocabulary of this size.
fn max_scored_tokens(vocab_size: u32) -> usize {
    let row = (vocab_size as usize).max(1) * size_of::<f32>();
    (SCORED_LOGITS_BYTES / row).max(1)
}
