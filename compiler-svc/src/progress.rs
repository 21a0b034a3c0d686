//! Progress of the parts of a compilation, told to its operation.

use std::sync::Arc;

use roundhouse_backend::{BackendError, BuildProgress};
use roundhouse_hub::{Cancelled, FetchProgress, FetchStage};
use roundhouse_proto::compiler::Stage;
use roundhouse_store::{TransferProgress, TransferUpdate};

use crate::jobs::Operation;

/// Of fetching a checkpoint.
pub(crate) struct DownloadProgress(Arc<Operation>);

impl DownloadProgress {
    pub(crate) fn new(operation: Arc<Operation>) -> Self {
        Self(operation)
    }
}

impl FetchProgress for DownloadProgress {
    fn bytes(&self, _stage: FetchStage, done: u64, total: u64) -> Result<(), Cancelled> {
        if self.0.cancellation().is_cancelled() {
            return Err(Cancelled);
        }
        self.0.report(Stage::Download, done, Some(total));
        Ok(())
    }

    fn log(&self, line: &str) {
        self.0.log(line);
    }
}

/// Of building an engine.
pub(crate) struct OperationProgress(Arc<Operation>);

impl OperationProgress {
    pub(crate) fn new(operation: Arc<Operation>) -> Self {
        Self(operation)
    }
}

impl BuildProgress for OperationProgress {
    fn bytes(&self, done: u64, total: u64) -> Result<(), BackendError> {
        if self.0.cancellation().is_cancelled() {
            return Err(BackendError::Cancelled);
        }
        self.0.report(Stage::Build, done, Some(total));
        Ok(())
    }

    fn log(&self, line: &str) {
        self.0.log(line);
    }
}

/// Of calibrating weights.
pub(crate) struct CalibrationProgress(Arc<Operation>);

impl CalibrationProgress {
    pub(crate) fn new(operation: Arc<Operation>) -> Self {
        Self(operation)
    }
}

impl roundhouse_calibration::Progress for CalibrationProgress {
    fn is_cancelled(&self) -> bool {
        self.0.cancellation().is_cancelled()
    }

    fn done(&self, parts: usize, all: usize) {
        self.0.log(format!("calibrated {parts} of {all} parts of the model"));
    }
}

/// Of uploading an engine.
pub(crate) struct UploadProgress(Arc<Operation>);

impl UploadProgress {
    pub(crate) fn new(operation: Arc<Operation>) -> Self {
        Self(operation)
    }
}

impl TransferProgress for UploadProgress {
    fn update(&self, update: &TransferUpdate<'_>) {
        self.0.report(Stage::Upload, update.done, Some(update.total));
    }
}
