//! Failures as statuses with `google.rpc` details.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, PreconditionViolation, StatusExt as _};

/// The `domain` of every `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "roundhouse";

/// The `reason`s of `ErrorInfo`: part of the interface, for programs to match.
pub mod reason {
    /// A field of the request is missing or wrong; `BadRequest` names it.
    pub const INVALID_FIELD: &str = "INVALID_FIELD";
    /// No model of this ID, path or URL.
    pub const MODEL_NOT_FOUND: &str = "MODEL_NOT_FOUND";
    /// The model is gated or private and the compiler's credentials do not reach it.
    pub const MODEL_ACCESS_DENIED: &str = "MODEL_ACCESS_DENIED";
    /// No file builds this architecture, or it has a config value that none handles; or the backend cannot run it, and
    /// `PreconditionFailure` lists the nodes.
    pub const UNSUPPORTED_MODEL: &str = "UNSUPPORTED_MODEL";
    /// The backend does not build with these options: a dtype that a target lacks, a target that its library lacks, ….
    pub const UNSUPPORTED_OPTIONS: &str = "UNSUPPORTED_OPTIONS";
    /// The service knows the backend and lacks what it needs, such as a library or a GPU.
    pub const BACKEND_UNAVAILABLE: &str = "BACKEND_UNAVAILABLE";
    /// The checkpoint's files are broken or incomplete.
    pub const CORRUPT_CHECKPOINT: &str = "CORRUPT_CHECKPOINT";
    /// No engine of this key.
    pub const ENGINE_NOT_FOUND: &str = "ENGINE_NOT_FOUND";
    /// An engine name fits none or several of the loaded engines.
    pub const ENGINE_NOT_LOADED: &str = "ENGINE_NOT_LOADED";
    /// The engine was built for another target.
    pub const ENGINE_INCOMPATIBLE: &str = "ENGINE_INCOMPATIBLE";
    /// The engine's blobs are broken.
    pub const CORRUPT_ENGINE: &str = "CORRUPT_ENGINE";
    /// No room for another engine beside those in use.
    pub const ENGINE_MEMORY_EXHAUSTED: &str = "ENGINE_MEMORY_EXHAUSTED";
    /// The memory of a GPU is taken, by this process or another one.
    pub const DEVICE_MEMORY_EXHAUSTED: &str = "DEVICE_MEMORY_EXHAUSTED";
    /// The GPU, or the executor's use of it, is broken: the executor's health is NOT_SERVING, and another one should be asked.
    pub const DEVICE_LOST: &str = "DEVICE_LOST";
    /// No room on a disk.
    pub const DISK_FULL: &str = "DISK_FULL";
    /// The object store or the hub cannot be reached.
    pub const STORAGE_UNAVAILABLE: &str = "STORAGE_UNAVAILABLE";
    /// The queue is full.
    pub const QUEUE_FULL: &str = "QUEUE_FULL";
    /// The request waited for as long as one may.
    pub const QUEUE_TIMEOUT: &str = "QUEUE_TIMEOUT";
    /// No room for another KV cache.
    pub const KV_MEMORY_EXHAUSTED: &str = "KV_MEMORY_EXHAUSTED";
    /// The prompt does not fit the cache.
    pub const PROMPT_TOO_LONG: &str = "PROMPT_TOO_LONG";
    /// The engine takes no images, or the session is stored and can have none.
    pub const IMAGES_NOT_SUPPORTED: &str = "IMAGES_NOT_SUPPORTED";
    /// An image without bytes or pixels.
    pub const IMAGE_EMPTY: &str = "IMAGE_EMPTY";
    /// No PNG, JPEG, WebP or GIF, or a kind of one that is not decoded.
    pub const IMAGE_FORMAT_UNSUPPORTED: &str = "IMAGE_FORMAT_UNSUPPORTED";
    /// The image's bytes end before it does.
    pub const IMAGE_TRUNCATED: &str = "IMAGE_TRUNCATED";
    /// The image's bytes are not what its format allows.
    pub const IMAGE_CORRUPT: &str = "IMAGE_CORRUPT";
    /// The image has more bytes or pixels than are taken, or needs more memory.
    pub const IMAGE_TOO_LARGE: &str = "IMAGE_TOO_LARGE";
    /// The image was not decoded in time.
    pub const IMAGE_DECODE_TIMEOUT: &str = "IMAGE_DECODE_TIMEOUT";
    /// The model does not take images of this width and height.
    pub const IMAGE_SHAPE_UNSUPPORTED: &str = "IMAGE_SHAPE_UNSUPPORTED";
    /// The executor's configuration does not allow the image's source.
    pub const IMAGE_SOURCE_REFUSED: &str = "IMAGE_SOURCE_REFUSED";
    /// The image's URL is none.
    pub const IMAGE_SOURCE_INVALID: &str = "IMAGE_SOURCE_INVALID";
    /// The image's source has no such image, or denies it.
    pub const IMAGE_NOT_FOUND: &str = "IMAGE_NOT_FOUND";
    /// The image's source does not answer as it should.
    pub const IMAGE_SOURCE_UNAVAILABLE: &str = "IMAGE_SOURCE_UNAVAILABLE";
    /// The image's source did not answer in time.
    pub const IMAGE_FETCH_TIMEOUT: &str = "IMAGE_FETCH_TIMEOUT";
    /// The executor's configuration of image sources is wrong.
    pub const IMAGE_SOURCES_MISCONFIGURED: &str = "IMAGE_SOURCES_MISCONFIGURED";
    /// The engine's `preprocessor_config.json` asks for what is not reproduced.
    pub const IMAGE_PROCESSOR_UNSUPPORTED: &str = "IMAGE_PROCESSOR_UNSUPPORTED";
    /// The model has no chat template.
    pub const NO_CHAT_TEMPLATE: &str = "NO_CHAT_TEMPLATE";
    /// The model's tokenizer does not let its output be guided by a grammar.
    pub const NO_GUIDED_OUTPUT: &str = "NO_GUIDED_OUTPUT";
    /// What the request allows leaves no token to go on with, or its grammar takes too much work.
    pub const NO_TOKEN_ALLOWED: &str = "NO_TOKEN_ALLOWED";
    /// No session of this ID, or it has expired.
    pub const SESSION_NOT_FOUND: &str = "SESSION_NOT_FOUND";
    /// The session went on in another executor: its history is that one's.
    pub const SESSION_CONFLICT: &str = "SESSION_CONFLICT";
    /// What is stored of the session cannot be read.
    pub const CORRUPT_SESSION: &str = "CORRUPT_SESSION";
    /// Another generation runs in the session.
    pub const SESSION_BUSY: &str = "SESSION_BUSY";
    /// Another request of this ID runs.
    pub const REQUEST_ID_IN_USE: &str = "REQUEST_ID_IN_USE";
    /// No operation of this name.
    pub const OPERATION_NOT_FOUND: &str = "OPERATION_NOT_FOUND";
    /// The operation is still running.
    pub const OPERATION_RUNNING: &str = "OPERATION_RUNNING";
    /// The operation was cancelled.
    pub const CANCELLED: &str = "CANCELLED";
    /// The deadline passed.
    pub const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";
    /// The client read nothing for too long.
    pub const CLIENT_STALLED: &str = "CLIENT_STALLED";
    /// The service is going down.
    pub const DRAINING: &str = "DRAINING";
    /// A fault of the service.
    pub const INTERNAL: &str = "INTERNAL";
}

