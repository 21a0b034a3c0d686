//! Errors of a compilation as statuses: the one place that maps them.

use std::time::Duration;

use roundhouse_backend::{BackendError, WeightError};
use roundhouse_calibration::CalibrationError;
use roundhouse_hub::HubError;
use roundhouse_models::ModelError;
use roundhouse_rpc::{Failure, reason};
use roundhouse_store::StoreError;
use tonic::Code;

use crate::backends::NoBuilder;
use crate::pipeline::CompileError;

/// How long a caller should wait before trying again what failed for the network.
const NETWORK_RETRY: Duration = Duration::from_secs(5);

/// The type of a `PreconditionFailure` violation: the subject is a node of the graph, the description its op and why the
/// backend cannot run it.
const UNSUPPORTED_NODE: &str = "UNSUPPORTED_NODE";

pub(super) fn of_compile(error: &CompileError) -> Failure {
    let message = error.to_string();
    match error {
        CompileError::Hub(error) => of_hub(error),
        CompileError::Model(error) => of_model(error),
        CompileError::Backend(error) => of_backend(error),
        CompileError::Calibration(error) => of_calibration(error),
        CompileError::Options(error) => of_options(error),
        CompileError::Store(error) => of_store(error),
        CompileError::Lowering(_) => {
            Failure::new(Code::FailedPrecondition, reason::UNSUPPORTED_MODEL, message)
        }
        CompileError::NoBuilder(NoBuilder::Unavailable { backend, .. }) => {
            Failure::new(Code::FailedPrecondition, reason::BACKEND_UNAVAILABLE, message)
                .with("backend", backend)
        }
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

fn of_calibration(error: &CalibrationError) -> Failure {
    let message = error.to_string();
    match error {
        CalibrationError::Backend(error) => of_backend(error),
        CalibrationError::Weight(error) => of_weight(error),
        CalibrationError::Io { source, path } => of_io(source, message).with("path", path),
        CalibrationError::Lowering(_) | CalibrationError::Sampling(_) => {
            Failure::new(Code::FailedPrecondition, reason::UNSUPPORTED_MODEL, message)
        }
        CalibrationError::Graph(_) | CalibrationError::Json(_) => {
            Failure::new(Code::Internal, reason::INTERNAL, message)
        }
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

fn of_options(error: &BackendError) -> Failure {
    let message = error.to_string();
    match error {
        BackendError::InvalidArgument(_) => Failure::invalid_field("options", message),
        BackendError::Unsupported { .. } => {
            Failure::new(Code::FailedPrecondition, reason::UNSUPPORTED_OPTIONS, message).at_field("options")
        }
        error => of_backend(error),
    }
}

fn of_backend(error: &BackendError) -> Failure {
    let message = error.to_string();
    match error {
        BackendError::Weight(error) => of_weight(error),
        BackendError::Io { source, path } => of_io(source, message).with("path", path),
        BackendError::Unsupported { .. } => {
            Failure::new(Code::FailedPrecondition, reason::UNSUPPORTED_MODEL, message)
        }
        BackendError::UnsupportedNodes { nodes, .. } => {
            let failure = Failure::new(Code::FailedPrecondition, reason::UNSUPPORTED_MODEL, message);
            nodes.iter().fold(failure, |failure, node| {
                let description = format!("{}: {}", node.op, node.reason);
                failure.precondition(UNSUPPORTED_NODE, node.node.as_str(), description)
            })
        }
        BackendError::Cancelled => Failure::new(Code::Cancelled, reason::CANCELLED, message),
        BackendError::InvalidArgument(_) | BackendError::CacheFull { .. } => {
            Failure::new(Code::InvalidArgument, reason::INVALID_FIELD, message)
        }
        BackendError::Incompatible { .. } => {
            Failure::new(Code::FailedPrecondition, reason::ENGINE_INCOMPATIBLE, message)
        }
        BackendError::OutOfMemory { .. } => {
            Failure::new(Code::ResourceExhausted, reason::DEVICE_MEMORY_EXHAUSTED, message)
        }
        BackendError::DeviceLost { .. } => Failure::new(Code::Unavailable, reason::DEVICE_LOST, message),
        BackendError::Corrupt { .. }
        | BackendError::Graph(_)
        | BackendError::Manifest(_)
        | BackendError::PositionsLost { .. }
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

#[cfg(test)]
mod tests {
    use roundhouse_backend::UnsupportedNode;
    use tonic::Status;
    use tonic_types::StatusExt as _;

    use super::*;

    #[test]
    fn every_node_that_a_backend_cannot_run_is_listed() {
        let node = |node: &str, op: &str| UnsupportedNode {
            node: node.to_owned(),
            op: op.to_owned(),
            reason: "no converter".to_owned(),
        };
        let nodes = vec![node("layers.0.a", "softmax"), node("layers.1.b", "gather")];
        let error = CompileError::Backend(BackendError::UnsupportedNodes { backend: "tensorrt", nodes });
        let status = Status::from(of_compile(&error));
        assert_eq!(status.code(), Code::FailedPrecondition);
        for part in ["tensorrt", "layers.0.a (softmax): no converter", "layers.1.b (gather): no converter"] {
            assert!(status.message().contains(part), "{status}");
        }
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, reason::UNSUPPORTED_MODEL);
        let violations = &details.precondition_failure().unwrap().violations;
        let found: Vec<_> = violations
            .iter()
            .map(|violation| {
                (violation.r#type.as_str(), violation.subject.as_str(), violation.description.as_str())
            })
            .collect();
        assert_eq!(
            found,
            [
                (UNSUPPORTED_NODE, "layers.0.a", "softmax: no converter"),
                (UNSUPPORTED_NODE, "layers.1.b", "gather: no converter"),
            ]
        );
    }

    #[test]
    fn options_that_a_backend_refuses_are_told_from_a_model_that_it_refuses() {
        let unsupported = || BackendError::Unsupported { backend: "tensorrt", what: "sm_90".to_owned() };
        let reason_of = |error| {
            let status = Status::from(of_compile(&error));
            (status.code(), status.get_error_details().error_info().unwrap().reason.clone())
        };
        assert_eq!(
            reason_of(CompileError::Options(unsupported())),
            (Code::FailedPrecondition, reason::UNSUPPORTED_OPTIONS.to_owned())
        );
        assert_eq!(
            reason_of(CompileError::Backend(unsupported())),
            (Code::FailedPrecondition, reason::UNSUPPORTED_MODEL.to_owned())
        );
        assert_eq!(
            reason_of(CompileError::Options(BackendError::InvalidArgument("x".to_owned()))),
            (Code::InvalidArgument, reason::INVALID_FIELD.to_owned())
        );
    }
}
