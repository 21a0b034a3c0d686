//! Since when the step that runs does, for whoever watches that steps end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Says between steps that none runs.
const NONE: u64 = u64::MAX;

/// When the step that runs has begun: written by the thread that runs it, read by others.
#[derive(Debug)]
pub(super) struct StepClock {
    origin: Instant,
    /// Nanoseconds after the origin.
    began: AtomicU64,
}

/// A step that runs. Dropping it says that it is over, however it ended.
pub(super) struct RunningStep<'a>(&'a StepClock);

impl StepClock {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), began: AtomicU64::new(NONE) }
    }

    /// Says that a step begins.
    pub(super) fn begin(&self, now: Instant) -> RunningStep<'_> {
        self.write(now);
        RunningStep(self)
    }

    fn write(&self, began: Instant) {
        let began = began.saturating_duration_since(self.origin).as_nanos();
        self.began.store(u64::try_from(began).unwrap_or(NONE - 1).min(NONE - 1), Ordering::Release);
    }

    /// How long the step that runs has run; `None` between steps.
    pub(super) fn elapsed(&self) -> Option<Duration> {
        let began = self.began.load(Ordering::Acquire);
        (began != NONE).then(|| self.origin.elapsed().saturating_sub(Duration::from_nanos(began)))
    }
}

impl RunningStep<'_> {
    /// Says that it is over and another one begins.
    pub(super) fn again(&self, now: Instant) {
        self.0.write(now);
    }
}

impl Drop for RunningStep<'_> {
    fn drop(&mut self) {
        self.0.began.store(NONE, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_over_when_it_is_dropped() {
        let clock = StepClock::new();
        assert_eq!(clock.elapsed(), None);
        let step = clock.begin(Instant::now());
        let first = clock.elapsed().unwrap();
        assert!(clock.elapsed().unwrap() >= first);
        step.again(clock.origin + Duration::from_secs(3600));
        assert_eq!(clock.elapsed(), Some(Duration::ZERO));
        drop(step);
        assert_eq!(clock.elapsed(), None);
    }
}