/// A failure on its way to becoming a [`Status`].
#[derive(Debug, Clone)]
pub struct Failure {
    /// Boxed, because every result on the way carries its size.
    parts: Box<Parts>,
}

#[derive(Debug, Clone)]
struct Parts {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: HashMap<String, String>,
    field: Option<String>,
    preconditions: Vec<PreconditionViolation>,
    retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of this code with an `ErrorInfo` of this reason.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        let parts = Parts {
            code,
            reason,
            message,
            metadata: HashMap::new(),
            field: None,
            preconditions: Vec::new(),
            retry_after: None,
        };
        Self { parts: Box::new(parts) }
    }

    /// INVALID_ARGUMENT with a `BadRequest` violation of `field`.
    pub fn invalid_field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, reason::INVALID_FIELD, message).at_field(field)
    }

    /// Adds a key and value to `ErrorInfo.metadata`.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.parts.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Names the field at fault, in a `BadRequest` violation.
    #[must_use]
    pub fn at_field(mut self, field: impl Into<String>) -> Self {
        self.parts.field = Some(field.into());
        self
    }

    /// Adds a violation to `PreconditionFailure`: its kind, an UPPER_SNAKE constant, what is at fault, and why.
    #[must_use]
    pub fn precondition(
        mut self,
        kind: &'static str,
        subject: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        self.parts.preconditions.push(PreconditionViolation::new(kind, subject, description));
        self
    }

    /// Adds a `RetryInfo`.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.parts.retry_after = Some(delay);
        self
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let Parts { code, reason, message, metadata, field, preconditions, retry_after } = *failure.parts;
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, ERROR_DOMAIN, metadata);
        if let Some(field) = field {
            details.add_bad_request_violation(field, message.clone());
        }
        if !preconditions.is_empty() {
            details.set_precondition_failure(preconditions);
        }
        if let Some(delay) = retry_after {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(code, message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_its_reason_field_and_delay() {
        let status = Status::from(
            Failure::invalid_field("sampling.top_p", "top_p must be in (0, 1], found 3")
                .with("found", 3)
                .retry_after(Duration::from_secs(2)),
        );
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason::INVALID_FIELD, ERROR_DOMAIN));
        assert_eq!(info.metadata.get("found").map(String::as_str), Some("3"));
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "sampling.top_p");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(2)));
        assert!(details.precondition_failure().is_none());
    }

    #[test]
    fn a_failure_lists_every_precondition() {
        let failure = Failure::new(Code::FailedPrecondition, reason::UNSUPPORTED_MODEL, "two nodes");
        let status = Status::from(failure.precondition("UNSUPPORTED_NODE", "a", "no").precondition(
            "UNSUPPORTED_NODE",
            "b",
            "nor",
        ));
        let details = status.get_error_details();
        let violations = &details.precondition_failure().unwrap().violations;
        let seen: Vec<_> = violations
            .iter()
            .map(|violation| (violation.subject.as_str(), violation.description.as_str()))
            .collect();
        assert_eq!(seen, [("a", "no"), ("b", "nor")]);
        assert!(violations.iter().all(|violation| violation.r#type == "UNSUPPORTED_NODE"));
    }
}
