//! TensorRT's log. A process has one logger: TensorRT keeps using the first that it is given, whatever a later builder
//! brings, so that one which lived shorter would be used after its end.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use trtx::{LogHandler, Logger};

pub use trtx::Severity;

use crate::TensorRtError;
use crate::guard::PanicSlot;
use crate::recorder::is_noise;

/// Where a build's log lines go besides the process's own log.
pub trait LogSink {
    /// A line of TensorRT's log.
    fn line(&self, severity: Severity, message: &str);
}

thread_local! {
    static SINK: RefCell<Option<Arc<dyn LogSink>>> = const { RefCell::new(None) };
}

/// Runs `work` with a sink for what TensorRT logs on this thread: TensorRT logs on the thread that calls it.
pub fn with_log_sink<R>(sink: Arc<dyn LogSink>, work: impl FnOnce() -> R) -> R {
    /// Puts the former sink back, on a panic too.
    struct Restore(Option<Arc<dyn LogSink>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let former = self.0.take();
            SINK.with(|current| *current.borrow_mut() = former);
        }
    }
    let _restore = Restore(SINK.with(|current| current.borrow_mut().replace(sink)));
    work()
}

/// The process's logger, for every builder, runtime and refitter.
///
/// # Errors
/// [`TensorRtError::Binding`] when it cannot be made.
pub fn process_logger() -> Result<&'static Logger, TensorRtError> {
    static LOGGER: OnceLock<Result<Logger, String>> = OnceLock::new();
    let logger = LOGGER.get_or_init(|| Logger::new(Forward::default()).map_err(|error| error.to_string()));
    logger.as_ref().map_err(|what| TensorRtError::Binding { what: format!("no logger: {what}") })
}

/// Passes lines on. A panic of a sink stays here.
#[derive(Default)]
struct Forward {
    panics: PanicSlot,
}

impl LogHandler for Forward {
    fn log(&self, severity: Severity, message: &str) {
        self.panics.run((), || forward(severity, message.trim()));
        if let Some(message) = self.panics.take() {
            self.panics.run((), || tracing::error!("a log sink panicked: {message}"));
        }
    }
}

fn forward(severity: Severity, message: &str) {
    match severity {
        _ if is_noise(message) => tracing::debug!(target: "tensorrt", "{message}"),
        Severity::InternalError | Severity::Error => tracing::error!(target: "tensorrt", "{message}"),
        Severity::Warning => tracing::warn!(target: "tensorrt", "{message}"),
        Severity::Info => tracing::debug!(target: "tensorrt", "{message}"),
        Severity::Verbose => tracing::trace!(target: "tensorrt", "{message}"),
    }
    // Cloned, so that a sink that logs finds the cell free.
    let sink = SINK.with(|current| current.borrow().clone());
    if let Some(sink) = sink {
        sink.line(severity, message);
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl LogSink for Lines {
        fn line(&self, severity: Severity, message: &str) {
            assert_ne!(message, "panic", "the sink panics");
            self.0.lock().push(format!("{severity:?} {message}"));
        }
    }

    #[test]
    fn lines_go_to_the_sink_of_their_thread_only() {
        let (outer, inner) = (Arc::new(Lines::default()), Arc::new(Lines::default()));
        let log = Forward::default();
        log.log(Severity::Info, "before");
        with_log_sink(outer.clone(), || {
            log.log(Severity::Info, "one\n");
            with_log_sink(inner.clone(), || log.log(Severity::Warning, "two"));
            std::thread::scope(|scope| {
                scope.spawn(|| log.log(Severity::Error, "elsewhere"));
            });
            log.log(Severity::Verbose, "three");
        });
        log.log(Severity::Info, "after");
        assert_eq!(*outer.0.lock(), ["Info one", "Verbose three"]);
        assert_eq!(*inner.0.lock(), ["Warning two"]);
    }

    #[test]
    fn a_panic_of_a_sink_stays_in_the_logger() {
        let lines = Arc::new(Lines::default());
        let log = Forward::default();
        with_log_sink(lines.clone(), || {
            log.log(Severity::Info, "panic");
            log.log(Severity::Info, "after");
        });
        assert_eq!(*lines.0.lock(), ["Info after"]);
    }
}
