//! One operation: its state, its history, and how callers wait for more of it.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use roundhouse_proto::compiler::{CompileEngineResponse, PassReport, Stage, StageProgress};
use roundhouse_proto::google::rpc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Log lines kept of one operation; the oldest go first.
const LOG_LIMIT: usize = 10_000;

/// One compilation, shared by its worker and everyone who follows it.
#[derive(Debug)]
pub struct Operation {
    name: String,
    model: String,
    created: SystemTime,
    cancel: CancellationToken,
    state: Mutex<State>,
    /// Counts changes, so that followers wait for the next one.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    engine_key: String,
    progress: StageProgress,
    progress_revision: u64,
    history: Vec<(SystemTime, Update)>,
    /// How many entries were dropped from the front of `history`.
    forgotten: usize,
    ended: Option<(SystemTime, Result<CompileEngineResponse, rpc::Status>)>,
}

/// Something that happened and stays in the history.
#[derive(Debug, Clone)]
pub enum Update {
    /// A pass changed the graph.
    Pass(PassReport),
    /// A line for people.
    Log(String),
}

/// An operation at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// `operations/<id>`.
    pub name: String,
    /// As requested.
    pub model: String,
    /// Empty until known.
    pub engine_key: String,
    /// The latest.
    pub progress: StageProgress,
    /// When the request came.
    pub created: SystemTime,
    /// When and how it ended, if it has.
    pub ended: Option<(SystemTime, Result<CompileEngineResponse, rpc::Status>)>,
}

/// What a follower has seen so far.
#[derive(Debug, Default)]
pub struct Cursor {
    history: usize,
    progress_revision: u64,
}

/// What is new since a cursor.
#[derive(Debug)]
pub struct News {
    /// New entries of the history.
    pub updates: Vec<(SystemTime, Update)>,
    /// The progress, if it moved.
    pub progress: Option<StageProgress>,
    /// Whether the operation has ended.
    pub ended: bool,
}

impl Operation {
    pub(crate) fn new(name: String, model: String) -> Arc<Self> {
        let state = State {
            progress: StageProgress { stage: Stage::Queued.into(), done: 0, total: None },
            progress_revision: 1,
            ..State::default()
        };
        Arc::new(Self {
            name,
            model,
            created: SystemTime::now(),
            cancel: CancellationToken::new(),
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
        })
    }

    /// `operations/<id>`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks the worker to stop.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// The token that the worker watches.
    #[must_use]
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state.lock().ended.is_some()
    }

    /// Reports how far a stage is. `total` is `None` while unknown.
    pub fn report(&self, stage: Stage, done: u64, total: Option<u64>) {
        let mut state = self.state.lock();
        state.progress = StageProgress { stage: stage.into(), done, total };
        state.progress_revision += 1;
        drop(state);
        self.notify();
    }

    /// Adds a line for people.
    pub fn log(&self, line: impl Into<String>) {
        self.record(Update::Log(line.into()));
    }

    /// Adds what a pass did.
    pub fn pass(&self, report: PassReport) {
        self.record(Update::Pass(report));
    }

    /// Sets the engine key, once known.
    pub fn set_engine_key(&self, key: &str) {
        key.clone_into(&mut self.state.lock().engine_key);
        self.notify();
    }

    pub(super) fn end(&self, result: Result<CompileEngineResponse, rpc::Status>) {
        self.state.lock().ended = Some((SystemTime::now(), result));
        self.notify();
    }

    /// The state now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        Snapshot {
            name: self.name.clone(),
            model: self.model.clone(),
            engine_key: state.engine_key.clone(),
            progress: state.progress,
            created: self.created,
            ended: state.ended.clone(),
        }
    }

    /// Returns when the operation has ended.
    pub async fn wait(&self) {
        let mut changed = self.changed.subscribe();
        // `self` owns the sender, so the channel is open for as long as this future lives.
        while !self.is_done() && changed.changed().await.is_ok() {}
    }

    /// Returns what is new since `cursor`, and waits for something if nothing is.
    pub async fn follow(&self, cursor: &mut Cursor) -> News {
        let mut changed = self.changed.subscribe();
        loop {
            let news = self.news(cursor);
            if news.ended
                || news.progress.is_some()
                || !news.updates.is_empty()
                || changed.changed().await.is_err()
            {
                return news;
            }
        }
    }

    fn news(&self, cursor: &mut Cursor) -> News {
        let state = self.state.lock();
        let from = cursor.history.saturating_sub(state.forgotten).min(state.history.len());
        let updates = state.history[from..].to_vec();
        cursor.history = state.forgotten + state.history.len();
        let progress = (cursor.progress_revision != state.progress_revision).then_some(state.progress);
        cursor.progress_revision = state.progress_revision;
        News { updates, progress, ended: state.ended.is_some() }
    }

    fn record(&self, update: Update) {
        let mut state = self.state.lock();
        if state.history.len() == LOG_LIMIT {
            state.history.remove(0);
            state.forgotten += 1;
        }
        state.history.push((SystemTime::now(), update));
        drop(state);
        self.notify();
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_follower_sees_the_whole_history_and_then_the_end() {
        let operation = Operation::new("operations/1".to_owned(), "m".to_owned());
        operation.log("first");
        operation.report(Stage::Build, 5, Some(10));
        operation.log("second");
        let mut cursor = Cursor::default();
        let news = operation.follow(&mut cursor).await;
        let lines: Vec<_> = news
            .updates
            .iter()
            .map(|(_, update)| match update {
                Update::Log(line) => line.as_str(),
                Update::Pass(_) => "pass",
            })
            .collect();
        assert_eq!(lines, ["first", "second"]);
        assert_eq!(news.progress.unwrap().done, 5);
        assert!(!news.ended);

        let follower = {
            let operation = Arc::clone(&operation);
            tokio::spawn(async move { operation.follow(&mut cursor).await })
        };
        operation.end(Err(rpc::Status { code: 1, message: "cancelled".to_owned(), details: Vec::new() }));
        let news = follower.await.unwrap();
        assert!(news.ended && news.updates.is_empty() && news.progress.is_none());
        operation.wait().await;
    }

    #[test]
    fn the_history_is_bounded_and_a_slow_follower_gets_what_is_left() {
        let operation = Operation::new("operations/1".to_owned(), "m".to_owned());
        let mut cursor = Cursor::default();
        operation.log("0");
        assert_eq!(operation.news(&mut cursor).updates.len(), 1);
        for line in 1..=LOG_LIMIT + 7 {
            operation.log(line.to_string());
        }
        let updates = operation.news(&mut cursor).updates;
        assert_eq!(updates.len(), LOG_LIMIT);
        assert!(
            matches!(&updates[LOG_LIMIT - 1].1, Update::Log(line) if *line == (LOG_LIMIT + 7).to_string())
        );
    }
}
