//! What follows a build.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use trtx::interfaces::MonitorProgress;

use crate::guard::PanicSlot;

/// Follows a build and may stop it. TensorRT calls it on the thread that builds, or on threads of its own.
pub trait BuildMonitor: Send + Sync {
    /// A phase of so many steps begins. Phases nest.
    fn phase_start(&self, phase: &str, steps: u32);

    /// A step of a phase, counted from 0, is done. On `Break` the build stops.
    fn step(&self, phase: &str, step: u32) -> ControlFlow<()>;

    /// A phase ends, complete or not.
    fn phase_end(&self, phase: &str);
}

/// A monitor whose panics stop the build instead of the process.
pub(super) struct Guarded {
    monitor: Box<dyn BuildMonitor>,
    panics: Arc<PanicSlot>,
    stop: Arc<AtomicBool>,
}

impl Guarded {
    /// Keeps panics of `monitor`; `stop` is set when it broke.
    pub(super) fn new(
        monitor: Box<dyn BuildMonitor>,
        panics: &Arc<PanicSlot>,
        stop: &Arc<AtomicBool>,
    ) -> Self {
        Self { monitor, panics: Arc::clone(panics), stop: Arc::clone(stop) }
    }

    /// Asks whether to go on with something that is no phase of TensorRT's.
    pub(super) fn go_on(&self, phase: &str) -> ControlFlow<()> {
        self.run(|| self.monitor.step(phase, 0))
    }

    /// Runs a callback; the build stops at its next step if it panics.
    fn run(&self, callback: impl FnOnce() -> ControlFlow<()>) -> ControlFlow<()> {
        let flow = self.panics.run(ControlFlow::Break(()), callback);
        if flow.is_break() {
            self.stop.store(true, Ordering::Release);
        }
        flow
    }
}

/// The monitor as `trtx` takes it.
pub(super) struct Shared(pub(super) Arc<Guarded>);

impl MonitorProgress for Shared {
    // `trtx` passes the phase itself for its parent.
    fn phase_start(&self, phase: &str, _parent: Option<&str>, steps: i32) {
        let _ = self.0.run(|| {
            self.0.monitor.phase_start(phase, u32::try_from(steps).unwrap_or(0));
            ControlFlow::Continue(())
        });
    }

    fn step_complete(&self, phase: &str, step: i32) -> ControlFlow<()> {
        if self.0.stop.load(Ordering::Acquire) {
            return ControlFlow::Break(());
        }
        self.0.run(|| self.0.monitor.step(phase, u32::try_from(step).unwrap_or(0)))
    }

    fn phase_finish(&self, phase: &str) {
        let _ = self.0.run(|| {
            self.0.monitor.phase_end(phase);
            ControlFlow::Continue(())
        });
    }
}
