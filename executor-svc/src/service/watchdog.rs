//! Watches that steps end: a service whose engine is stuck says so in its health, and why.

use std::time::Duration;

use roundhouse_rpc::Readiness;

use super::ExecutorService;

/// How often it looks at least.
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);
/// How often it looks at most.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

impl ExecutorService {
    /// Turns the executor's health SERVING, and from then on NOT_SERVING for as long as an engine makes no progress: when
    /// a step takes longer than the configured limit, its thread has ended, or its device is lost.
    pub async fn report_health(&self, readiness: &Readiness) {
        readiness.serving().await;
        let (service, readiness) = (self.clone(), readiness.of(Self::NAMES));
        tokio::spawn(async move { service.watch(&readiness).await });
    }

    async fn watch(&self, readiness: &Readiness) {
        let interval = (self.config.step_timeout / 4).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
        let mut was_well = true;
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.stopped.cancelled() => return,
            }
            let problems = self.problems();
            let is_well = problems.is_empty();
            match (was_well, is_well) {
                (true, false) => {
                    tracing::error!(?problems, "no progress: health is NOT_SERVING");
                    readiness.not_serving().await;
                }
                (false, true) => {
                    tracing::info!("there is progress again: health is SERVING");
                    readiness.serving().await;
                }
                _ => {}
            }
            was_well = is_well;
        }
    }

    /// What keeps engines from making progress, one sentence each; none when all is well.
    pub(super) fn problems(&self) -> Vec<String> {
        let limit = self.config.step_timeout;
        let engines = self.engines.list();
        let problems = engines.iter().filter_map(|engine| {
            let (key, scheduler) = (&engine.manifest().key, engine.scheduler());
            if scheduler.has_ended() {
                return Some(format!("engine {key}: the thread of its scheduler has ended"));
            }
            if let Some(why) = scheduler.lost() {
                return Some(format!("engine {key}: {why}"));
            }
            let elapsed = scheduler.step_elapsed().filter(|&elapsed| elapsed >= limit)?;
            let seconds = elapsed.as_secs_f64();
            Some(format!("engine {key}: a step has run for {seconds:.1} s, and the limit is {limit:?}"))
        });
        problems.collect()
    }
}
