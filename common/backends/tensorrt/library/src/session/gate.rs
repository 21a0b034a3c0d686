//! Which builds may run at once.
//!
//! TensorRT keeps the compute capabilities that are being built for in one place for the whole process: two builds with
//! different ones fail each other, or make plans for the other's. Those with the same ones run together.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use roundhouse_engine::ComputeCapabilities;

/// How often one that waits asks whether it still should.
const POLL: Duration = Duration::from_millis(50);

/// Lets builds with the same targets through together, others in turn.
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The targets of those inside, and how many there are.
    targets: ComputeCapabilities,
    inside: usize,
    /// Those that wait, the first to come first.
    waiting: VecDeque<u64>,
    tickets: u64,
}

/// The gate of this process.
pub(super) static GATE: Gate = Gate::new();

/// A build that is inside. It leaves when this is dropped.
pub(super) struct Pass<'a>(&'a Gate);

impl Gate {
    const fn new() -> Self {
        let state =
            State { targets: ComputeCapabilities::NONE, inside: 0, waiting: VecDeque::new(), tickets: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits until a build with these targets may run, or until `go_on` breaks: then `None`.
    pub(super) fn enter(
        &self,
        targets: ComputeCapabilities,
        mut go_on: impl FnMut() -> ControlFlow<()>,
    ) -> Option<Pass<'_>> {
        let mut state = self.state.lock();
        let ticket = state.tickets;
        state.tickets += 1;
        state.waiting.push_back(ticket);
        loop {
            // Nobody passes one that came earlier, or it would wait for ever.
            let is_first = state.waiting.front() == Some(&ticket);
            if is_first && (state.inside == 0 || state.targets == targets) {
                state.waiting.pop_front();
                state.targets = targets;
                state.inside += 1;
                self.changed.notify_all();
                return Some(Pass(self));
            }
            self.changed.wait_for(&mut state, POLL);
            // Without the lock: others need not wait for what this one asks.
            drop(state);
            let flow = go_on();
            state = self.state.lock();
            if flow.is_break() {
                state.waiting.retain(|&waiting| waiting != ticket);
                self.changed.notify_all();
                return None;
            }
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.state.lock().inside -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_engine::ComputeCapability;

    use super::*;

    fn targets(minor: u8) -> ComputeCapabilities {
        [ComputeCapability::new(8, minor)].into_iter().collect()
    }

    fn try_enter(gate: &Gate, minor: u8) -> Option<Pass<'_>> {
        gate.enter(targets(minor), || ControlFlow::Break(()))
    }

    #[test]
    fn the_same_targets_pass_together_and_others_wait() {
        let gate = Gate::new();
        let first = try_enter(&gate, 6).unwrap();
        let second = try_enter(&gate, 6).unwrap();
        assert!(try_enter(&gate, 9).is_none());
        drop(first);
        assert!(try_enter(&gate, 9).is_none());
        drop(second);
        let third = try_enter(&gate, 9).unwrap();
        assert!(try_enter(&gate, 6).is_none());
        drop(third);
        assert!(try_enter(&gate, 6).is_some());
    }

    #[test]
    fn nobody_passes_one_that_waits() {
        let gate = Gate::new();
        let first = try_enter(&gate, 6).unwrap();
        let (asked, heard) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let gate = &gate;
            let other = scope.spawn(move || {
                gate.enter(targets(9), || {
                    let _ = asked.send(());
                    ControlFlow::Continue(())
                })
                .is_some()
            });
            heard.recv().unwrap();
            assert!(try_enter(gate, 6).is_none(), "it came after one that waits");
            drop(first);
            assert!(other.join().unwrap());
        });
        assert!(try_enter(&gate, 6).is_some());
    }
}
