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

/// The memory of the executor's process, medians of a quarter of the test.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Memory {
    pub(super) first_quarter_bytes: u64,
    pub(super) last_quarter_bytes: u64,
    pub(super) flat: bool,
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
            self.resident.push(load.resident_memory_bytes);
        }
    }

    pub(super) fn most(&self) -> Most {
        self.most
    }

    pub(super) fn memory(&self) -> Memory {
        let quarter = self.resident.len().div_ceil(4);
        let first = median(&self.resident[..quarter]);
        let last = median(&self.resident[self.resident.len() - quarter..]);
        let allowed = first + (first as f64 * GROWTH) as u64 + GROWTH_BYTES;
        Memory { first_quarter_bytes: first, last_quarter_bytes: last, flat: last <= allowed }
    }
}

/// What the executor holds.
pub(super) async fn held(executor: &mut ExecutorClient<Channel>) -> Result<Held, Status> {
    let GetLoadResponse { running, waiting, sessions, kv_bytes_used, .. } =
        executor.get_load(GetLoadRequest {}).await?.into_inner();
    Ok(Held { running, waiting, sessions, kv_bytes_used })
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
        Watched { most: Most::default(), resident: resident.iter().map(|mib| mib << 20).collect() }.memory()
    }

    #[test]
    fn memory_that_grows_is_not_flat() {
        assert!(memory(&[]).flat);
        assert!(memory(&[500, 500, 510, 505, 520, 510, 515, 530]).flat);
        assert!(memory(&[500, 900, 500, 700, 600, 500, 500, 500]).flat, "what went up came down");
        assert!(!memory(&[500, 500, 510, 550, 580, 600, 630, 650]).flat);
    }
}
