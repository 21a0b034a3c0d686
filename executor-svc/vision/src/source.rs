//! Where a request says that an image is.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use url::Url;

use crate::VisionError;

/// Longer URLs are refused, `data:` URLs aside.
const MAX_URL_BYTES: usize = 8192;

/// The schemes of object stores.
const OBJECT_STORE_SCHEMES: [&str; 9] = ["s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "r2"];

/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Where a request says that an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// In the request itself.
    Bytes(Bytes),
    /// In a `data:` URL of the request: `data:[image/…][;base64],…`.
    Data(String),
    /// An object of a store, such as `s3://bucket/photo.jpg`.
    Object(Url),
    /// On the web: `http` or `https`.
    Web(Url),
}

impl ImageSource {
    /// The source that a URL names. It is not looked at whether it may be used: [`crate::Fetcher::fetch`] does.
    ///
    /// # Errors
    /// [`VisionError::RefusedSource`] for a local file, by URL or by path, and for any other scheme;
    /// [`VisionError::InvalidSource`] for what is no URL.
    pub fn from_url(text: &str) -> Result<Self, VisionError> {
        let text = text.trim();
        if text.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:")) {
            return Ok(Self::Data(text.to_owned()));
        }
        if text.len() > MAX_URL_BYTES {
            return Err(invalid(format!("a URL of more than {MAX_URL_BYTES} bytes")));
        }
        let url = Url::parse(text).map_err(|error| match error {
            url::ParseError::RelativeUrlWithoutBase => refused(
                "a path is not taken, only bytes and URLs: send the image's bytes, or a data: URL".to_owned(),
            ),
            error => invalid(format!("it is no URL: {error}")),
        })?;
        match url.scheme() {
            "http" | "https" => Ok(Self::Web(url)),
            "file" => Err(refused("local files (file:) are not read: send the image's bytes".to_owned())),
            scheme if OBJECT_STORE_SCHEMES.contains(&scheme) => Ok(Self::Object(url)),
            // A drive of Windows looks like one.
            scheme if scheme.len() == 1 => {
                Err(refused("a path is not taken, only bytes and URLs".to_owned()))
            }
            scheme => Err(refused(format!("URLs of scheme {scheme:?} are not read"))),
        }
    }
}

/// The bytes of a `data:` URL (RFC 2397).
///
/// # Errors
/// [`VisionError::InvalidSource`], or [`VisionError::TooLarge`] before anything is decoded.
pub(crate) fn data_url(text: &str, max_bytes: usize) -> Result<Bytes, VisionError> {
    let (header, data) = text
        .get(5..)
        .and_then(|rest| rest.split_once(','))
        .ok_or_else(|| invalid("a data: URL without a comma".to_owned()))?;
    let mut parameters = header.split(';');
    let media_type = parameters.next().unwrap_or_default().trim();
    let is_image = media_type.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("image/"));
    if !(media_type.is_empty() || is_image || media_type.eq_ignore_ascii_case("application/octet-stream")) {
        return Err(invalid("a data: URL of a media type other than image/*".to_owned()));
    }
    let is_base64 = parameters.any(|parameter| parameter.trim().eq_ignore_ascii_case("base64"));
    // Base64 has four characters for three bytes; percent-encoding up to three for one, and never fewer than one.
    let least = if is_base64 { data.len() / 4 * 3 } else { data.len() / 3 };
    let too_large = |found: usize| VisionError::TooLarge {
        what: "encoded bytes",
        found: found as u64,
        limit: max_bytes as u64,
    };
    // Line breaks within base64 are allowed for; a body of nothing else is not.
    if least > max_bytes.saturating_mul(2) {
        return Err(too_large(least));
    }
    let mut bytes: Vec<u8> = percent_decoded(data).collect();
    if is_base64 {
        bytes.retain(|byte| !byte.is_ascii_whitespace());
        bytes =
            BASE64.decode(bytes).map_err(|error| invalid(format!("a data: URL of no base64: {error}")))?;
    }
    if bytes.len() > max_bytes {
        return Err(too_large(bytes.len()));
    }
    Ok(bytes.into())
}

fn percent_decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut bytes = text.bytes();
    std::iter::from_fn(move || {
        let byte = bytes.next()?;
        let mut ahead = bytes.clone();
        let digits = (ahead.next().and_then(hex_digit), ahead.next().and_then(hex_digit));
        match (byte, digits) {
            (b'%', (Some(high), Some(low))) => {
                bytes = ahead;
                Some(high << 4 | low)
            }
            _ => Some(byte),
        }
    })
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

pub(crate) fn invalid(what: String) -> VisionError {
    VisionError::InvalidSource { what }
}

pub(crate) fn refused(what: String) -> VisionError {
    VisionError::RefusedSource { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_apart_and_local_files_are_refused() {
        assert!(matches!(ImageSource::from_url("https://example.org/a.png"), Ok(ImageSource::Web(_))));
        assert!(matches!(ImageSource::from_url("S3://bucket/a.png"), Ok(ImageSource::Object(_))));
        assert!(matches!(ImageSource::from_url("DATA:,x"), Ok(ImageSource::Data(_))));
        for local in
            ["/etc/passwd", "photo.jpg", "./a.png", "file:///etc/passwd", "FILE:/etc/passwd", r"C:\a.png"]
        {
            let error = ImageSource::from_url(local).unwrap_err();
            assert!(matches!(error, VisionError::RefusedSource { .. }), "{local}: {error}");
            assert_eq!(error.reason(), "IMAGE_SOURCE_REFUSED");
        }
        for other in ["ftp://example.org/a.png", "gopher://example.org", "memory:///a", "javascript:alert(1)"]
        {
            assert!(
                matches!(ImageSource::from_url(other), Err(VisionError::RefusedSource { .. })),
                "{other}"
            );
        }
        let long = format!("https://example.org/{}", "a".repeat(MAX_URL_BYTES));
        assert!(matches!(ImageSource::from_url(&long), Err(VisionError::InvalidSource { .. })));
    }

    #[test]
    fn data_urls_are_read_with_and_without_base64() {
        for text in [
            "data:image/png;base64,aGVsbG8=",
            "data:image/png;base64,aGVsbG8",
            "data:;base64,aGVs\nbG8=",
            "data:image/png;name=a;base64,aGVsbG8%3D",
            "data:,hello",
            "data:image/gif,%68e%6c%6Co",
        ] {
            assert_eq!(data_url(text, 100).unwrap(), "hello", "{text}");
        }
        for text in ["data:hello", "data:text/html,hello", "data:;base64,a*b", "data:;base64,aGVsbG8"] {
            let limit = if text.ends_with("bG8") { 4 } else { 100 };
            assert!(data_url(text, limit).is_err(), "{text}");
        }
        let large = format!("data:;base64,{}", "A".repeat(1000));
        let error = data_url(&large, 100).unwrap_err();
        assert!(matches!(error, VisionError::TooLarge { limit: 100, .. }), "{error}");
    }
}
