//! What a build says while it runs. TensorRT calls back on the thread that builds; what it says goes through a bounded
//! channel to the thread that asked for the build, so that no code of others runs between TensorRT's frames.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use roundhouse_backend::{BackendError, BuildProgress};
use roundhouse_tensorrt_library::{BuildMonitor, LogSink, Severity};

/// Events that wait for the thread that asked. A full channel holds the build up: the other end only passes lines on.
const CAPACITY: usize = 256;
/// How soon a cancellation is noticed while TensorRT says nothing.
const POLL: Duration = Duration::from_millis(50);
/// Steps of one phase are reported no more often.
const STEP_INTERVAL: Duration = Duration::from_secs(1);
/// Phases nested deeper are parts of one layer or kernel.
const LOGGED_DEPTH: usize = 2;
/// What of TensorRT's information belongs in the build's log.
const LOGGED_INFO: &[&str] =
    &["Total Activation Memory", "Total Weights Memory", "Max Scratch Memory", "Engine generation completed"];

enum Event {
    Line(String),
    Written(u64),
}

/// The end of the thread that builds.
#[derive(Clone)]
pub(crate) struct Reporter {
    events: SyncSender<Event>,
    stop: Arc<AtomicBool>,
}

/// The end of the thread that asked for the build.
pub(crate) struct Listener {
    events: Receiver<Event>,
    stop: Arc<AtomicBool>,
}

/// The two ends.
pub(crate) fn channel() -> (Reporter, Listener) {
    let (sender, receiver) = mpsc::sync_channel(CAPACITY);
    let stop = Arc::new(AtomicBool::new(false));
    (Reporter { events: sender, stop: Arc::clone(&stop) }, Listener { events: receiver, stop })
}

impl Reporter {
    /// Says a line.
    pub(crate) fn line(&self, line: impl Into<String>) {
        self.send(Event::Line(line.into()));
    }

    /// Says how many bytes of the plan are written.
    pub(crate) fn written(&self, bytes: u64) {
        self.send(Event::Written(bytes));
    }

    /// Whether to go on.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.stop.load(Ordering::Acquire) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn send(&self, event: Event) {
        // Nobody listens to a build that is given up.
        let _ = self.events.send(event);
    }

    /// What follows TensorRT's phases.
    pub(crate) fn monitor(&self) -> Box<dyn BuildMonitor> {
        Box::new(Monitor { reporter: self.clone(), phases: Mutex::new(Phases::default()) })
    }

    /// What listens to TensorRT's log.
    pub(crate) fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(Sink(self.clone()))
    }
}

impl Listener {
    /// Passes on what a build says until its end is dropped. When `progress` wants no more, the build is told to stop.
    ///
    /// # Errors
    /// What `progress` said, once the build has stopped.
    pub(crate) fn pass_on(
        self,
        progress: &dyn BuildProgress,
        before: u64,
        total: u64,
    ) -> Result<(), BackendError> {
        let mut written = 0;
        let mut outcome = Ok(());
        loop {
            match self.events.recv_timeout(POLL) {
                Ok(Event::Line(line)) => progress.log(&line),
                Ok(Event::Written(bytes)) => written = bytes,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return outcome,
            }
            if outcome.is_ok() {
                outcome = progress.bytes((before + written).min(total), total);
                if outcome.is_err() {
                    self.stop.store(true, Ordering::Release);
                }
            }
        }
    }
}

struct Monitor {
    reporter: Reporter,
    phases: Mutex<Phases>,
}

/// The phases that TensorRT is in.
#[derive(Default)]
struct Phases {
    /// From the outermost, with how many steps each has.
    open: Vec<(String, u32)>,
    /// When the last line was said.
    last: Option<Instant>,
}

impl Phases {
    fn say(&mut self) {
        self.last = Some(Instant::now());
    }
}

impl BuildMonitor for Monitor {
    fn phase_start(&self, phase: &str, steps: u32) {
        let depth = {
            let mut phases = self.phases.lock();
            phases.open.push((phase.to_owned(), steps));
            phases.say();
            phases.open.len()
        };
        if depth <= LOGGED_DEPTH {
            self.reporter.line(format!("TensorRT: {phase}"));
        }
    }

