//! A backend whose steps wait at a gate: for what happens while a step runs, when one does not end, or when the device is lost.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use roundhouse_backend::{BackendError, Cache, CacheGrowth, ComponentModel, Model, Runtime, Sequence};
use roundhouse_engine::{BackendKind, Component, EngineFiles, Manifest, MemoryPlan};
use tokio::sync::watch;

/// The gate of a [`GatedRuntime`]. Open at first.
#[derive(Debug, Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<GateState>,
    changed: Condvar,
    /// Steps that have found the gate closed.
    arrived: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct GateState {
    is_closed: bool,
    is_lost: bool,
    /// Of the steps that found it closed, those that may pass.
    admitted: u64,
}

/// A runtime that computes as another one does, each step behind a gate.
pub struct GatedRuntime {
    inner: Arc<dyn Runtime>,
    gate: Gate,
}

struct GatedModel {
    inner: Box<dyn Model>,
    gate: Gate,
}

impl Default for Gate {
    fn default() -> Self {
        let shared =
            Shared { state: Mutex::default(), changed: Condvar::new(), arrived: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }
}

impl Gate {
    /// Steps that begin from now on wait.
    pub fn close(&self) {
        self.change(|state, _| state.is_closed = true);
    }

    /// Steps go on.
    pub fn open(&self) {
        self.change(|state, arrived| (state.is_closed, state.admitted) = (false, arrived));
    }

    /// Steps fail from now on, as on a device that is lost.
    pub fn lose(&self) {
        self.change(|state, _| state.is_lost = true);
    }

    /// Waits until a step waits at the closed gate.
    pub async fn step_waits(&self) {
        let admitted = self.shared.state.lock().admitted;
        let mut arrivals = self.shared.arrived.subscribe();
        // The sender lives as long as `self`.
        drop(arrivals.wait_for(|&arrived| arrived > admitted).await);
    }

    /// Lets the step that waits go on, and waits until the next one waits.
    pub async fn pass_one(&self) {
        self.step_waits().await;
        self.change(|state, arrived| state.admitted = arrived);
        self.step_waits().await;
    }

    fn change(&self, change: impl FnOnce(&mut GateState, u64)) {
        let mut state = self.shared.state.lock();
        change(&mut state, *self.shared.arrived.borrow());
        self.shared.changed.notify_all();
    }

    /// Blocks while the gate is closed. Fails where the device is lost.
    fn pass(&self) -> Result<(), BackendError> {
        let mut state = self.shared.state.lock();
        if state.is_lost {
            return Err(BackendError::DeviceLost { backend: "gated", what: "the device is lost".to_owned() });
        }
        if !state.is_closed {
            return Ok(());
        }
        let mut mine = 0;
        self.shared.arrived.send_modify(|arrived| {
            *arrived += 1;
            mine = *arrived;
        });
        while state.admitted < mine {
            self.shared.changed.wait(&mut state);
        }
        Ok(())
    }
}

impl GatedRuntime {
    /// Of a runtime, with its gate.
    #[must_use]
    pub fn new(inner: Arc<dyn Runtime>) -> (Self, Gate) {
        let gate = Gate::default();
        (Self { inner, gate: gate.clone() }, gate)
    }
}

impl Runtime for GatedRuntime {
    fn kind(&self) -> BackendKind {
        self.inner.kind()
    }

    fn check(&self, manifest: &Manifest) -> Result<(), BackendError> {
        self.inner.check(manifest)
    }

    fn load(&self, engine: &EngineFiles) -> Result<Box<dyn Model>, BackendError> {
        Ok(Box::new(GatedModel { inner: self.inner.load(engine)?, gate: self.gate.clone() }))
    }
}

impl Model for GatedModel {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn memory_plan(&self) -> MemoryPlan {
        self.inner.memory_plan()
    }

    fn cache_growth(&self) -> CacheGrowth {
        self.inner.cache_growth()
    }

    fn new_cache(&self, max_seq_len: usize) -> Result<Box<dyn Cache>, BackendError> {
        self.inner.new_cache(max_seq_len)
    }

    fn component(&self, component: Component) -> Option<&dyn ComponentModel> {
        self.inner.component(component)
    }

    fn forward(&self, batch: &mut [Sequence<'_>]) -> Result<(), BackendError> {
        self.gate.pass()?;
        self.inner.forward(batch)
    }
}
