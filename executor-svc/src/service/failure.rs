//! Errors of the executor as statuses: the one place that maps them.

use std::time::Duration;

use roundhouse_backend::BackendError;
use roundhouse_guided::GuideError;
use roundhouse_image_tokens::EncodeError;
use roundhouse_rpc::{Failure, reason};
use roundhouse_sampling::SamplingError;
use roundhouse_store::StoreError;
use roundhouse_text::TextError;
use roundhouse_vision::{Fault, VisionError};
use tonic::Code;

use crate::engine::{FindError, LoadError, UseError};
use crate::images::{ImageError, ImageInputError, WrongPlaceholders};
use crate::scheduler::{GenerateError, SubmitError};
use crate::session::{ArchiveError, KvMemoryExhausted, SessionError};

/// How long a caller that met a full executor should wait.
const BUSY_RETRY: Duration = Duration::from_secs(1);
/// How long a caller should wait before trying again what failed for the network.
const NETWORK_RETRY: Duration = Duration::from_secs(5);

pub(super) fn not_a_key(text: &str) -> Failure {
    Failure::invalid_field("engine_key", format!("{text:?} is no engine key: expected 64 hex digits"))
}

pub(super) fn of_find(error: &FindError) -> Failure {
    let code = match error {
        FindError::NotLoaded { .. } | FindError::NotStored { .. } => Code::NotFound,
        FindError::Unnamed { .. } | FindError::Ambiguous { .. } | FindError::AmbiguousInStore { .. } => {
            Code::InvalidArgument
        }
    };
    Failure::new(code, reason::ENGINE_NOT_LOADED, error.to_string()).at_field("engine")
}

pub(super) fn of_use(error: &UseError) -> Failure {
    match error {
        UseError::Find(error) => of_find(error),
        UseError::Load(error) => of_load(error),
    }
}

pub(super) fn of_load(error: &LoadError) -> Failure {
    let message = error.to_string();
    match error {
        LoadError::Store(error) => of_store(error),
        LoadError::Backend(error) => of_backend(error),
        LoadError::Manifest(_) | LoadError::Text { .. } => {
            Failure::new(Code::DataLoss, reason::CORRUPT_ENGINE, message)
        }
        LoadError::Images { source: ImageInputError::Processor(error), .. } => {
            Failure::new(Code::FailedPrecondition, error.reason(), message)
        }
        LoadError::Images { .. } => Failure::new(Code::DataLoss, reason::CORRUPT_ENGINE, message),
        LoadError::Memory { wanted, used, total, never } => {
            let failure = Failure::new(Code::ResourceExhausted, reason::ENGINE_MEMORY_EXHAUSTED, message)
                .with("wanted_bytes", wanted)
                .with("used_bytes", used)
                .with("total_bytes", total);
            if *never { failure } else { failure.retry_after(BUSY_RETRY) }
        }
        LoadError::Stopped => {
            Failure::new(Code::Unavailable, reason::DRAINING, message).retry_after(NETWORK_RETRY)
        }
        LoadError::Thread(_) | LoadError::Panicked(_) => {
            Failure::new(Code::Internal, reason::INTERNAL, message)
        }
    }
}

fn of_store(error: &StoreError) -> Failure {
    let message = error.to_string();
    match error {
        StoreError::NotFound { .. } => Failure::new(Code::NotFound, reason::ENGINE_NOT_FOUND, message),
        StoreError::DiskFull { path, .. } | StoreError::CacheFull { path, .. } => {
            Failure::new(Code::ResourceExhausted, reason::DISK_FULL, message).with("path", path.display())
        }
        StoreError::Corrupt { .. }
        | StoreError::WrongSize { .. }
        | StoreError::MissingBlob { .. }
        | StoreError::Manifest(_) => Failure::new(Code::DataLoss, reason::CORRUPT_ENGINE, message),
        error if error.is_retryable() => {
            Failure::new(Code::Unavailable, reason::STORAGE_UNAVAILABLE, message).retry_after(NETWORK_RETRY)
        }
        _ => Failure::new(Code::Internal, reason::STORAGE_UNAVAILABLE, message),
    }
}

