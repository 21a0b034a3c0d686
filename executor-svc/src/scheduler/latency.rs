//! Times that a thread notes and others read, counted in classes: no memory grows with them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Classes within each doubling: a class is at most a quarter wider than its lower bound.
const CLASSES_A_DOUBLING: usize = 4;
/// Doublings of a microsecond, up to more than an hour.
const DOUBLINGS: usize = 32;
const CLASSES: usize = CLASSES_A_DOUBLING * DOUBLINGS;

/// How often something took how long.
#[derive(Debug)]
pub struct Latencies {
    counts: [AtomicU64; CLASSES],
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; CLASSES] }
    }
}

impl Latencies {
    /// Counts one.
    pub fn note(&self, took: Duration) {
        self.counts[class_of(took)].fetch_add(1, Ordering::Relaxed);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// What this part of them took at most, to the upper bound of its class: 0.99 gives the 99th percentile. Zero while
    /// there is none.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Duration {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        let rank = ((all as f64 * part).ceil() as u64).clamp(u64::from(all > 0), all);
        let mut seen = 0;
        let class = counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        class.filter(|_| all > 0).map_or(Duration::ZERO, upper_bound)
    }
}

fn class_of(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let doubling = micros.ilog2() as usize;
    // The two bits after the highest one.
    let within = if doubling < 2 { micros << (2 - doubling) } else { micros >> (doubling - 2) } & 3;
    (doubling * CLASSES_A_DOUBLING + within as usize).min(CLASSES - 1)
}

fn upper_bound(class: usize) -> Duration {
    let (doubling, within) = (class / CLASSES_A_DOUBLING, class % CLASSES_A_DOUBLING);
    // Microseconds are whole: the class of 1 has nothing else in it.
    Duration::from_nanos((1000_u64 << doubling) * (5 + within as u64) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_at_most_a_quarter_too_long() {
        let latencies = Latencies::default();
        assert_eq!((latencies.quantile(0.99), latencies.count()), (Duration::ZERO, 0));
        for micros in 1..=1000 {
            latencies.note(Duration::from_micros(micros));
        }
        for (part, exact) in [(0.001, 1.0), (0.1, 100.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = latencies.quantile(part).as_secs_f64() * 1e6;
            assert!(found >= exact && found <= exact * 1.25 + 1.0, "{part}: {found}");
        }
        assert_eq!(latencies.count(), 1000);
    }

    #[test]
    fn any_time_has_a_class() {
        for took in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            assert!(class_of(took) < CLASSES);
        }
        let latencies = Latencies::default();
        latencies.note(Duration::from_secs(3600));
        let found = latencies.quantile(0.5);
        assert!(found >= Duration::from_secs(3600) && found < Duration::from_secs(4600), "{found:?}");
    }
}
