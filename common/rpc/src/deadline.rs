//! The caller's deadline.

use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;

/// How long before the caller's deadline a server answers, so that its typed DEADLINE_EXCEEDED arrives instead of the
/// transport's bare CANCELLED.
const MARGIN: Duration = Duration::from_millis(5);

/// The moment by which the caller wants its answer: `grpc-timeout` of the request, counted from now, less a small
/// margin. `None` without one, or with one that is not of the gRPC form (at most eight digits and a unit).
#[must_use]
pub fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let timeout = parse(text)?;
    Instant::now().checked_add(timeout.saturating_sub(MARGIN))
}

/// The `Timeout` of the gRPC over HTTP/2 protocol: `TimeoutValue TimeoutUnit`.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, expected) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("4S", Duration::from_secs(4)),
            ("5m", Duration::from_millis(5)),
            ("6u", Duration::from_micros(6)),
            ("7n", Duration::from_nanos(7)),
            ("99999999S", Duration::from_secs(99_999_999)),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn other_forms_are_no_deadline() {
        for text in ["", "S", "5", "5x", "-5S", "123456789S", "5 S", "é"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_deadline_counts_from_now() {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", "10S".parse().unwrap());
        let left = deadline(&metadata).unwrap().saturating_duration_since(Instant::now());
        assert!(left <= Duration::from_secs(10) && left > Duration::from_secs(9), "{left:?}");
    }
}