fn of_backend(error: &BackendError) -> Failure {
    let message = error.to_string();
    match error {
        BackendError::Incompatible { found, needed, .. } => {
            Failure::new(Code::FailedPrecondition, reason::ENGINE_INCOMPATIBLE, message)
                .with("found", found)
                .with("needed", needed)
        }
        BackendError::Unsupported { .. } | BackendError::UnsupportedNodes { .. } => {
            Failure::new(Code::FailedPrecondition, reason::ENGINE_INCOMPATIBLE, message)
        }
        BackendError::InvalidArgument(_) => {
            Failure::new(Code::InvalidArgument, reason::INVALID_FIELD, message)
        }
        BackendError::CacheFull { .. } => {
            Failure::new(Code::InvalidArgument, reason::PROMPT_TOO_LONG, message)
        }
        BackendError::Corrupt { .. }
        | BackendError::Graph(_)
        | BackendError::Manifest(_)
        | BackendError::Weight(_) => Failure::new(Code::DataLoss, reason::CORRUPT_ENGINE, message),
        BackendError::OutOfMemory { needed, free, .. } => {
            Failure::new(Code::ResourceExhausted, reason::DEVICE_MEMORY_EXHAUSTED, message)
                .with("needed_bytes", needed)
                .with("free_bytes", free)
                .retry_after(BUSY_RETRY)
        }
        BackendError::DeviceLost { .. } => Failure::new(Code::Unavailable, reason::DEVICE_LOST, message),
        BackendError::Io { .. } | BackendError::Device { .. } | BackendError::PositionsLost { .. } => {
            Failure::new(Code::Internal, reason::INTERNAL, message)
        }
        BackendError::Cancelled => Failure::new(Code::Cancelled, reason::CANCELLED, message),
    }
}

pub(super) fn of_memory(error: &KvMemoryExhausted) -> Failure {
    Failure::new(Code::ResourceExhausted, reason::KV_MEMORY_EXHAUSTED, error.to_string())
        .with("wanted_bytes", error.wanted)
        .with("used_bytes", error.used)
        .with("total_bytes", error.total)
}

pub(super) fn of_session(error: &SessionError) -> Failure {
    let message = error.to_string();
    match error {
        SessionError::NotFound { .. } => Failure::new(Code::NotFound, reason::SESSION_NOT_FOUND, message),
        SessionError::Overtaken { .. } => Failure::new(Code::Aborted, reason::SESSION_CONFLICT, message),
        SessionError::Beyond { .. } => Failure::invalid_field("num_tokens", message),
        SessionError::Busy { .. } => Failure::new(Code::Aborted, reason::SESSION_BUSY, message),
        SessionError::TooMany { .. } => {
            Failure::new(Code::ResourceExhausted, reason::QUEUE_FULL, message).retry_after(BUSY_RETRY)
        }
    }
}

pub(super) fn of_archive(error: &ArchiveError) -> Failure {
    let message = error.to_string();
    match error {
        ArchiveError::Overtaken { .. } => Failure::new(Code::Aborted, reason::SESSION_CONFLICT, message),
        ArchiveError::Deleted { .. } => Failure::new(Code::NotFound, reason::SESSION_NOT_FOUND, message),
        ArchiveError::Record(_) => Failure::new(Code::DataLoss, reason::CORRUPT_SESSION, message),
        ArchiveError::Timeout(_) => {
            Failure::new(Code::Unavailable, reason::STORAGE_UNAVAILABLE, message).retry_after(NETWORK_RETRY)
        }
        ArchiveError::Store(error) if error.is_retryable() => {
            Failure::new(Code::Unavailable, reason::STORAGE_UNAVAILABLE, message).retry_after(NETWORK_RETRY)
        }
        ArchiveError::Store(_) => Failure::new(Code::Internal, reason::STORAGE_UNAVAILABLE, message),
    }
}

