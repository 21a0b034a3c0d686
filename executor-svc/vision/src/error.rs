//! What can go wrong between a request's image and the values that a vision tower takes.

use std::time::Duration;

/// An error of this crate, by what it means to the caller.
///
/// Its text may be shown to whoever sent the image: it names no address that a host name stood for, no path and no
/// credential.
#[derive(Debug, thiserror::Error)]
pub enum VisionError {
    /// There are no bytes.
    #[error("the image is empty")]
    Empty,
    /// The bytes begin as no format does that is decoded.
    #[error("the image is no PNG, JPEG, WebP or GIF")]
    UnknownFormat,
    /// The format is known and this kind of it is not decoded.
    #[error("{format}: {what} is not supported")]
    Unsupported {
        /// The image's format.
        format: ImageFormat,
        /// The kind, in the words of the format.
        what: String,
    },
    /// The bytes end before the image does.
    #[error("the {format} is truncated: {what}")]
    Truncated {
        /// The image's format.
        format: ImageFormat,
        /// Where it ended.
        what: String,
    },
    /// The bytes are not what the format allows.
    #[error("the {format} is corrupt: {what}")]
    Corrupt {
        /// The image's format.
        format: ImageFormat,
        /// Where and how.
        what: String,
    },
    /// A side of the image is 0.
    #[error("the image has {width}×{height} pixels: nothing to see")]
    NoPixels {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
    },
    /// One of [`crate::ImageLimits`] is passed.
    #[error("the image has {found} {what}; the limit is {limit}")]
    TooLarge {
        /// Of what there is too much.
        what: &'static str,
        /// How much of it the image has.
        found: u64,
        /// How much it may have.
        limit: u64,
    },
    /// Decoding took longer than it may.
    #[error("the image was not decoded within {} ms", limit.as_millis())]
    DecodeTimeout {
        /// How long it may take.
        limit: Duration,
    },
    /// The model's processor does not take images of this shape.
    #[error("the image has {width}×{height} pixels: {what}")]
    UnsupportedShape {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// What the processor takes.
        what: String,
    },
    /// A source that no configuration allows, or that this one does not.
    #[error("the image's source is refused: {what}")]
    RefusedSource {
        /// Which rule refused it.
        what: String,
    },
    /// A source that cannot be read as one.
    #[error("the image's source is invalid: {what}")]
    InvalidSource {
        /// What is wrong with it.
        what: String,
    },
    /// The source has no such image, or denies it.
    #[error("the image cannot be had: {what}")]
    NotFound {
        /// What the source said.
        what: String,
    },
    /// The source does not answer as it should: worth another try.
    #[error("the image's source failed: {what}")]
    SourceFailed {
        /// What it said or did.
        what: String,
    },
    /// The source took longer than it may.
    #[error("the image was not fetched within {} ms", limit.as_millis())]
    FetchTimeout {
        /// How long it may take.
        limit: Duration,
    },
    /// The configuration of fetching is wrong.
    #[error("the configuration of image sources is wrong: {what}")]
    InvalidPolicy {
        /// What is wrong.
        what: String,
    },
    /// preprocessor_config.json asks for what is not reproduced here, or contradicts itself.
    #[error("preprocessor_config.json: {what}")]
    UnsupportedProcessor {
        /// The field, what it says and what is supported.
        what: String,
    },
}

/// A format that is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// Portable Network Graphics.
    Png,
    /// JPEG, baseline and progressive.
    Jpeg,
    /// WebP, lossy and lossless.
    WebP,
    /// GIF, its first frame.
    Gif,
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
        })
    }
}

/// Who can do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Who sent the image: another image or source is needed.
    Caller,
    /// The source, which may answer later.
    Source,
    /// Who runs the service: a configuration or a checkpoint is wrong.
    Operator,
}

impl VisionError {
    /// The `reason` for `google.rpc.ErrorInfo`: part of the interface, for programs to match.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty | Self::NoPixels { .. } => "IMAGE_EMPTY",
            Self::UnknownFormat | Self::Unsupported { .. } => "IMAGE_FORMAT_UNSUPPORTED",
            Self::Truncated { .. } => "IMAGE_TRUNCATED",
            Self::Corrupt { .. } => "IMAGE_CORRUPT",
            Self::TooLarge { .. } => "IMAGE_TOO_LARGE",
            Self::DecodeTimeout { .. } => "IMAGE_DECODE_TIMEOUT",
            Self::UnsupportedShape { .. } => "IMAGE_SHAPE_UNSUPPORTED",
            Self::RefusedSource { .. } => "IMAGE_SOURCE_REFUSED",
            Self::InvalidSource { .. } => "IMAGE_SOURCE_INVALID",
            Self::NotFound { .. } => "IMAGE_NOT_FOUND",
            Self::SourceFailed { .. } => "IMAGE_SOURCE_UNAVAILABLE",
            Self::FetchTimeout { .. } => "IMAGE_FETCH_TIMEOUT",
            Self::InvalidPolicy { .. } => "IMAGE_SOURCES_MISCONFIGURED",
            Self::UnsupportedProcessor { .. } => "IMAGE_PROCESSOR_UNSUPPORTED",
        }
    }

    /// Who can do something about it: INVALID_ARGUMENT, UNAVAILABLE and FAILED_PRECONDITION, in this order.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::SourceFailed { .. } | Self::FetchTimeout { .. } => Fault::Source,
            Self::InvalidPolicy { .. } | Self::UnsupportedProcessor { .. } => Fault::Operator,
            _ => Fault::Caller,
        }
    }
}
