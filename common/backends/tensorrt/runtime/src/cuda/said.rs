//! TensorRT's own words.

use std::fmt::Display;
use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_tensorrt_library::{LogSink, Severity, with_log_sink};

use crate::DeviceError;

/// The errors that TensorRT logs during a call.
#[derive(Default)]
struct Errors(Mutex<Vec<String>>);

impl LogSink for Errors {
    fn line(&self, severity: Severity, message: &str) {
        if matches!(severity, Severity::Error | Severity::InternalError) {
            self.0.lock().push(message.trim().to_owned());
        }
    }
}

/// Makes a call of TensorRT. Where it fails, the error says what TensorRT logged meanwhile: not every object takes an
/// error recorder, but all of them log every error that a recorder would be told, on the thread of the call.
pub(super) fn said<T, E: Display>(call: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, DeviceError> {
    let errors = Arc::new(Errors::default());
    let sink: Arc<dyn LogSink> = errors.clone();
    with_log_sink(sink, work).map_err(|error| {
        let lines = errors.0.lock();
        let what = if lines.is_empty() { error.to_string() } else { lines.join("; ") };
        DeviceError::TensorRt { call: call.to_owned(), what }
    })
}

/// As [`said`], of a call that gives whether it went well.
pub(super) fn said_yes(call: &str, work: impl FnOnce() -> bool) -> Result<(), DeviceError> {
    said(call, || if work() { Ok(()) } else { Err("TensorRT refused, and did not say why") })
}

#[cfg(test)]
mod tests {
    use roundhouse_tensorrt_library::process_logger;

    use super::*;

    #[test]
    fn an_error_without_words_of_tensorrt_is_the_bindings() {
        let result: Result<(), _> = said("enqueueV3", || Err("refused"));
        assert_eq!(result.unwrap_err().to_string(), "enqueueV3: refused");
        assert!(said_yes("setWeightStreamingBudgetV2", || true).is_ok());
        // The logger is the process's own, that the sink hangs on.
        assert!(process_logger().is_ok());
    }
}