pub(super) fn of_submit(error: &SubmitError) -> Failure {
    let message = error.to_string();
    match error {
        SubmitError::Full { .. } => {
            Failure::new(Code::ResourceExhausted, reason::QUEUE_FULL, message).retry_after(BUSY_RETRY)
        }
        SubmitError::Stopped => {
            Failure::new(Code::Unavailable, reason::DRAINING, message).retry_after(NETWORK_RETRY)
        }
    }
}

pub(super) fn of_text(error: &TextError) -> Failure {
    let message = error.to_string();
    match error {
        TextError::NoChatTemplate => {
            Failure::new(Code::FailedPrecondition, reason::NO_CHAT_TEMPLATE, message)
        }
        TextError::TooManyStopStrings { .. }
        | TextError::StopStringTooLong { .. }
        | TextError::EmptyStopString { .. } => Failure::invalid_field("stopping.stop", message),
        TextError::RefusedByTemplate { .. }
        | TextError::Template { .. }
        | TextError::TemplateBudget
        | TextError::EmptyConversation
        | TextError::EmptyRendering => Failure::invalid_field("messages", message),
        TextError::Encode(_) => Failure::invalid_field("prompt", message),
        _ => Failure::new(Code::Internal, reason::INTERNAL, message),
    }
}

pub(super) fn of_vision(error: &VisionError) -> Failure {
    let code = match error.fault() {
        Fault::Caller => Code::InvalidArgument,
        Fault::Source => Code::Unavailable,
        Fault::Operator => Code::FailedPrecondition,
    };
    let failure = Failure::new(code, error.reason(), error.to_string());
    if code == Code::Unavailable { failure.retry_after(NETWORK_RETRY) } else { failure }
}

pub(super) fn of_image(error: &ImageError) -> Failure {
    let message = error.to_string();
    match error {
        ImageError::Vision(error) => of_vision(error),
        ImageError::TooLong { tokens, room } => {
            Failure::new(Code::InvalidArgument, reason::PROMPT_TOO_LONG, message)
                .with("image_tokens", tokens)
                .with("max_seq_len", room)
        }
        ImageError::Encode(EncodeError::Backend(error)) => of_backend(error),
        ImageError::Encode(_) => Failure::new(Code::Internal, reason::INTERNAL, message),
    }
}

pub(super) fn of_placeholders(error: &WrongPlaceholders) -> Failure {
    Failure::invalid_field("messages", error.to_string())
        .with("placeholders", error.placeholders)
        .with("images", error.images)
}

pub(super) fn of_sampling(error: &SamplingError) -> Failure {
    let field = match error {
        SamplingError::InvalidParameter { field, .. }
        | SamplingError::TooMany { field, .. }
        | SamplingError::NotInVocabulary { field, .. } => format!("sampling.{field}"),
        _ => "sampling".to_owned(),
    };
    Failure::invalid_field(field, error.to_string())
}

pub(super) fn of_guide(error: &GuideError) -> Failure {
    let message = error.to_string();
    match error {
        GuideError::Size { .. } | GuideError::Invalid { .. } => {
            Failure::new(Code::InvalidArgument, reason::INVALID_FIELD, message)
        }
        GuideError::Tokenizer { .. } => {
            Failure::new(Code::FailedPrecondition, reason::NO_GUIDED_OUTPUT, message)
        }
        GuideError::Stuck { .. } => Failure::new(Code::InvalidArgument, reason::NO_TOKEN_ALLOWED, message),
    }
}

