//! Errors of a compilation as statuses: the one place that maps them.

use std::time::Duration;

use roundhouse_backend::{BackendError, WeightError};
use roundhouse_hub::HubError;
use roundhouse_models::ModelError;
use roundhouse_rpc::{Failure, reason};
use roundhouse_store::StoreError;
use tonic::Code;

use crate::pipeline::CompileError;

/// How long a caller should wait before trying again what failed for the network.
const NETWORK_RETRY: Duration = Duration::from_secs(5);

pub(super) fn of_compile(error: &CompileError) -> Failure {
    let message = error.to_string();
    match error {
        CompileError::Hub(error) => of_hub(error),
        CompileError::Model(error) => of_model(error),
        CompileError::Backend(error) => of_backend(error),
        CompileError::Store(error) => of_store(error),
        CompileError::Lowering(_) => {
            Failure::new(Code::FailedPrecondition, reason::UNSUPPORTED_MODEL, message)
        }
        CompileError::NoBuilder { .. } => Failure::invalid_field("options.backend", message),
        CompileError::Option { field, .. } => Failure::invalid_field(format!("options.{field}"), message),
        CompileError::Io { source, path } => of_io(source, message).with("path", path),
        CompileError::Json(_) => Failure::new(Code::Internal, reason::INTERNAL, message),
        CompileError::Cancelled => Failure::new(Code::Cancelled, reason::CANCELLED, message),
    }
}

pub(super) fn of_hub(error: &HubError) -> Failure {
    let message = error.to_string();
    match error {
        HubError::InvalidSource { .. } | HubError::LocalPathsForbidden { .. } => {
            Failure::invalid_field("model", message)
        }
        HubError::PathNotFound { .. }
        | HubError::ModelNotFound { .. }
        | HubError::RevisionNotFound { .. } => Failure::new(Code::NotFound, reason::MODEL_NOT_FOUND, message),
        HubError::AccessDenied { .. } => {
            Failure::new(Code::PermissionDenied, reason::MODEL_ACCESS_DENIED, message)
        }
        HubError::Offline { .. } => {
            Failure::new(Code::FailedPrecondition, reason::STORAGE_UNAVAILABLE, message)
        }
        HubError::Network { .. } | HubError::UnexpectedAnswer { .. } | HubError::ObjectStore { .. } => {
            Failure::new(Code::Unavailable, reason::STORAGE_UNAVAILABLE, message).retry_after(NETWORK_RETRY)
        }
        HubError::MissingFile { file, .. } => {
            Failure::new(Code::FailedPrecondition, reason::CORRUPT_CHECKPOINT, message).with("file", file)
        }
        HubError::MissingTokenizer { .. } => {
            Failure::new(Code::FailedPrecondition, reason::CORRUPT_CHECKPOINT, message)
                .with("file", "tokenizer.json")
        }
        HubError::Unsupported { .. } => {
            Failure::new(Code::FailedPrecondition, reason::UNSUPPORTED_MODEL, message)
        }
        HubError::Corrupt { path, .. } => {
            Failure::new(Code::DataLoss, reason::CORRUPT_CHECKPOINT, message).with("file", path.display())
        }
        HubError::Io { source, path } => of_io(source, message).with("path", path.display()),
        HubError::Cancelled => Failure::new(Code::Cancelled, reason::CANCELLED, message),
    }
}

fn of_model(error: &ModelError) -> Failure {
    match error {
        ModelError::Weight(error) => of_weight(error),
        ModelError::UnsupportedArchitecture { .. } | ModelError::Config(_) => {
            Failure::new(Code::FailedPrecondition, reason::UNSUPPORTED_MODEL, error.to_string())
        }
        ModelError::MissingHead { .. } | ModelError::UnusedTensors { .. } => {
            Failure::new(Code::FailedPrecondition, reason::CORRUPT_CHECKPOINT, error.to_string())
        }
        ModelError::Graph(_) => Failure::new(Code::Internal, reason::INTERNAL, error.to_string()),
    }
}

fn of_weight(error: &WeightError) -> Failure {
    let code = match error {
        WeightError::Corrupt { .. } => Code::DataLoss,
        WeightError::NotFound { .. } | WeightError::Shape { .. } => Code::FailedPrecondition,
    };
    let (WeightError::Corrupt { name, .. }
    | WeightError::NotFound { name }
    | WeightError::Shape { name, .. }) = error;
    Failure::new(code, reason::CORRUPT_CHECKPOINT, error.to_string()).with("tensor", name)
}

fn of_backend(error: &BackendError) -> Failure {
    let message = error.to_string();
    match error {
        BackendError::Weight(error) => of_weight(error),
        BackendError::Io { source, path } => of_io(source, message).with("path", path),
        BackendError::Unsupported { .. } => {
            Failure::new(Code::FailedPrecondition, reason::UNSUPPORTED_MODEL, message)
        }
        BackendError::Cancelled => Failure::new(Code::Cancelled, reason::CANCELLED, message),
        BackendError::InvalidArgument(_) | BackendError::CacheFull { .. } => {
            Failure::new(Code::InvalidArgument, reason::INVALID_FIELD, message)
        }
        BackendError::Incompatible { .. } => {
            Failure::new(Code::FailedPrecondition, reason::ENGINE_INCOMPATIBLE, message)
        }
        BackendError::Corrupt { .. }
        | BackendError::Graph(_)
        | BackendError::Manifest(_)
        | BackendError::Device { .. } => Failure::new(Code::Internal, reason::INTERNAL, message),
    }
}

pub(super) fn of_store(error: &StoreError) -> Failure {
    let message = error.to_string();
    match error {
        StoreError::NotFound { .. } => Failure::new(Code::NotFound, reason::ENGINE_NOT_FOUND, message),
        StoreError::InvalidArgument { .. } => {
            Failure::new(Code::InvalidArgument, reason::INVALID_FIELD, message)
        }
        StoreError::DiskFull { path, .. } => {
            Failure::new(Code::ResourceExhausted, reason::DISK_FULL, message).with("path", path.display())
        }
        StoreError::Corrupt { .. } | StoreError::WrongSize { .. } | StoreError::MissingBlob { .. } => {
            Failure::new(Code::DataLoss, reason::CORRUPT_ENGINE, message)
        }
        error if error.is_retryable() => {
            Failure::new(Code::Unavailable, reason::STORAGE_UNAVAILABLE, message).retry_after(NETWORK_RETRY)
        }
        _ => Failure::new(Code::Internal, reason::STORAGE_UNAVAILABLE, message),
    }
}

fn of_io(error: &std::io::Error, message: String) -> Failure {
    match error.kind() {
        std::io::ErrorKind::StorageFull => Failure::new(Code::ResourceExhausted, reason::DISK_FULL, message),
        _ => Failure::new(Code::Internal, reason::INTERNAL, message),
    }
}
