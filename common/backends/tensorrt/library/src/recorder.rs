//! TensorRT's own words about what went wrong.

use std::ffi::{CStr, CString};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use trtx::interfaces::RecordError;
use trtx::trtx_sys::ErrorCode;

/// The most errors of one object that are kept.
const CAPACITY: usize = 64;

/// An error as TensorRT reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedError {
    /// `ErrorCode`, by name: `kINVALID_ARGUMENT`, ….
    pub code: String,
    /// TensorRT's text.
    pub text: String,
}

impl std::fmt::Display for RecordedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

/// Keeps what an object of TensorRT reports. Entries are never changed, so that a text can be handed out while another
/// thread reports the next.
pub(crate) struct ErrorRecorder {
    entries: [OnceLock<(ErrorCode, CString)>; CAPACITY],
    /// Reports so far, those that found no place included.
    reported: AtomicUsize,
    /// Entries that TensorRT has cleared. They are hidden from it only.
    cleared: AtomicUsize,
    references: AtomicI32,
}

impl Default for ErrorRecorder {
    fn default() -> Self {
        Self {
            entries: [const { OnceLock::new() }; CAPACITY],
            reported: AtomicUsize::new(0),
            cleared: AtomicUsize::new(0),
            references: AtomicI32::new(0),
        }
    }
}

impl ErrorRecorder {
    /// How many errors have been reported: a mark for [`ErrorRecorder::since`].
    #[must_use]
    pub(crate) fn mark(&self) -> usize {
        self.reported.load(Ordering::Acquire).min(CAPACITY)
    }

    /// The errors after a mark, without those that only say that there is no GPU.
    #[must_use]
    pub(crate) fn since(&self, mark: usize) -> Vec<RecordedError> {
        let entries = self.entries.iter().skip(mark).filter_map(OnceLock::get);
        let errors = entries.map(|(code, text)| RecordedError {
            code: format!("{code:?}"),
            text: text.to_string_lossy().trim().to_owned(),
        });
        errors.filter(|error| !is_noise(&error.text)).collect()
    }

    fn visible(&self, index: i32) -> Option<&(ErrorCode, CString)> {
        let index = usize::try_from(index).ok()?.checked_add(self.cleared.load(Ordering::Acquire))?;
        self.entries.get(index)?.get()
    }
}

/// Whether a text only says that TensorRT found no CUDA driver (error 35) while it was failing for another reason: a
/// build needs none.
pub(crate) fn is_noise(text: &str) -> bool {
    text.contains("catchCudaError") || text.trim_end().ends_with("(cudaError 35)")
}

/// The recorder as `trtx` takes it.
pub(crate) struct Recorder(pub(crate) std::sync::Arc<ErrorRecorder>);

impl RecordError for Recorder {
    fn nb_errors(&self) -> i32 {
        let count = self.0.mark().saturating_sub(self.0.cleared.load(Ordering::Acquire));
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    fn error_code(&self, index: i32) -> ErrorCode {
        self.0.visible(index).map_or(ErrorCode::kUNSPECIFIED_ERROR, |(code, _)| *code)
    }

    fn error_desc(&self, index: i32) -> &CStr {
        self.0.visible(index).map_or(c"", |(_, text)| text)
    }

    fn has_overflowed(&self) -> bool {
        self.0.reported.load(Ordering::Acquire) > CAPACITY
    }

    fn clear(&self) {
        self.0.cleared.store(self.0.mark(), Ordering::Release);
    }

    fn report_error(&self, code: ErrorCode, text: &str) -> bool {
        let index = self.0.reported.fetch_add(1, Ordering::AcqRel);
        if let Some(entry) = self.0.entries.get(index) {
            let text = text.replace('\0', " ");
            // The index is this report's alone.
            let _ = entry.set((code, CString::new(text).unwrap_or_default()));
        }
        false
    }

    fn inc_ref_count(&self) -> i32 {
        self.0.references.fetch_add(1, Ordering::AcqRel) + 1
    }

    fn dec_ref_count(&self) -> i32 {
        self.0.references.fetch_sub(1, Ordering::AcqRel) - 1
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn errors_are_kept_in_order_and_noise_is_left_out() {
        let recorder = Arc::new(ErrorRecorder::default());
        let seam = Recorder(Arc::clone(&recorder));
        seam.report_error(ErrorCode::kINVALID_ARGUMENT, "axis out of range\n");
        seam.report_error(ErrorCode::kINTERNAL_ERROR, "Error Code 1: catchCudaError: (cudaError 35)");
        let mark = recorder.mark();
        seam.report_error(ErrorCode::kINVALID_STATE, "second\0text");
        let texts = |mark| recorder.since(mark).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(0), ["axis out of range (kINVALID_ARGUMENT)", "second text (kINVALID_STATE)"]);
        assert_eq!(texts(mark), ["second text (kINVALID_STATE)"]);
    }

    #[test]
    fn what_tensorrt_clears_is_hidden_from_it_and_not_from_us() {
        let recorder = Arc::new(ErrorRecorder::default());
        let seam = Recorder(Arc::clone(&recorder));
        seam.report_error(ErrorCode::kINVALID_ARGUMENT, "one");
        seam.clear();
        assert_eq!((seam.nb_errors(), seam.error_desc(0)), (0, c""));
        seam.report_error(ErrorCode::kINVALID_STATE, "two");
        assert_eq!((seam.nb_errors(), seam.error_desc(0)), (1, c"two"));
        assert_eq!(recorder.since(0).len(), 2);
    }

    #[test]
    fn more_errors_than_there_is_room_for_overflow() {
        let recorder = Arc::new(ErrorRecorder::default());
        let seam = Recorder(Arc::clone(&recorder));
        for index in 0..=CAPACITY {
            assert!(!seam.has_overflowed(), "at {index}");
            seam.report_error(ErrorCode::kINVALID_ARGUMENT, "again");
        }
        assert!(seam.has_overflowed());
        assert_eq!((recorder.since(0).len(), usize::try_from(seam.nb_errors())), (CAPACITY, Ok(CAPACITY)));
    }
}