pub(super) fn of_generate(error: &GenerateError) -> Failure {
    let message = error.to_string();
    match error {
        GenerateError::DeadlineExceeded { .. } => {
            Failure::new(Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED, message)
        }
        GenerateError::QueueTimeout(_) => {
            Failure::new(Code::ResourceExhausted, reason::QUEUE_TIMEOUT, message).retry_after(BUSY_RETRY)
        }
        GenerateError::Memory(error) => of_memory(error),
        GenerateError::ClientStalled(_) => Failure::new(Code::Aborted, reason::CLIENT_STALLED, message),
        GenerateError::SessionDeleted => Failure::new(Code::Aborted, reason::SESSION_NOT_FOUND, message),
        GenerateError::Unloaded => {
            Failure::new(Code::Unavailable, reason::DRAINING, message).retry_after(NETWORK_RETRY)
        }
        GenerateError::Guide(error) => of_guide(error),
        GenerateError::Sampling(error) if matches!(**error, SamplingError::NoCandidate) => {
            Failure::new(Code::InvalidArgument, reason::NO_TOKEN_ALLOWED, message)
        }
        GenerateError::Model(error)
            if matches!(**error, BackendError::OutOfMemory { .. } | BackendError::DeviceLost { .. }) =>
        {
            of_backend(error)
        }
        // The request was checked before it was taken: what the model refuses now is a fault here.
        GenerateError::Model(_) | GenerateError::Sampling(_) | GenerateError::Text(_) => {
            Failure::new(Code::Internal, reason::INTERNAL, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_vision::ImageFormat;

    use super::*;

    #[test]
    fn images_fail_with_the_reasons_of_the_interface() {
        let (format, what) = (ImageFormat::Png, String::new);
        let second = Duration::from_secs(1);
        let shape = VisionError::UnsupportedShape { width: 1, height: 1, what: what() };
        let caller = [
            (VisionError::Empty, reason::IMAGE_EMPTY),
            (VisionError::NoPixels { width: 0, height: 1 }, reason::IMAGE_EMPTY),
            (VisionError::UnknownFormat, reason::IMAGE_FORMAT_UNSUPPORTED),
            (VisionError::Unsupported { format, what: what() }, reason::IMAGE_FORMAT_UNSUPPORTED),
            (VisionError::Truncated { format, what: what() }, reason::IMAGE_TRUNCATED),
            (VisionError::Corrupt { format, what: what() }, reason::IMAGE_CORRUPT),
            (VisionError::TooLarge { what: "pixels", found: 2, limit: 1 }, reason::IMAGE_TOO_LARGE),
            (VisionError::DecodeTimeout { limit: second }, reason::IMAGE_DECODE_TIMEOUT),
            (shape, reason::IMAGE_SHAPE_UNSUPPORTED),
            (VisionError::RefusedSource { what: what() }, reason::IMAGE_SOURCE_REFUSED),
            (VisionError::InvalidSource { what: what() }, reason::IMAGE_SOURCE_INVALID),
            (VisionError::NotFound { what: what() }, reason::IMAGE_NOT_FOUND),
        ];
        let source = [
            (VisionError::SourceFailed { what: what() }, reason::IMAGE_SOURCE_UNAVAILABLE),
            (VisionError::FetchTimeout { limit: second }, reason::IMAGE_FETCH_TIMEOUT),
        ];
        let operator = [
            (VisionError::InvalidPolicy { what: what() }, reason::IMAGE_SOURCES_MISCONFIGURED),
            (VisionError::UnsupportedProcessor { what: what() }, reason::IMAGE_PROCESSOR_UNSUPPORTED),
        ];
        let with = |code: Code| move |(error, reason): (VisionError, &'static str)| (error, reason, code);
        let all = caller.into_iter().map(with(Code::InvalidArgument));
        let all = all.chain(source.into_iter().map(with(Code::Unavailable)));
        for (error, expected, code) in all.chain(operator.into_iter().map(with(Code::FailedPrecondition))) {
            assert_eq!(error.reason(), expected);
            assert_eq!(tonic::Status::from(of_vision(&error)).code(), code, "{expected}");
        }
    }
}
