//! What the executor says of itself during and after a load test.

use std::time::{Duration, Instant};

use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{GetLoadRequest, GetLoadResponse};
use serde::Serialize;
use tonic::Status;
use tonic::transport::Channel;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(250);
/// What the resident memory may grow by from the first quarter to the last: a share of it, and what allocators keep of any
/// program.
const GROWTH: f64 = 0.05;
const GROWTH_BYTES: u64 = 32 << 20;

/// The most that was seen, and the memory over time.
#[derive(Debug, Default)]
pub(super) struct Watched {
    most: Most,
    resident: Vec<u64>,
}

/// The most that an executor had at a time.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Most {
    pub(super) running: u32,
    pub(super) waiting: u32,
    pub(super) sessions: u32,
    pub(super) kv_bytes_used: u64,
}

/// The memory of the executor's process, without the prefix cache.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Memory {
    /// When the test began.
    pub(super) start_bytes: u64,
    /// When nothing was left of it.
    pub(super) end_bytes: u64,
    /// Medians of a quarter of the test: the first is what warming up took.
    pub(super) first_quarter_bytes: u64,
    pub(super) last_quarter_bytes: u64,
    pub(super) flat: bool,
}

/// What its schedulers cost, of the engine where it is the most.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Overhead {
    /// The 99th percentile of what is added to a step beside the model and the choice of tokens, in microseconds.
    pub(super) step_p99_us: u64,
    /// The same of choosing tokens, turning them into text and sending them.
    pub(super) output_p99_us: u64,
    /// Generations whose cache was taken for others and computed again, since the executor's start.
    pub(super) preemptions: u64,
}

/// What an executor holds when nothing runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Held {
    pub(super) running: u32,
    pub(super) waiting: u32,
    pub(super) sessions: u32,
    pub(super) kv_bytes_used: u64,
}

impl Watched {
    /// Looks until it is dropped.
    pub(super) async fn watch(&mut self, mut executor: ExecutorClient<Channel>) -> Result<(), Status> {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            let load = executor.get_load(GetLoadRequest {}).await?.into_inner();
            self.most.running = self.most.running.max(load.running);
            self.most.waiting = self.most.waiting.max(load.waiting);
            self.most.sessions = self.most.sessions.max(load.sessions);
            self.most.kv_bytes_used = self.most.kv_bytes_used.max(load.kv_bytes_used);
            self.resident.push(own_memory(&load));
        }
    }

    pub(super) fn most(&self) -> Most {
        self.most
    }

    /// With what is resident at the end.
    pub(super) fn memory(&self, end_bytes: u64) -> Memory {
        let quarter = self.resident.len().div_ceil(4);
        let first = median(&self.resident[..quarter]);
        let last = median(&self.resident[self.resident.len() - quarter..]);
        let allowed = first + (first as f64 * GROWTH) as u64 + GROWTH_BYTES;
        Memory {
            start_bytes: self.resident.first().copied().unwrap_or(0),
            end_bytes,
            first_quarter_bytes: first,
            last_quarter_bytes: last,
            flat: last <= allowed,
        }
    }
}

/// What the executor holds.
pub(super) async fn held(executor: &mut ExecutorClient<Channel>) -> Result<Held, Status> {
    let GetLoadResponse { running, waiting, sessions, kv_bytes_used, .. } =
        executor.get_load(GetLoadRequest {}).await?.into_inner();
    Ok(Held { running, waiting, sessions, kv_bytes_used })
}

/// What is resident in the executor's process, without the prefix cache, and what its schedulers cost.
pub(super) async fn end(executor: &mut ExecutorClient<Channel>) -> Result<(u64, Overhead), Status> {
    let load = executor.get_load(GetLoadRequest {}).await?.into_inner();
    let overhead = Overhead {
        step_p99_us: load.scheduler_overhead_p99_us,
        output_p99_us: load.output_p99_us,
        preemptions: load.preemptions,
    };
    Ok((own_memory(&load), overhead))
}

/// What is resident in the executor's process but for what requests share, which has a bound of its own and fills up to it.
fn own_memory(load: &GetLoadResponse) -> u64 {
    load.resident_memory_bytes.saturating_sub(load.prefix_cache_bytes_used)
}

/// Waits until the executor holds what it did before, at most for `patience`; what it holds then.
pub(super) async fn settled(
    executor: &mut ExecutorClient<Channel>,
    before: Held,
    patience: Duration,
) -> Result<Held, Status> {
    let start = Instant::now();
    loop {
        let now = held(executor).await?;
        if now == before || start.elapsed() > patience {
            return Ok(now);
        }
        tokio::time::sleep(INTERVAL / 5).await;
    }
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(resident: &[u64]) -> Memory {
        Watched { most: Most::default(), resident: resident.iter().map(|mib| mib << 20).collect() }.memory(0)
    }

    #[test]
    fn memory_that_grows_is_not_flat() {
        assert!(memory(&[]).flat);
        assert!(memory(&[500, 500, 510, 505, 520, 510, 515, 530]).flat);
        assert!(memory(&[500, 900, 500, 700, 600, 500, 500, 500]).flat, "what went up came down");
        assert!(!memory(&[500, 500, 510, 550, 580, 600, 630, 650]).flat);
    }
}
