//! Durations in memory that does not grow with their number: a load test runs in the process whose memory it watches.

use std::time::Duration;

use serde::Serialize;

/// The ratio of a bucket's bounds: what a quantile may be off by.
const RATIO: f64 = 1.02;
/// Buckets from a microsecond on: the last one's bound is above an hour.
const BUCKETS: usize = 1120;

/// Durations, each kept within 2 %.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: Duration,
}

/// What a report says of durations, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Quantiles {
    pub(super) count: u64,
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: Duration::ZERO }
    }
}

impl Histogram {
    pub(super) fn add(&mut self, duration: Duration) {
        let micros = (duration.as_secs_f64() * 1e6).max(1.0);
        let bucket = (micros.ln() / RATIO.ln()).floor() as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.total += 1;
        self.max = self.max.max(duration);
    }

    /// The least duration that so much of all are at most, within 2 %. Zero of nothing.
    pub(super) fn quantile(&self, q: f64) -> Duration {
        let rank = ((self.total as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                // The last bucket has no upper bound.
                if bucket == BUCKETS - 1 {
                    return self.max;
                }
                let upper = Duration::from_secs_f64(RATIO.powi(bucket as i32 + 1) / 1e6);
                return upper.min(self.max);
            }
        }
        self.max
    }

    pub(super) fn quantiles(&self) -> Quantiles {
        let millis = |q| self.quantile(q).as_secs_f64() * 1e3;
        Quantiles {
            count: self.total,
            p50_ms: millis(0.5),
            p90_ms: millis(0.9),
            p99_ms: millis(0.99),
            max_ms: self.max.as_secs_f64() * 1e3,
        }
    }
}

impl Quantiles {
    /// A line for people.
    pub(super) fn show(&self, name: &str) {
        println!(
            "{name:20} p50 {:9.2} ms   p90 {:9.2} ms   p99 {:9.2} ms   max {:9.2} ms   of {}",
            self.p50_ms, self.p90_ms, self.p99_ms, self.max_ms, self.count
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket() {
        let mut histogram = Histogram::default();
        for millis in 1..=1000 {
            histogram.add(Duration::from_millis(millis));
        }
        for (q, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = histogram.quantile(q).as_secs_f64() * 1e3;
            assert!((found / expected - 1.0).abs() < 0.021, "{q}: {found}");
        }
        assert_eq!(histogram.quantiles().max_ms, 1000.0);
    }

    #[test]
    fn the_shortest_and_the_longest_have_a_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        histogram.add(Duration::ZERO);
        histogram.add(Duration::from_secs(100_000));
        assert_eq!(histogram.quantile(1.0), Duration::from_secs(100_000));
    }
}