    fn step(&self, phase: &str, step: u32) -> ControlFlow<()> {
        let line = {
            let mut phases = self.phases.lock();
            let due = phases.last.is_none_or(|last| last.elapsed() >= STEP_INTERVAL);
            let steps = phases.open.iter().rev().find(|(open, _)| open == phase).map(|&(_, steps)| steps);
            due.then(|| {
                phases.say();
                format!("TensorRT: {phase}: step {} of {}", step.saturating_add(1), steps.unwrap_or(0))
            })
        };
        if let Some(line) = line {
            self.reporter.line(line);
        }
        self.reporter.flow()
    }

    fn phase_end(&self, phase: &str) {
        let mut phases = self.phases.lock();
        if let Some(index) = phases.open.iter().rposition(|(open, _)| open == phase) {
            phases.open.truncate(index);
        }
    }
}

/// Passes warnings, and what says how much memory an engine needs, to the build's log. Errors come with the error.
struct Sink(Reporter);

impl LogSink for Sink {
    fn line(&self, severity: Severity, message: &str) {
        let belongs = match severity {
            Severity::Warning => true,
            Severity::Info => LOGGED_INFO.iter().any(|part| message.contains(part)),
            Severity::InternalError | Severity::Error | Severity::Verbose => false,
        };
        if belongs {
            self.0.line(format!("TensorRT: {message}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log {
        lines: Mutex<Vec<String>>,
        bytes: Mutex<Vec<(u64, u64)>>,
        cancel_at: Option<usize>,
    }

    impl BuildProgress for Log {
        fn bytes(&self, done: u64, total: u64) -> Result<(), BackendError> {
            let mut bytes = self.bytes.lock();
            bytes.push((done, total));
            if Some(bytes.len()) == self.cancel_at { Err(BackendError::Cancelled) } else { Ok(()) }
        }

        fn log(&self, line: &str) {
            self.lines.lock().push(line.to_owned());
        }
    }

    fn listen(log: &Log, build: impl FnOnce(Reporter) + Send) -> Result<(), BackendError> {
        let (reporter, listener) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| build(reporter));
            listener.pass_on(log, 100, 1000)
        })
    }

    #[test]
    fn phases_warnings_and_bytes_arrive_in_order() {
        let log = Log::default();
        let outcome = listen(&log, |reporter| {
            let (monitor, sink) = (reporter.monitor(), reporter.sink());
            monitor.phase_start("outer", 2);
            monitor.phase_start("inner", 3);
            monitor.phase_start("too deep", 3);
            assert!(monitor.step("inner", 0).is_continue());
            monitor.phase_end("inner");
            monitor.phase_start("next", 1);
            sink.line(Severity::Warning, "careful");
            sink.line(Severity::Info, "[MemUsageStats] Total Activation Memory: 1 bytes");
            sink.line(Severity::Info, "nothing of interest");
            sink.line(Severity::Error, "in the error");
            reporter.written(5);
            reporter.written(2000);
        });
        assert!(outcome.is_ok());
        let expected = [
            "TensorRT: outer",
            "TensorRT: inner",
            "TensorRT: next",
            "TensorRT: careful",
            "TensorRT: [MemUsageStats] Total Activation Memory: 1 bytes",
        ];
        assert_eq!(*log.lines.lock(), expected);
        let bytes = log.bytes.lock();
        assert!(bytes.contains(&(105, 1000)) && bytes.last() == Some(&(1000, 1000)), "{bytes:?}");
    }

    #[test]
    fn a_cancelled_build_is_told_and_heard_to_its_end() {
        let log = Log { cancel_at: Some(3), ..Log::default() };
        let outcome = listen(&log, |reporter| {
            let monitor = reporter.monitor();
            monitor.phase_start("phase", 1);
            while monitor.step("phase", 0).is_continue() {
                reporter.line("working");
            }
            reporter.line("the last words");
        });
        assert!(matches!(outcome, Err(BackendError::Cancelled)), "{outcome:?}");
        assert_eq!(log.lines.lock().last().map(String::as_str), Some("the last words"));
        assert_eq!(log.bytes.lock().len(), 3, "nothing is asked after the answer");
    }
}
