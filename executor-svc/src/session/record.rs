//! A session as it is stored, so that it outlives its executor.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use roundhouse_engine::EngineKey;
use roundhouse_text::ChatMessage;
use serde::{Deserialize, Serialize};

/// A session without its keys and values, which are computed again from its tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// [`SessionRecord::FORMAT`].
    pub format: u32,
    /// Which executor's copy of the session wrote it: a random name.
    pub writer: String,
    /// Whose it is.
    pub tenant: String,
    /// The engine's key.
    pub engine: String,
    /// Tokens that it can hold.
    pub max_seq_len: usize,
    /// How long it lives without a request, in milliseconds.
    pub idle_timeout_ms: u64,
    /// When it ends however it is used, in milliseconds since the epoch.
    pub end_unix_ms: Option<u64>,
    /// When it was made, in milliseconds since the epoch.
    pub created_unix_ms: u64,
    /// When it was last used, in milliseconds since the epoch.
    pub used_unix_ms: u64,
    /// Every token so far.
    pub tokens: Vec<u32>,
    /// The conversation so far, where turns came as messages.
    pub messages: Vec<ChatMessage>,
    /// The ends of its turns.
    pub turns: Vec<TurnEnd>,
}

/// Where a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnEnd {
    /// Tokens up to there.
    pub tokens: usize,
    /// Messages up to there.
    pub messages: usize,
}

/// A record that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not the JSON of one.
    #[error("the record of session {id:?} cannot be read: {source}")]
    Json {
        /// The session.
        id: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Of another version of this program, or of nonsense.
    #[error("the record of session {id:?} cannot be used: {what}")]
    Invalid {
        /// The session.
        id: String,
        /// What is wrong.
        what: String,
    },
}

impl SessionRecord {
    /// What this program reads and writes.
    pub const FORMAT: u32 = 1;
    /// The largest record that is read: far above that of the longest sequence.
    pub const MAX_BYTES: u64 = 64 << 20;

    /// As JSON.
    ///
    /// # Errors
    /// [`RecordError::Json`].
    pub fn to_json(&self, id: &str) -> Result<Vec<u8>, RecordError> {
        serde_json::to_vec(self).map_err(|source| RecordError::Json { id: id.to_owned(), source })
    }

    /// From JSON.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn from_json(id: &str, json: &[u8]) -> Result<Self, RecordError> {
        let record: Self =
            serde_json::from_slice(json).map_err(|source| RecordError::Json { id: id.to_owned(), source })?;
        let invalid = |what: String| Err(RecordError::Invalid { id: id.to_owned(), what });
        if record.format != Self::FORMAT {
            return invalid(format!("it has format {}, this program reads {}", record.format, Self::FORMAT));
        }
        if record.tokens.len() > record.max_seq_len {
            return invalid(format!("{} tokens in {} places", record.tokens.len(), record.max_seq_len));
        }
        Ok(record)
    }

    /// The engine.
    ///
    /// # Errors
    /// [`RecordError::Invalid`] when it names none.
    pub fn engine(&self, id: &str) -> Result<EngineKey, RecordError> {
        EngineKey::parse(&self.engine).ok_or_else(|| RecordError::Invalid {
            id: id.to_owned(),
            what: format!("{:?} is no engine key", self.engine),
        })
    }

    /// When it ends however it is used.
    #[must_use]
    pub fn end(&self) -> Option<SystemTime> {
        self.end_unix_ms.map(time)
    }

    /// When it expires unless used.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        let idle = self.used_unix_ms.saturating_add(self.idle_timeout_ms);
        time(idle.min(self.end_unix_ms.unwrap_or(u64::MAX)))
    }
}

/// A time as milliseconds since the epoch.
pub(super) fn unix_ms(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The time of milliseconds since the epoch; far away where the system knows no such time.
pub(super) fn time(unix_ms: u64) -> SystemTime {
    /// Beyond any session's life, and a time on every system: the year 9999.
    const LAST_UNIX_MS: u64 = 253_402_300_799_000;
    UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST_UNIX_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> SessionRecord {
        SessionRecord {
            format: SessionRecord::FORMAT,
            writer: "w".to_owned(),
            tenant: "blue".to_owned(),
            engine: "a".repeat(64),
            max_seq_len: 8,
            idle_timeout_ms: 1000,
            end_unix_ms: None,
            created_unix_ms: 5000,
            used_unix_ms: 7000,
            tokens: vec![1, 2, 3],
            messages: vec![ChatMessage { role: "user".to_owned(), content: "é".into() }],
            turns: vec![TurnEnd { tokens: 3, messages: 1 }],
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let json = record().to_json("s").unwrap();
        assert_eq!(SessionRecord::from_json("s", &json).unwrap(), record());
    }

    #[test]
    fn what_is_no_record_is_refused_by_name() {
        let other_format = SessionRecord { format: 2, ..record() }.to_json("s").unwrap();
        let too_long = SessionRecord { max_seq_len: 2, ..record() }.to_json("s").unwrap();
        for json in [&b"{}"[..], b"", &other_format, &too_long] {
            let error = SessionRecord::from_json("the-session", json).unwrap_err();
            assert!(error.to_string().contains("the-session"), "{error}");
        }
        let nameless = SessionRecord { engine: "x".to_owned(), ..record() };
        assert!(nameless.engine("s").is_err() && record().engine("s").is_ok());
    }

    #[test]
    fn a_record_expires_when_it_is_idle_for_long_or_at_its_end() {
        assert_eq!(unix_ms(record().expires()), 8000);
        assert_eq!(unix_ms(SessionRecord { end_unix_ms: Some(7500), ..record() }.expires()), 7500);
        let forever = SessionRecord { idle_timeout_ms: u64::MAX, ..record() };
        assert!(forever.expires() > SystemTime::now());
    }
}
